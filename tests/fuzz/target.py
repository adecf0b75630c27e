"""What a fuzz target is, and what holds of every one of them.

A target is a module of this folder with a ``TARGET``. It is given bytes and either returns
or raises one of our own errors; it takes little memory, whatever the bytes.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from matl_common.errors import MatlError

MAX_INPUT_BYTES = 64 << 10
MAX_GROWTH_BYTES = 512 << 20


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

    Raises:
        PromiseBrokenError: it failed in another way than by a domain error, or took memory.
    """
    forget_peak()
    before = peak_bytes()
    try:
        target.run(data)
        taken = True
    except MatlError:
        taken = False
    except Exception as error:
        raise PromiseBrokenError(f"{type(error).__name__}: {error}") from error
    if (growth := peak_bytes() - before) > MAX_GROWTH_BYTES:
        raise PromiseBrokenError(f"{len(data)} bytes of input took {growth >> 20} MiB")
    return taken


def forget_peak() -> None:
    """Begin anew with what is resident now: an earlier peak would hide a lower one (proc(5))."""
    with suppress(OSError), open("/proc/self/clear_refs", "wb", buffering=0) as file:
        file.write(b"5")


def peak_bytes() -> int:
    """The most this process had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
