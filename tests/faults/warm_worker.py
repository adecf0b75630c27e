"""Scoring workers that need not load torch first, for coordinators that live for seconds.

    python -m tests.faults.warm_worker <socket>            forks a worker for every caller
    python -I -S …/warm_worker.py <socket>                 a caller, in the place of a worker

A worker is the real program in a process of its own, with its caller's standard streams. It dies
with its caller, and its caller with the daemon.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = "matl_coordinator.scoring.worker"
STREAMS = 3
ROOT = Path(__file__).parents[2]


def write_launcher(path: Path, where: Path) -> Path:
    """Write what stands for the Python of a daemon that shall get its workers at ``where``."""
    path.write_text(
        f"""#!/bin/sh
if [ "$1 $2" = "-m {PROGRAM}" ]; then
    exec {sys.executable} -I -S {Path(__file__).resolve()} {where}
fi
exec {sys.executable} "$@"
"""
    )
    path.chmod(0o755)
    return path


@contextmanager
def warm_workers(folder: Path) -> Iterator[str]:
    """Yield what stands for a coordinator's Python while scoring workers are warm."""
    where = folder / "workers.sock"
    process = subprocess.Popen([sys.executable, "-m", "tests.faults.warm_worker", where], cwd=ROOT)
    try:
        while not where.exists():
            assert process.poll() is None, "no worker could be loaded"
            time.sleep(0.05)
        yield str(write_launcher(folder / "python", where))
    finally:
        process.kill()
        process.wait()


def call(where: str) -> None:
    """Hand the streams on, and end as the worker ends."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(where)
        socket.send_fds(connection, [b"x"], list(range(STREAMS)))
        status = connection.recv(1)
    if status:
        sys.exit(status[0])
    os.kill(os.getpid(), signal.SIGKILL)


def serve_forever(where: str) -> None:
    """Load everything, then fork for every caller."""
    from matl_coordinator.scoring import worker

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(where)
        listener.listen(64)
        while True:
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    listener.close()
                    _work(connection, worker)


def _work(connection: socket.socket, worker: object) -> None:
    status = 1
    try:
        _, streams, _, _ = socket.recv_fds(connection, 1, STREAMS)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        threading.Thread(target=_end_with_caller, args=(connection,), daemon=True).start()
        worker.serve(worker.handle)  # type: ignore[attr-defined]  # a module
        status = 0
    finally:
        connection.send(bytes([status]))
        os._exit(status)


def _end_with_caller(connection: socket.socket) -> None:
    connection.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if sys.flags.isolated:
        call(sys.argv[1])
    else:
        serve_forever(sys.argv[1])
