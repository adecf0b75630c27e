"""The same round by other frameworks, each in an environment of its own.

The programs that run them are no part of this project. Where one is absent, nothing is compared
with that framework.
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.program_tree import end_tree
from matl_common.errors import MatlError

TOOLS: Final = Path(__file__).resolve().parents[2].parent / "shared/tools"
_MEBIBYTE: Final = 1 << 20
_SECONDS_A_ROUND: Final = 150.0
_SECONDS_TO_START: Final = 180.0


class PeerFailedError(MatlError):
    """A framework did not do its rounds."""


@dataclass(frozen=True, slots=True)
class Peer:
    """How to run one."""

    name: str
    program: str
    environment: str
    """Below ``out/``; made by ``make``."""
    arguments: tuple[str, ...]
    """``{n}`` is the number of hospitals."""

    def command(self, *, out: Path, n: int, rounds: int) -> list[str]:
        """To do so many rounds."""
        python = out / self.environment / "bin/python"
        filled = [each.format(n=n) for each in self.arguments]
        return [str(python), str(TOOLS / self.program), *filled, "--rounds", str(rounds)]

    def missing(self, out: Path) -> str | None:
        """What is not there."""
        needed = (TOOLS / self.program, out / self.environment / "bin/python")
        absent = [str(path) for path in needed if not path.exists()]
        return ", ".join(absent) or None


FLARE: Final = Peer(
    "flare", "flare_round.py", "venv-flare", ("--clients", "{n}", "--scheme", "grpc")
)
FLOWER: Final = Peer(
    "flower",
    "flower_round.py",
    "venv-flower",
    ("--strategy", "fedavg", "--nodes", "{n}", "--clean"),
)
PEERS: Final[Mapping[str, Peer]] = {each.name: each for each in (FLARE, FLOWER)}


@dataclass(frozen=True, slots=True)
class PeerRounds:
    """What one run came to."""

    seconds: tuple[float, ...]
    cpu_seconds: float
    """A round, of all processes."""
    server_peak_bytes: int
    clients_peak_bytes: int

    @property
    def median_seconds(self) -> float:
        return median(self.seconds)


def run_peer(peer: Peer, *, out: Path, n: int, rounds: int) -> PeerRounds:
    """Let it do its rounds.

    Raises:
        PeerFailedError: it did not.
    """
    command = peer.command(out=out, n=n, rounds=rounds)
    # Its scratch files go with the folder; some run to gigabytes.
    with tempfile.TemporaryDirectory(prefix=f"matl-{peer.name}-", dir=out) as folder:
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": folder, "TMPDIR": folder}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            try:
                said, complained = process.communicate(
                    timeout=_SECONDS_TO_START + rounds * _SECONDS_A_ROUND
                )
            except subprocess.TimeoutExpired:
                raise PeerFailedError(f"{peer.name} did not end in time") from None
            finally:
                end_tree(process.pid)
    lines = said.splitlines()
    if process.returncode or not lines:
        raise PeerFailedError(f"{peer.name} failed: {complained.strip()[-800:]}")
    return parse_result(peer.name, json.loads(lines[-1]))


def parse_result(name: str, told: Mapping[str, Any]) -> PeerRounds:
    """Read the line that either program prints.

    Raises:
        PeerFailedError: it tells of no round.
    """
    seconds: Sequence[float] = told.get("sec_per_round") or ()
    if "error" in told or not seconds:
        raise PeerFailedError(f"{name} did no round: {told.get('error', 'no reason given')}")
    cpu = told.get("cpu_s_per_round", told["rounds_window"].get("cpu_s_per_round"))
    return PeerRounds(
        tuple(seconds),
        float(cpu),
        told["server_peak_rss_mb"] * _MEBIBYTE,
        told["client_peak_rss_mb"] * _MEBIBYTE,
    )
