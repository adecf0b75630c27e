"""Who does the stretches of a pass: threads of this process, or workers elsewhere.

A pass comes to the same bits whoever did it, because every executor hands back what the
stretches came to in the order of their coordinates. Nothing here knows what is computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np

from matl_coordinator.aggregation.rows import Work, opened
from matl_coordinator.core.robust.ranges import Stretch, cut
from matl_coordinator.core.robust.selection import Float32Array

T = TypeVar("T")
A = TypeVar("A")


class Executor(Protocol):
    """Does passes over rows. Blocking; call from a thread."""

    def run(self, work: Work[T]) -> Iterator[T]:
        """What every stretch comes to, in order, cut wherever suits at the ends of groups.

        Raises:
            AggregationError: no row, a row of another size, or what the work raises.
            IntegrityError: a row is not what it was.
            SharedStoreError: the store that the rows lie in does not answer.
        """
        ...


class LocalExecutor:
    """Threads of this process. Memory is one stretch of the rows held, for each thread."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def close(self) -> None:
        """Nothing outlives a pass."""

    def run(self, work: Work[T]) -> Iterator[T]:
        return self.run_part(work, Stretch(0, work.elements))

    def run_part(self, work: Work[T], stretch: Stretch) -> Iterator[T]:
        """``run`` between two coordinates that begin a group."""
        with opened(work.rows, work.elements) as rows:
            longest = rows.longest or work.longest(threads=self.threads)
            longest = max(1, min(stretch.elements, longest))
            pieces = cut(stretch, longest=longest)
            # As many buffers as tasks run at once; taking from and adding to a list is atomic.
            buffers: list[Float32Array] = [
                np.zeros((work.held, longest), dtype="<f4")
                for _ in range(min(self.threads, len(pieces)))
            ]

            def do(piece: Stretch) -> T:
                buffer = buffers.pop()
                try:
                    return work.do(rows, buffer[:, : piece.elements], piece.start)
                finally:
                    buffers.append(buffer)

            yield from in_order(do, pieces, threads=self.threads)


def in_order(function: Callable[[A], T], arguments: Sequence[A], *, threads: int) -> Iterator[T]:
    """``function`` of every argument, in order, with ``threads`` of them worked on at once."""
    if threads == 1 or len(arguments) < 2:
        yield from map(function, arguments)
        return
    with ThreadPoolExecutor(threads) as pool:
        left = iter(arguments)
        # Twice the threads: none is idle while the oldest result is waited for.
        waiting: deque[Future[T]] = deque(
            pool.submit(function, each) for each in islice(left, 2 * threads)
        )
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, each) for each in islice(left, 1))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)
