"""Flower's own aggregation, in an environment of its own: its dependencies are not ours.

The program that runs it is no part of this project. Where it is absent, nothing is compared.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from matl_common.errors import MatlError

VERSION: Final = "1.41.0"
TOOL: Final = Path(__file__).resolve().parents[2].parent / "shared/tools/flower_aggregate.py"
RULES: Final = ("fedavg", "median", "multikrum")


class FlowerFailedError(MatlError):
    """Flower could not be installed or run, so that nothing can be compared with it."""


def install(environment: Path) -> Path:
    """The interpreter of an environment that has Flower; made unless it is there."""
    python = environment / "bin/python"
    probe = [str(python), "-c", "import flwr; print(flwr.__version__)"]
    if python.exists() and _output(probe, must_succeed=False).strip() == VERSION:
        return python
    _output([sys.executable, "-m", "venv", str(environment)])
    wanted = [f"flwr=={VERSION}", "psutil", "cryptography"]
    _output([str(python), "-m", "pip", "--disable-pip-version-check", "install", "-qq", *wanted])
    return python


def run(python: Path, tool: Path, rule: str, n: int) -> dict[str, float | str]:
    """What the program printed about one rule.

    Raises:
        FlowerFailedError: it failed.
    """
    text = _output([str(python), str(tool), "--nodes", str(n), "--rule", rule])
    result: dict[str, float | str] = json.loads(text.splitlines()[-1])
    return result


def _output(command: list[str], *, must_succeed: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and must_succeed:
        raise FlowerFailedError(
            f"{' '.join(command[:4])} … failed: {(done.stderr or done.stdout).strip()[-500:]}"
        )
    return done.stdout
