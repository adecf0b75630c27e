"""Training in several processes of this machine, under PyTorch's own launcher.

The worker starts ``torch.distributed.run``, which starts the processes (``rank.py``) and
watches them, and hears what they say on their common standard output, as lines of the
worker's protocol. Whatever becomes of them, they are all gone when this returns or
raises, and so is everything they wrote but the update. Nothing here trains, or charges
anything: the one reservation was made before the worker was asked.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from matl_common.errors import MatlError
from matl_common.worker import Message, ReportProgress, ending_with_us
from matl_participant.training.group import ProcessLostError
from matl_participant.training.requests import TrainRequest

PROGRAM = "matl_participant.training.rank"
REQUEST_FILE = "request.json"
# What the processes tell one another never leaves the machine.
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


class TrainingProcessError(MatlError):
    """The code of one of the processes raised, and the others were ended."""


def train_in_processes(
    request: TrainRequest, message: Message, *, processes: int, report: ReportProgress
) -> Message:
    """Train one round in ``processes`` processes, and wait for the update.

    Args:
        request: what to train.
        message: the same as it came; every process parses it again.
        processes: at least two.
        report: told the steps done, as by one process.

    Raises:
        TrainingProcessError: names what a process raised.
        ProcessLostError: a process was killed, or stalled.
    """
    out = request.out_path
    try:
        with _scratch_beside(out) as folder:
            (folder / REQUEST_FILE).write_text(json.dumps({"request": message}))
            threads = request.resources.threads_each(processes)
            with _launched(folder, processes=processes, threads=threads) as launcher:
                return _heard(launcher, report)
    except BaseException:
        out.unlink(missing_ok=True)
        raise


@contextmanager
def _scratch_beside(out: Path) -> Iterator[Path]:
    """A folder for what the processes need, which goes with them."""
    folder = out.with_suffix(".processes")
    # From a worker that was killed in an earlier attempt at the round.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _launched(folder: Path, *, processes: int, threads: int) -> Iterator["subprocess.Popen[str]"]:
    launcher = subprocess.Popen(
        ending_with_us(
            (
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node", str(processes), "--log-dir", os.devnull),
                *("--module", PROGRAM, str(folder), str(os.getpgrp())),
            )
        ),
        # The worker's own standard input holds its requests.
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            **_LOOPBACK,
            "OMP_NUM_THREADS": str(threads),
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
    if launcher.wait() != 0 or not result:
        raise ProcessLostError(
            "a training process was lost: it was killed, perhaps for want of memory; see the log"
        )
    return result


def _output(launcher: "subprocess.Popen[str]") -> IO[str]:
    assert launcher.stdout is not None
    return launcher.stdout
