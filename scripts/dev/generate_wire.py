"""Generate ``matl_common/wire/*_pb2*`` from ``proto/matl/v1``, or check that they are current.

The contract keeps its own name (``matl/v1/…``, package ``matl.v1``), which is what peers see in
descriptors and reflection. Python finds the modules in ``matl_common.wire``, so the imports that
protoc writes are rewritten to that package.
"""

import argparse
import importlib.resources
import os
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]
PROTO = ROOT / "proto"
WIRE = ROOT / "matl_common" / "wire"
GENERATED = "*_pb2*.py*"

IN_PYTHON = (
    ("from matl.v1 import ", "from matl_common.wire import "),
    ("DESCRIPTOR, 'matl.v1.", "DESCRIPTOR, 'matl_common.wire."),
)


def generate(out: Path) -> dict[str, str]:
    """Run protoc into ``out``; return the modules' text by file name."""
    # protoc looks for the stub generators on PATH; they are installed beside this interpreter.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    arguments = [
        "protoc",
        f"-I{PROTO}",
        f"-I{importlib.resources.files('grpc_tools') / '_proto'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        *(str(path) for path in sorted(PROTO.glob("matl/v1/*.proto"))),
    ]
    if protoc.main(arguments) != 0:
        sys.exit("protoc refused the contract; its message is above.")
    return {path.name: for_wire(path.read_text("utf-8")) for path in out.glob("matl/v1/*.py*")}


def for_wire(text: str) -> str:
    """Rewrite a generated module so that it works inside ``matl_common.wire``."""
    for generated, ours in IN_PYTHON:
        text = text.replace(generated, ours)
    return text


def drifted(fresh: dict[str, str]) -> list[str]:
    """Name the committed modules that differ from ``fresh``, are missing, or should be gone."""
    committed = {path.name: path.read_text("utf-8") for path in WIRE.glob(GENERATED)}
    names = fresh.keys() | committed.keys()
    return sorted(name for name in names if fresh.get(name) != committed.get(name))


def write(fresh: dict[str, str]) -> None:
    """Make the committed modules equal to ``fresh``."""
    for name in drifted(fresh):
        if name in fresh:
            (WIRE / name).write_text(fresh[name], encoding="utf-8")
        else:
            (WIRE / name).unlink()
        print(f"{WIRE.name}/{name}")


def main() -> None:
    """Write the modules, or with ``--check`` fail if writing would change one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail on a difference")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        fresh = generate(Path(folder))
    if not check:
        write(fresh)
    elif stale := drifted(fresh):
        sys.exit(f"Generated code differs from proto/: {', '.join(stale)}. Run `make proto`.")


if __name__ == "__main__":
    main()
