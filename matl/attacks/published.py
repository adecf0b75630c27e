"""The attacks of the literature on robust aggregation, as their papers define them.

``μ`` and ``s`` are the mean and the standard deviation of the honest updates. Nothing here
looks at what the coordinator keeps to itself but the rule, where an attack is against one.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Final

import numpy as np

from matl.attacks.attack import AttackError, Honest, Knowledge, Rows, Vector, unit

EVALUATIONS: Final = 20
_FIRST_STEP: Final = 10.0
_EXPANSION: Final = 2.0
_CONTRACTION: Final = 0.8


def sign_flip(honest: Honest, draws: np.random.Generator, *, factor: float) -> Rows:
    """``−factor · x_i`` of each attacker's own update."""
    return -factor * honest.own


def gaussian(honest: Honest, draws: np.random.Generator, *, factor: float = 10.0) -> Rows:
    """Random directions of length ``factor · ‖μ‖``, another one for each attacker."""
    rows = draws.standard_normal((honest.f, honest.d))
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows * (factor * np.linalg.norm(honest.mean) / lengths))


def alie_z(n: int, f: int) -> float:
    """How many deviations ALIE may go: ``Φ⁻¹((n−f−k)/(n−f))``, ``k = ⌊n/2+1⌋−f``.

    ``k`` honest hospitals must be farther from the mean than the attackers for these to look
    like the majority. Attackers that are the majority need none; the formula is then taken
    with one, since with none it is infinite.

    Raises:
        AttackError: fewer than two honest hospitals, or no attacker.
    """
    if f < 1 or n - f < 2:
        raise AttackError(f"ALIE of {f} attackers among {n} needs two honest hospitals at least")
    supporters = max(1, n // 2 + 1 - f)
    return NormalDist().inv_cdf((n - f - supporters) / (n - f))


def alie(honest: Honest, draws: np.random.Generator, *, z: float | None = None) -> Rows:
    """A Little Is Enough, ``μ − z s`` (Baruch et al., NeurIPS 2019); ``z`` of ``alie_z``."""
    deviations = alie_z(honest.n, honest.f) if z is None else z
    return honest.repeated(honest.mean - deviations * honest.deviation)


def ipm(honest: Honest, draws: np.random.Generator, *, tau: float) -> Rows:
    """Inner product manipulation, Fall of Empires: ``−τ μ`` (Xie et al., UAI 2019)."""
    return honest.repeated(-tau * honest.mean)


def optimal_ipm(honest: Honest, draws: np.random.Generator) -> Rows:
    """IPM with the ``τ`` that moves the rule's aggregate farthest from ``μ``, as searched."""
    mean = honest.mean
    return honest.repeated(_most_damaging(honest, lambda tau: -tau * mean))


def optimal_alie(honest: Honest, draws: np.random.Generator) -> Rows:
    """ALIE with the ``z`` that moves the rule's aggregate farthest from ``μ``, as searched."""
    mean, deviation = honest.mean, honest.deviation
    return honest.repeated(_most_damaging(honest, lambda z: mean - z * deviation))


def _most_damaging(honest: Honest, row: Callable[[float], Vector]) -> Vector:
    """The row whose factor a line search from 0 finds (Allouah et al., AISTATS 2023).

    Raises:
        AttackError: the rule is not known.
    """
    aggregate = honest.aggregate
    if aggregate is None:
        raise AttackError(f"this attack needs Honest.{Knowledge.AGGREGATE.value}; give it")
    mean = honest.mean

    def damage(factor: float) -> float:
        rows = np.concatenate([honest.updates, honest.repeated(row(factor))])
        return float(np.linalg.norm(aggregate(rows) - mean))

    return row(line_search(damage))


def line_search(damage: Callable[[float], float], *, evaluations: int = EVALUATIONS) -> float:
    """A factor of large damage: steps double while it grows, then shrink by a fifth.

    The search of ByzFL's optimal attacks, from factor 0 with a first step of 10. A factor is
    taken only when it does more damage than every one before.
    """
    best, most, step = 0.0, damage(0.0), _FIRST_STEP
    expands = True
    for _ in range(evaluations - 1):
        found = damage(best + step)
        if found > most:
            best, most = best + step, found
            step *= _EXPANSION if expands else _CONTRACTION
        else:
            expands = False
            step *= _CONTRACTION
    return best


def min_max(honest: Honest, draws: np.random.Generator) -> Rows:
    """``μ − γ s/‖s‖``, no farther from any honest update than two of these are apart.

    The largest such ``γ`` (Shejwalkar and Houmansadr, NDSS 2021). The paper bisects; the
    condition is a quadratic for each honest update, and this is the least of their roots.
    """
    direction, to_mean = -unit(honest.deviation), honest.mean - honest.updates
    allowed = float(_squared_distances(honest.updates).max())
    along = to_mean @ direction
    slack = np.maximum(0.0, allowed - np.einsum("ij,ij->i", to_mean, to_mean))
    gamma = float(np.min(-along + np.sqrt(along**2 + slack)))
    return honest.repeated(honest.mean + gamma * direction)


def min_sum(honest: Honest, draws: np.random.Generator) -> Rows:
    """``μ − γ s/‖s‖``, whose squared distances to the honest updates sum to no more than theirs.

    The largest ``γ`` for which the sum is at most the largest such sum of an honest update
    (Shejwalkar and Houmansadr, NDSS 2021), in closed form: around ``μ`` the sum is
    ``Σ‖μ−x_i‖² + h γ²``.
    """
    direction, to_mean = -unit(honest.deviation), honest.mean - honest.updates
    allowed = float(_squared_distances(honest.updates).sum(axis=1).max())
    gamma = np.sqrt(max(0.0, allowed - float(np.sum(to_mean**2))) / honest.h)
    return honest.repeated(honest.mean + gamma * direction)


def _squared_distances(rows: Rows) -> Rows:
    # Around the mean, where the subtraction below loses least.
    centred = rows - rows.mean(axis=0)
    squares = np.einsum("ij,ij->i", centred, centred)
    crossed = squares[:, None] + squares[None, :] - 2.0 * centred @ centred.T
    return np.asarray(np.maximum(0.0, crossed))


def mimic(honest: Honest, draws: np.random.Generator, *, victim: int | None = None) -> Rows:
    """Copies of one honest update (Karimireddy et al., ICLR 2022).

    Unless told, of the one that stands out most along the direction in which the honest differ
    most; where there is privacy noise, before it.

    Raises:
        AttackError: there is no such honest hospital.
    """
    if victim is None:
        victim = _standing_out(honest.before_noise().updates)
    if not 0 <= victim < honest.h:
        raise AttackError(f"victim is {victim}; choose one of the {honest.h} honest, from 0")
    return honest.repeated(honest.updates[victim])


def _standing_out(rows: Rows) -> int:
    centred = rows - rows.mean(axis=0)
    # The (h, h) products have the same leading direction as the (d, d) covariance.
    _, vectors = np.linalg.eigh(centred @ centred.T)
    return int(np.abs(vectors[:, -1]).argmax())


def scaled(honest: Honest, draws: np.random.Generator, *, factor: float) -> Rows:
    """``factor · x_i`` of each attacker's own update."""
    return factor * honest.own


def replacement(honest: Honest, draws: np.random.Generator, *, server_rate: float = 1.0) -> Rows:
    """Model replacement, ``(n/η)(θ_bad − θ)`` (Bagdasaryan et al., AISTATS 2020).

    In a plain mean of ``n`` updates one attacker's model takes the global model's place.
    """
    return scaled(honest, draws, factor=honest.n / server_rate)
