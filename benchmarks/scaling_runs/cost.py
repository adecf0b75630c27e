"""What aggregation costs by arithmetic, from rates that were measured on one worker.

Nothing here measures, reads or prints. Every figure is an extrapolation: workers are taken to
share nothing but what is named here, and to wait for nothing while another is slow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from matl_common.tensors import ELEMENT_BYTES
from matl_coordinator.core.robust.ranges import GROUP_ELEMENTS, VERIFIED_ELEMENTS

SUM_BYTES: Final = 8
"""Of an inner product in double precision."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes and products a second; of one worker, which is one core, where nothing else is said."""

    read: float
    """Bytes of updates fetched, checked and added up: the second pass of a weighted mean."""
    multiply: float
    """Products of the first pass, both halves of the matrix counted."""
    add: float
    """Bytes of sums that the coordinator adds up."""
    link: float
    """Bytes a second of each machine's network, in either direction. Assumed, not measured."""


@dataclass(frozen=True, slots=True)
class Federation:
    """How large."""

    n: int
    d: int
    workers: int
    """Of one core each."""
    per_machine: int
    """Workers that share a link."""

    @property
    def update_bytes(self) -> int:
        return ELEMENT_BYTES * self.d

    @property
    def round_bytes(self) -> int:
        """Of all updates: on the coordinator's disk, and again in the shared store."""
        return self.n * self.update_bytes


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of each part of a round that grows with n or d, one after the other."""

    receive: float
    """All updates into the coordinator, and on into the store at the same time."""
    geometry: float
    """First pass, by the workers."""
    sums: float
    """What the first pass's groups come to, into the coordinator and added; during ``geometry``."""
    aggregate: float
    """Second pass, by the workers; the aggregate comes back meanwhile."""
    worker_bytes: int
    """What a worker holds of the updates at once."""

    @property
    def wall(self) -> float:
        return self.receive + max(self.geometry, self.sums) + self.aggregate

    @property
    def bottleneck(self) -> str:
        """The part that takes longest."""
        parts = {
            "the coordinator's link": self.receive,
            "the first pass": self.geometry,
            "sums into the coordinator": self.sums,
            "the second pass": self.aggregate,
        }
        return max(parts, key=lambda part: parts[part])


def cost_of(federation: Federation, rates: Rates) -> Cost:
    """The cost of one round with a weighted sum."""
    n, d = federation.n, federation.d
    machines = -(-federation.workers // federation.per_machine)
    total = federation.round_bytes
    # A worker fetches, then checks and computes; what its neighbours do meanwhile fills the link.
    reading = total / min(federation.workers * rates.read, machines * rates.link)
    products = n * n * d / (federation.workers * rates.multiply)
    sums = n * (n + 1) // 2 * SUM_BYTES * -(-d // GROUP_ELEMENTS)
    return Cost(
        receive=total / rates.link,
        geometry=reading + products,
        sums=max(sums / rates.link, sums / rates.add),
        aggregate=max(reading, federation.update_bytes / rates.link),
        worker_bytes=(n + 1) * VERIFIED_ELEMENTS * ELEMENT_BYTES,
    )
