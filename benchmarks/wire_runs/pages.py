"""What it costs to write a model's file, by where the kernel gets the pages for it.

    python -m benchmarks.wire_runs.pages [FOLDER]

A virtual machine whose free memory goes back to its host (virtio-balloon's free page reporting,
some two seconds after it was freed) pays for each page anew, in faults that show as slow copies.
Each way writes some files one after another, then over them, and makes them durable; the folder
must be on a disk.
"""

import mmap
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from matl_common.tensors import CHUNK_BYTES

CHUNKS: Final = 98
FILES: Final = 4
REPORTED_SECONDS: Final = 5.0
RWF_DONTCACHE: Final = 0x80
"""<linux/fs.h>, since 6.14."""
_BEHIND: Final = 16
_CHUNK: Final = mmap.mmap(-1, CHUNK_BYTES)
"""On a page's boundary, for ``O_DIRECT``."""
_CHUNK[:] = os.urandom(CHUNK_BYTES)

Write = Callable[[int], None]


def plain(descriptor: int, *, flags: int = 0) -> None:
    """As the spool does."""
    for index in range(CHUNKS):
        os.pwritev(descriptor, [_CHUNK], index * CHUNK_BYTES, flags)


def allocated(descriptor: int) -> None:
    """With blocks on disk from the start."""
    os.posix_fallocate(descriptor, 0, CHUNKS * CHUNK_BYTES)
    plain(descriptor)


def dropped_behind(descriptor: int) -> None:
    """Let the kernel begin to write each chunk, and forget it somewhat later."""
    for index in range(CHUNKS):
        at = index * CHUNK_BYTES
        os.pwritev(descriptor, [_CHUNK], at)
        os.posix_fadvise(descriptor, at, CHUNK_BYTES, os.POSIX_FADV_DONTNEED)
        if index >= _BEHIND:
            before = at - _BEHIND * CHUNK_BYTES
            os.posix_fadvise(descriptor, before, CHUNK_BYTES, os.POSIX_FADV_DONTNEED)


WAYS: Final[dict[str, tuple[int, Write]]] = {
    "write": (0, plain),
    "write, allocated before": (0, allocated),
    "write, dropped behind": (0, dropped_behind),
    "write, not kept in the cache": (0, partial(plain, flags=RWF_DONTCACHE)),
    "write past the cache": (os.O_DIRECT, plain),
}


def have_pages_at_hand(folder: Path, byte_count: int) -> None:
    """Leave so much memory free that was in use a moment ago, and that the host need not give."""
    path = folder / "pages"
    with path.open("wb", buffering=0) as file:
        for _ in range(-(-byte_count // CHUNK_BYTES)):
            file.write(_CHUNK)
    path.unlink()


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A file to write."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def cost_of(work: Callable[[], None]) -> tuple[float, float]:
    """CPU seconds of this process that it takes, and seconds."""
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds


def tell(what: str, costs: list[tuple[float, float]]) -> None:
    """Print medians."""
    cpu, seconds = (median(each) for each in zip(*costs, strict=True))
    sys.stdout.write(f"  {what:<36} {cpu:6.3f} CPU s {seconds:6.3f} s\n")


def measure(folder: Path, name: str) -> None:
    """Write files one way, and tell."""
    flags, write = WAYS[name]
    # Long enough for what was freed to be gone.
    time.sleep(REPORTED_SECONDS)
    sys.stdout.write(f"{name}\n")
    written, synced, again = [], [], []
    paths = [folder / str(number) for number in range(FILES)]
    for path in paths:
        with opened(path, flags) as descriptor:
            written.append(cost_of(partial(write, descriptor)))
            synced.append(cost_of(partial(os.fsync, descriptor)))
            again.append(cost_of(partial(write, descriptor)))
    for path in paths:
        path.unlink()
    tell("new files", written)
    tell("fsync", synced)
    tell("over what was just written", again)


def main() -> None:
    """Measure every way, and one where pages are at hand."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else ".") as name:
        folder = Path(name)
        for way in WAYS:
            try:
                measure(folder, way)
            except OSError as error:
                sys.stdout.write(f"  {error.strerror}\n")
        sys.stdout.write("write, with pages at hand\n")
        freed = []
        for number in range(FILES):
            have_pages_at_hand(folder, 2 * CHUNKS * CHUNK_BYTES)
            with opened(folder / f"freed {number}", 0) as descriptor:
                freed.append(cost_of(partial(plain, descriptor)))
        tell("new files", freed)


if __name__ == "__main__":
    main()
