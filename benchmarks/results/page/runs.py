# ruff: noqa: E501  # The page's own lines.
"""What was run, by which code, and how to run it again."""

from collections.abc import Mapping
from typing import Any

from benchmarks.results.page.markdown import table


def what_was_run(found: Mapping[str, Any]) -> str:
    """Study by study."""
    rows = [
        [
            name,
            f"{study['finished_runs']} of {study['asked_runs']}",
            str(len({(c["attack"], c["mix"], c["hostile"], c["epsilon"]) for c in study["cells"]})),
            ", ".join(map(str, sorted({seed for c in study["cells"] for seed in c["seeds"]}))),
            study.get("code", ""),
            study.get("fingerprint", ""),
        ]
        for name, study in found["studies"].items()
    ]
    header = ["study", "runs finished", "federations and attacks", "seeds"]
    header += ["code", "code and features"]
    return f"""
## What was run

{table(header, rows)}

{_codes(found["studies"])}

{_carried(found["studies"])}

    make evidence-check                  # runs some of these again, drawn at random, and compares every figure
    make evidence                        # goes on where it was stopped; all of it takes a day of two cores
    make evidence ARGS='--continue'      # runs what is missing here, if the code is still that of the published runs
    make evidence ARGS='--only tutorial-fundus,tutorial-fashion'
    make evidence ARGS='--tables'        # only write what is finished; what was published where nothing is
    make evidence ARGS='--tables --replace'  # and nothing else, even where published runs are dropped
    make evidence ARGS='--only peers'    # Flower's and ByzFL's own rules
    make evidence-quick                  # digits, some minutes: the order of the rules, with tolerance

Studies are in `benchmarks/studies/`; each can be run by itself with `matl simulate`, those whose `set` is a file of features with
`--features out/evidence` after `python -m benchmarks.results.features out/evidence` has made it. Runs are kept in `out/evidence`
under a digest of the code and features that enter them; `--continue` takes published ones over by the same digest. The JSON has the figures seed by seed, and each study's command.
The command of this page: `{found["command"]}`.
"""


def _carried(studies: Mapping[str, Any]) -> str:
    """The changes of code that some runs are older than."""
    by_change: dict[tuple[str, ...], list[str]] = {}
    for name, study in studies.items():
        for each in study.get("carried_over", []):
            said = f"{each['date'][:10]}, `{each['from']}` → `{each['to']}`: {each['why']}"
            again = each["runs_made_again"]
            checked = (
                f"{again} runs drawn (seed {each['seed']}) and made again gave the same figures, so that with 95 % "
                f"confidence at most {100 * (1 - 0.05 ** (1 / again)):.0f} % of all would not"
            )
            by_change.setdefault((said, checked), []).append(name)
    if not by_change:
        return "Every run is of the code that its study names."
    lines = [
        f"- {said} ({checked}) {'All studies.' if len(names) == len(studies) else ', '.join(names) + '.'}"
        for (said, checked), names in by_change.items()
    ]
    return (
        "Some runs are older than the code that their study names: it changed since in ways that move no figure of "
        "theirs, as far as was checked (`make evidence-check ARGS=\"--carry 'why'\"` does both):\n\n"
        + "\n".join(lines)
    )


def _codes(studies: Mapping[str, Any]) -> str:
    codes = {study.get("code", "") for study in studies.values()}
    if len(codes - {""}) == len(codes) == 1:
        return "All studies name the same code."
    said = (
        "These studies are not all known to be of the same code: where *code* differs, or is empty, do not "
        "compare one study's figures with another's."
    )
    if "" in codes:
        said += (
            " Studies without a code are older: their *longest exclusion* leaves held rounds out, and the JSON has "
            "them without their seeds' figures."
        )
    return said if codes else ""
