"""The processes that train one network together, and what passes between them.

The first process alone draws the batch and the noise, and holds the sum of all shares
before it is noised; the others send their shares and learn what it releases. Nothing here
draws, clips or reads data.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from matl_common.errors import IntegrityError, MatlError
from matl_common.privacy.noise import Float64Array

_Item = TypeVar("_Item")
_Number = TypeVar("_Number", np.int64, np.float64, np.uint8)


class ProcessLostError(MatlError):
    """Another process of the group ended, or kept the others waiting for too long."""


class ProcessesDisagreeError(IntegrityError):
    """Two processes of the group do not hold the same values."""


class Alone:
    """A group of one."""

    def share(self, batch: Sequence[_Item]) -> Sequence[_Item]:
        """All of it."""
        return batch

    def first_makes(
        self, make: Callable[[], NDArray[_Number]], *, kind: type[_Number]
    ) -> NDArray[_Number]:
        """Make it here."""
        return make().astype(kind, copy=False)

    def add_up(self, values: Float64Array) -> None:
        """Nothing to add."""

    def check_same(self, values: Float64Array) -> None:
        """Nobody to compare with."""


class ProcessGroup:
    """One process's view of a group that PyTorch connects."""

    def __init__(self, device: torch.device, group: distributed.ProcessGroup | None = None) -> None:
        """Use a group that is connected.

        Args:
            device: where values are exchanged: a GPU for nccl, the processor for gloo.
            group: the one that ``joined`` connected, if not given.
        """
        self._device = device
        self._group = group
        self._rank = distributed.get_rank(group)
        self._size = distributed.get_world_size(group)

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        return self._rank

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self._size

    @property
    def is_first(self) -> bool:
        """Whether this is the process that draws and releases."""
        return self._rank == 0

    def share(self, batch: Sequence[_Item]) -> Sequence[_Item]:
        """This process's part of a batch that all know; the parts differ by one at most."""
        return batch[self._rank :: self._size]

    def first_makes(
        self, make: Callable[[], NDArray[_Number]], *, kind: type[_Number]
    ) -> NDArray[_Number]:
        """Let the first process make a vector, and tell it to all.

        Raises:
            ProcessLostError: the first, or another, is gone.
        """
        made = make().astype(kind, copy=False) if self.is_first else np.empty(0, dtype=kind)
        size = torch.tensor([made.size], device=self._device)
        with _explained():
            distributed.broadcast(size, src=0, group=self._group)
        if not self.is_first:
            made = np.empty(int(size), dtype=kind)
        values = self._placed(made)
        # A batch may be empty, and then all know it.
        if made.size:
            with _explained():
                distributed.broadcast(values, src=0, group=self._group)
        told: NDArray[_Number] = values.cpu().numpy()
        return told

    def add_up(self, values: Float64Array) -> None:
        """Add the vectors of all processes into the first one's; the others' mean nothing after.

        Raises:
            ProcessLostError: another process is gone.
        """
        placed = self._placed(values)
        with _explained():
            distributed.reduce(placed, dst=0, group=self._group)
        values[:] = placed.cpu().numpy()

    def gather(self, values: Float64Array) -> list[Float64Array]:
        """Everybody's arrays, of one shape, in order of rank; in all but the first, none.

        Raises:
            ProcessLostError: another process is gone.
        """
        mine = self._placed(values)
        everyones = [torch.empty_like(mine) for _ in range(self._size * self.is_first)]
        with _explained():
            distributed.gather(mine, everyones or None, dst=0, group=self._group)
        return [each.cpu().numpy() for each in everyones]

    def check_same(self, values: Float64Array) -> None:
        """Check that all processes hold the same vector, to the bit.

        Raises:
            ProcessesDisagreeError: they do not.
            ProcessLostError: another process is gone.
        """
        self.check_agreed(
            hashlib.sha256(values.tobytes()).digest(),
            otherwise="the training processes came to different parameters, so nothing is "
            "released; look for a faulty device, or train with processes = 1",
        )

    def check_agreed(self, content: bytes, *, otherwise: str) -> None:
        """Check that all processes have the same to say, which is equally long in all.

        Raises:
            ProcessesDisagreeError: they do not; ``otherwise`` says what that means.
            ProcessLostError: another process is gone.
        """
        if len(set(self.tell_all(content))) > 1:
            raise ProcessesDisagreeError(otherwise)

    def tell_all(self, content: bytes) -> list[bytes]:
        """What everybody has to say, equally long in all, in order of rank.

        Raises:
            ProcessLostError: another process is gone.
        """
        mine = self._placed(np.frombuffer(content, dtype=np.uint8).copy())
        everyones = [torch.empty_like(mine) for _ in range(self._size)]
        with _explained():
            distributed.all_gather(everyones, mine, group=self._group)
        return [each.cpu().numpy().tobytes() for each in everyones]

    def _placed(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


@contextmanager
def joined(
    folder: Path | None, *, rank: int, size: int, device: torch.device, stall_seconds: float
) -> Iterator[ProcessGroup]:
    """Connect with the other processes: nccl on GPUs, gloo on the processor.

    Those of one machine find one another through a file in ``folder``, which only this user
    can read. A socket that anybody in the hospital's network could connect to is no place for
    sums that have no noise yet; those of several machines use a link of their own (``nodes``).

    Args:
        folder: the same for all processes, and new for every group. Without one they meet
            where the launcher's own processes did.
        rank: this process's number, from 0.
        size: of the group.
        device: the one this process computes on.
        stall_seconds: a process that keeps the others waiting for longer is lost.

    Raises:
        ProcessLostError: the others did not come.
    """
    with _explained():
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"file://{folder / 'rendezvous'}" if folder else "env://",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=stall_seconds),
        )
    # Not undone after an error: nccl would wait for those who are gone. The process ends then.
    yield ProcessGroup(device)
    distributed.destroy_process_group()


@contextmanager
def _explained() -> Iterator[None]:
    """Say in our words what PyTorch raises, whatever the backend, when a process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError(
            "a training process was lost: it ended, or kept the others waiting for longer than "
            "stall_seconds"
        ) from error
