"""What an attack is: a function of what the attackers know to the rows they send.

Attackers are omniscient and collude, unless an attack says otherwise: they see every honest
update of the round before they send their own. Nothing here performs I/O, reads a clock or
draws a random number of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from matl_common.errors import MatlError

Rows = NDArray[np.float64]
"""Shape ``(rows, d)``: one update in each row."""
Vector = NDArray[np.float64]
Aggregate = Callable[[Rows], Vector]
"""The rule under attack: ``(h + f, d)``, the honest rows first, to its aggregate ``(d,)``."""


class AttackError(MatlError):
    """An attack was not given what it needs, or what it was given does not fit together."""


class Knowledge(StrEnum):
    """A field of ``Honest`` that some attacks need and that may be absent."""

    PREVIOUS = "previous"
    NOISE = "noise_std"
    ROOT = "root"
    AGGREGATE = "aggregate"
    CLASSES = "class_gradients"
    TRAINING = "class_training"


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class Honest:
    """What ``f`` colluding attackers know of a round with ``h`` honest hospitals.

    Arrays of any real type are taken and kept as float64.

    Raises:
        AttackError: shapes that do not fit together, or no row.
    """

    updates: Rows
    """Shape ``(h, d)``: what the honest hospitals send."""
    own: Rows
    """Shape ``(f, d)``: what the attackers' own training gave, before any privacy noise; anything
    where ``AttackEntry.trains`` is False."""
    round: int = 1
    """Counts from 1."""
    previous: Vector | None = None
    """The last round's aggregate; None in the first round."""
    signals: Rows | None = None
    """The honest updates before their privacy noise; None where there is none."""
    noise_std: Vector | None = None
    """Shape ``(f,)``: the noise promised for each attacker's coordinates; None without privacy."""
    root: Vector | None = None
    """The coordinator's reference, pointing downhill; None where it has not leaked."""
    aggregate: Aggregate | None = None
    """The rule under attack; None where it is not known."""
    class_gradients: Rows | None = None
    """Shape ``(k, d)``: downhill for each class, of the attackers' own patients with their true
    labels, at every model where the coordinator may look; None where they did not compute it."""
    class_training: Vector | None = None
    """Shape ``(d,)``: what training on the same patients gives that knows all classes alike, as the
    coordinator's own on its reference images; None where they did not do it."""

    def __post_init__(self) -> None:
        numbers = "updates", "own", "signals", "previous", "noise_std", "root"
        for name in (*numbers, "class_gradients", "class_training"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, np.asarray(value, dtype=np.float64))
        if self.updates.ndim != 2 or self.own.ndim != 2 or 0 in (self.h, self.f, self.d):
            raise AttackError(
                f"updates of shape {self.updates.shape} and own rows of shape {self.own.shape}: "
                "give at least one row of each, (h, d) and (f, d)"
            )
        wanted = {
            "own": (self.f, self.d),
            "previous": (self.d,),
            "signals": (self.h, self.d),
            "noise_std": (self.f,),
            "root": (self.d,),
            "class_training": (self.d,),
        }
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise AttackError(f"{name} has shape {value.shape}; it must be {shape}")
        classes = self.class_gradients
        if classes is not None and (classes.ndim != 2 or classes.shape[1] != self.d):
            raise AttackError(f"class_gradients have shape {classes.shape}; give (k, {self.d})")
        if self.round < 1:
            raise AttackError(f"round is {self.round}; rounds count from 1")

    @staticmethod
    def without_data(updates: NDArray[np.floating], *, f: int, round: int = 1) -> Honest:
        """Attackers that hold no data: the honest mean stands in for what they would train."""
        rows = np.asarray(updates, dtype=np.float64)
        return Honest(rows, np.tile(rows.mean(axis=0), (f, 1)), round=round)

    @property
    def h(self) -> int:
        """Number of honest hospitals."""
        return int(self.updates.shape[0])

    @property
    def f(self) -> int:
        """Number of attackers."""
        return int(self.own.shape[0])

    @property
    def n(self) -> int:
        """Number of hospitals."""
        return self.h + self.f

    @property
    def d(self) -> int:
        """Number of coordinates."""
        return int(self.updates.shape[1])

    @property
    def mean(self) -> Vector:
        """Mean of the honest updates, ``μ``."""
        return np.asarray(self.updates.mean(axis=0))

    @property
    def deviation(self) -> Vector:
        """Standard deviation of each coordinate over the honest updates, ``s``; 0 for one."""
        if self.h < 2:
            return np.zeros(self.d)
        return np.asarray(self.updates.std(axis=0, ddof=1))

    def repeated(self, row: Vector) -> Rows:
        """The same row from every attacker."""
        return np.tile(row, (self.f, 1))

    def before_noise(self) -> Honest:
        """The round as it would be without privacy noise."""
        return self if self.signals is None else replace(self, updates=self.signals, signals=None)


Attack = Callable[[Honest, np.random.Generator], Rows]
"""Returns what each attacker sends: ``f`` rows, of ``d`` values unless their number is wrong
on purpose. Stateless: whatever depends on time depends on ``Honest.round``."""


def as_trained(honest: Honest, draws: np.random.Generator) -> Rows:
    """What the attackers trained, unchanged: the harm, if any, is in their data."""
    return honest.own.copy()


def unit(vector: Vector) -> Vector:
    """The vector's direction; zero for the zero vector."""
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0.0 else np.zeros_like(vector)


def needed(honest: Honest, knowledge: Knowledge) -> Vector:
    """A field that may be absent.

    Raises:
        AttackError: it is.
    """
    value = getattr(honest, knowledge.value)
    if not isinstance(value, np.ndarray):
        raise AttackError(f"this attack needs Honest.{knowledge.value}; give it")
    return value
