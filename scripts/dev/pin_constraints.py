"""Write ``constraints.txt``: one exact version for every package any extra can bring.

The resolver is plain pip, on the oldest supported Python, so that what is pinned is what
``pip install -c constraints.txt`` installs. Nothing is installed and no package is upgraded
in the environment that runs this. No registry address or path is written.

A constraint only limits what is installed, so pins of packages that one platform alone
needs (CUDA libraries, for example) do no harm on another.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints.txt"

RESOLVED_FOR = (3, 11)

# 2.9.1 is the newest release whose 64-bit Arm wheels are the small CPU build.
PER_PLATFORM = {
    "torch": (
        'torch==2.14.1 ; platform_machine != "aarch64"',
        'torch==2.9.1 ; platform_machine == "aarch64"',
    ),
    "torchvision": (
        'torchvision==0.29.1 ; platform_machine != "aarch64"',
        'torchvision==0.24.1 ; platform_machine == "aarch64"',
    ),
}

HEADER = """\
# Exact versions of everything MATL and its extras install. Written by `make constraints`.
#     pip install -c constraints.txt .[demo]
"""


def canonical(name: str) -> str:
    """Normalise a distribution name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def every_requirement(pyproject: Path) -> list[str]:
    """List the requirements of the project and of all its extras."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    return [*project["dependencies"], *(line for extra in extras for line in extra)]


def resolve(requirements: list[str]) -> dict[str, str]:
    """Let pip choose versions; return them by canonical name. Installs nothing."""
    pinned = [line for lines in PER_PLATFORM.values() for line in lines]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    report = subprocess.run(
        [*command, "--report", "-", *requirements, *pinned],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    chosen = (entry["metadata"] for entry in json.loads(report)["install"])
    return {canonical(package["name"]): package["version"] for package in chosen}


def render(versions: dict[str, str]) -> str:
    """Format the constraints file, one package a line, sorted by name."""
    lines: list[str] = []
    for name, version in sorted(versions.items()):
        # A local version label (`+cu130`) names a build, which another platform does not have.
        lines.extend(PER_PLATFORM.get(name, (f"{name}=={version.partition('+')[0]}",)))
    return HEADER + "\n".join(lines) + "\n"


def main() -> None:
    """Resolve and write."""
    if sys.version_info[:2] != RESOLVED_FOR:
        oldest = ".".join(map(str, RESOLVED_FOR))
        sys.exit(f"Resolve with the oldest supported Python: a .venv of Python {oldest}.")
    versions = resolve(every_requirement(ROOT / "pyproject.toml"))
    CONSTRAINTS.write_text(render(versions), encoding="utf-8")
    print(f"{CONSTRAINTS.name}: {len(versions)} packages")


if __name__ == "__main__":
    main()
