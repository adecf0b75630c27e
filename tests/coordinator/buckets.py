"""A store that several machines share: a folder, and a bucket of a real S3 server."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from matl_coordinator.aggregation.stored import SharedPlace

ACCESS, SECRET = "AKIAMATLTESTSMATL000", "a-secret-of-the-tests-and-of-nothing-else"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": ACCESS,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_REGION": "us-east-1",
}


@dataclass
class BucketServer:
    """nanio, which checks the signature of every request and keeps objects as files."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def place(self) -> SharedPlace:
        return SharedPlace("s3://updates/study", f"http://127.0.0.1:{self.port}")

    def file(self, key: str) -> Path:
        """Where the server keeps an object."""
        return self.folder / "updates" / "study" / key

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        self.process = _started(self.folder, self.port)


@contextmanager
def bucket_server(folder: Path) -> Iterator[BucketServer]:
    (folder / "updates").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = BucketServer(folder, port, _started(folder, port))
    try:
        yield server
    finally:
        server.stop()


def _started(folder: Path, port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "nanio", "serve", "--no-access-log", "--log-level", "error"),
            *("--data-dir", str(folder), "--host", "127.0.0.1", "--port", str(port)),
        ],
        env={**os.environ, "NANIO_ACCESS_KEY": ACCESS, "NANIO_SECRET_KEY": SECRET},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return process
        time.sleep(0.05)
    raise RuntimeError(f"the S3 server ended with {process.returncode}")
