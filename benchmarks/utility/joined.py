"""Runs of the utility evidence, one data set each, as one document and one plot.

Each data set may have been measured by a command of its own; every command, machine and date
stays beside its figures. Computes no figure.
"""

import json
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks.utility.evidence import draw
from matl_common.durable import write_atomically

_PROVENANCE: Final = ("machine", "date", "command", "neighbouring_relation")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def command(
    documents: Annotated[list[Path], typer.Argument(help="Each a privacy-utility.json.")],
    *,
    out: Annotated[Path, typer.Option(help="The document.")] = Path(
        "docs/results/privacy-utility-summary.json"
    ),
    plot: Annotated[Path, typer.Option(help="The plot.")] = Path("docs/images/privacy_utility.png"),
) -> None:
    """Join documents and draw their curves side by side."""
    found = [json.loads(path.read_text("utf-8")) for path in documents]
    sections = [each["measurements"]["utility"] for each in found]
    records = {name: section[name] for section in sections for name in section if name != "seconds"}
    joined = {
        "runs": [
            {key: each[key] for key in _PROVENANCE}
            | {"images": sorted(section.keys() - {"seconds"}), "seconds": section["seconds"]}
            for each, section in zip(found, sections, strict=True)
        ],
        "measurements": {"utility": records},
        "summary": {key: value for each in found for key, value in each["summary"].items()},
    }
    text = json.dumps(joined, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(out, [text.encode() + b"\n"], mode=0o644)
    draw(records, plot)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.utility.joined")
