"""Keep a daemon's resident memory near what it uses, and the collector from work without use.

glibc's allocator keeps what was freed: it raises its threshold for giving large blocks
back as it meets them, and it opens an arena a thread. A daemon that handles a round's
chunks for a second and then waits for a day would hold the chunks' memory all day.
Where the C library is another one, nothing happens.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

# Above a chunk of an update: a block that goes back as soon as it is freed has to be handed out
# again page by page, which takes longer than to hash it.
_LARGE_BYTES = 4 << 20
_ARENAS = 2


def bound_memory() -> None:
    """Let large blocks go back to the system when freed; call once, at start."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    # A fixed threshold also stops glibc from raising it.
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    libc.mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
    libc.mallopt(_M_ARENA_MAX, _ARENAS)


def release_memory() -> None:
    """Give freed memory back to the system now; takes some milliseconds."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@contextmanager
def without_collecting() -> Iterator[None]:
    """Put off looking for cycles, for work that makes and drops millions of tuples and none."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
