"""What a fuzz target is, and what holds of every one of them.

A target is a module of this folder with a ``TARGET``. It is given bytes and either returns
or raises one of our own errors; it takes little memory, whatever the bytes.
"""

from __future__ import annotations

import resource
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from matl_common.errors import MatlError

MAX_INPUT_BYTES = 64 << 10
MAX_GROWTH_PER_BYTE = 256
"""What a byte of input may take: an empty dictionary of two characters is the dearest."""
MAX_TRACED_BASE_BYTES = 256 << 10
MAX_RESIDENT_BASE_BYTES = 24 << 20
"""What the allocator keeps, and threads of a live target, are beside the input."""


class PromiseBrokenError(Exception):
    """Input made a target do what it must never do."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that reads bytes from outside."""

    run: Callable[[bytes], object]
    """Returns for input that is taken, and raises a ``MatlError`` for what is refused."""
    seeds: Sequence[bytes]
    """From the project's own encoders; fuzzing starts from them."""
    is_live: bool = False
    """It starts a server, and may refuse its seeds for what the server has seen."""


def try_input(target: Target, data: bytes) -> bool:
    """Run a target once; whether it took the input.

    What Python allocates is bounded more closely than what is resident, where ``tracemalloc``
    runs. Either is measured against what a target takes that has run before: see ``warm_up``.

    Raises:
        PromiseBrokenError: it failed in another way than by a domain error, or took memory.
    """
    forget_peak()
    resident, traced = peak_bytes(), tracemalloc.get_traced_memory()[0]
    try:
        target.run(data)
        taken = True
    except MatlError:
        taken = False
    except Exception as error:
        raise PromiseBrokenError(f"{type(error).__name__}: {error}") from error
    for what, growth, base in (
        ("resident", peak_bytes() - resident, MAX_RESIDENT_BASE_BYTES),
        ("traced", tracemalloc.get_traced_memory()[1] - traced, MAX_TRACED_BASE_BYTES),
    ):
        if growth > base + MAX_GROWTH_PER_BYTE * len(data):
            raise PromiseBrokenError(f"{len(data)} bytes of input took {growth >> 10} KiB, {what}")
    return taken


def warm_up(target: Target) -> None:
    """Have a target import and build what it does once."""
    for seed in (*target.seeds, b""):
        with suppress(MatlError):
            target.run(seed)


def forget_peak() -> None:
    """Begin anew with what is there now: an earlier peak would hide a lower one (proc(5))."""
    if tracemalloc.is_tracing():
        tracemalloc.reset_peak()
    with suppress(OSError), open("/proc/self/clear_refs", "wb", buffering=0) as file:
        file.write(b"5")


def peak_bytes() -> int:
    """The most this process had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
