"""What it costs to write a model's file, by where the kernel gets the pages for it.

    python -m benchmarks.wire_runs.pages [FOLDER]

A virtual machine whose free memory goes back to its host (virtio-balloon's free page reporting,
some two seconds after it was freed) pays for each page anew, in faults that show as slow copies.
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from matl_common.tensors import CHUNK_BYTES

CHUNKS: Final = 98
FILES: Final = 4
REPORTED_SECONDS: Final = 5.0
_CHUNK: Final = os.urandom(CHUNK_BYTES)


def write(path: Path) -> None:
    """Write a file in chunks, over what it holds."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for index in range(CHUNKS):
            os.pwrite(descriptor, _CHUNK, index * CHUNK_BYTES)
    finally:
        os.close(descriptor)


def have_pages_at_hand(folder: Path, byte_count: int) -> None:
    """Leave so much memory free that was in use a moment ago, and that the host need not give."""
    path = folder / "pages"
    with path.open("wb", buffering=0) as file:
        for _ in range(-(-byte_count // CHUNK_BYTES)):
            file.write(_CHUNK)
    path.unlink()


def cpu_of(work: Callable[[], None]) -> float:
    """CPU seconds of this process that it takes."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Write some files, and tell."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        folder = Path(name)
        files = [folder / str(number) for number in range(FILES)]
        # Long enough for what others freed to be gone.
        time.sleep(REPORTED_SECONDS)
        told = {
            "new": [cpu_of(partial(write, path)) for path in files],
            "written before": [cpu_of(partial(write, path)) for path in files],
        }
        for path in files:
            path.unlink()
        told["just freed"] = [cpu_of(partial(write, path)) for path in files]
    size = CHUNKS * CHUNK_BYTES / 1e6
    for pages, seconds in told.items():
        listed = ", ".join(f"{each:.3f}" for each in seconds)
        sys.stdout.write(f"{size:.0f} MB into pages {pages}: {listed} CPU s\n")


if __name__ == "__main__":
    main()
