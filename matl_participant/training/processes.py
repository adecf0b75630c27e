"""Work in several processes, of this machine and others, under PyTorch's own launcher.

The worker starts ``torch.distributed.run``, which starts the processes (``rank.py``) and
watches them, and hears what they say on their common standard output, as lines of the
worker's protocol. Whatever becomes of them, they are all gone when this returns or
raises, and so is everything they wrote but the result. Nothing here trains, or charges
anything: the one reservation was made before the worker was asked.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from matl_common.errors import MatlError
from matl_common.worker import Message, ReportProgress, ending_with_us
from matl_participant.training.group import ProcessLostError
from matl_participant.training.requests import Nodes

PROGRAM = "matl_participant.training.rank"
REQUEST_FILE = "request.json"
_LOOPBACK = "lo"


class TrainingProcessError(MatlError):
    """The code of one of the processes raised, and the others were ended."""


@dataclass(frozen=True, slots=True)
class Processes:
    """How a job is given to several processes.

    Attributes:
        count: on this machine; at least two, unless there are other machines.
        threads: processor threads of each.
        report: told their progress, as by one process.
        nodes: the machines that work together; this one alone if not given.
        stall_seconds: how long to wait for the other machines.
    """

    count: int
    threads: int
    report: ReportProgress
    nodes: Nodes | None = None
    stall_seconds: float = 600.0

    def run(self, message: Message, *, beside: Path) -> Message:
        """Give all of them one request, and wait for its result.

        Args:
            message: a request of ``parse_shared``; every process parses it.
            beside: the file or folder that comes of it, whose name their scratch folder has.

        Raises:
            TrainingProcessError: names what a process raised.
            ProcessLostError: a process was killed, or stalled.
        """
        with _scratch_beside(beside) as folder:
            (folder / REQUEST_FILE).write_text(json.dumps({"request": message}))
            with _launched(folder, self) as launcher:
                return _heard(launcher, self.report)

    def train(self, message: Message, *, out: Path) -> Message:
        """Let them train a round; whatever goes wrong, no update is left of it.

        Raises:
            TrainingProcessError, ProcessLostError: as ``run``.
        """
        try:
            return self.run(message, beside=out)
        except BaseException:
            out.unlink(missing_ok=True)
            raise


@contextmanager
def _scratch_beside(path: Path) -> Iterator[Path]:
    """A folder for what the processes need, which goes with them."""
    folder = path.with_suffix(".processes")
    # From a worker that was killed in an earlier attempt.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _launched(folder: Path, processes: Processes) -> Iterator["subprocess.Popen[str]"]:
    launcher = subprocess.Popen(
        ending_with_us(
            (
                *(
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    *_meeting_place(processes, folder),
                ),
                *("--nproc-per-node", str(processes.count), "--log-dir", os.devnull),
                *("--module", PROGRAM, str(folder), str(os.getpgrp())),
            )
        ),
        # The worker's own standard input holds its requests.
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            **_interfaces(processes.nodes),
            "OMP_NUM_THREADS": str(processes.threads),
            "TMPDIR": str(folder),
        },
    )
    try:
        yield launcher
    finally:
        # The processes are killed with their launcher, and hold the pipe open until they end.
        launcher.kill()
        with _output(launcher) as output:
            for _ in output:
                pass
        launcher.wait()


def _meeting_place(processes: Processes, folder: Path) -> tuple[str, ...]:
    nodes = processes.nodes
    if nodes is None:
        # In a file: --standalone would keep its state behind a port on all interfaces, and
        # unpickles what anybody puts there.
        return (
            *("--nnodes", "1", "--rdzv-backend", "c10d", "--rdzv-id", "alone"),
            *("--rdzv-endpoint", str(folder / "launcher"), "--rdzv-conf", "store_type=file"),
        )
    # Static: the participant's own machine must be the first, which draws and adds the noise.
    return (
        *("--nnodes", str(nodes.count), "--node-rank", str(nodes.rank)),
        *("--rdzv-backend", "static", "--rdzv-endpoint", nodes.rendezvous),
        *("--rdzv-conf", f"timeout={math.ceil(processes.stall_seconds)}"),
    )


def _interfaces(nodes: Nodes | None) -> dict[str, str]:
    """Where gloo and nccl may open sockets: what is told between processes has no noise yet."""
    name = nodes.interface if nodes else _LOOPBACK
    return {
        "GLOO_SOCKET_IFNAME": name,
        # Without "=" every interface whose name begins like that, and InfiniBand whatever it says.
        "NCCL_SOCKET_IFNAME": f"={name}",
        "NCCL_NET": "Socket",
        "NCCL_IB_DISABLE": "1",
    }


def _heard(launcher: "subprocess.Popen[str]", report: ReportProgress) -> Message:
    """Pass on what the processes report, and return the result when all have ended well."""
    result: Message = {}
    for line in _output(launcher):
        match json.loads(line):
            case {"progress": dict(progress)}:
                report(progress)
            case {"result": dict(part)}:
                result |= part
            case {"error": {"type": ProcessLostError.__name__, "message": str(text)}}:
                raise ProcessLostError(text)
            case {"error": {"type": str(kind), "message": str(text)}}:
                raise TrainingProcessError(f"a training process failed with {kind}: {text}")
    if launcher.wait() != 0:
        raise ProcessLostError(
            "a training process was lost: it was killed, perhaps for want of memory, or another "
            "node did not come within stall_seconds; see the log"
        )
    return result


def _output(launcher: "subprocess.Popen[str]") -> IO[str]:
    assert launcher.stdout is not None
    return launcher.stdout
