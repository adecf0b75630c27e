"""Attackers that are honest for a while, or almost honest all the time.

Functions of the round's number alone: nothing here remembers.
"""

from __future__ import annotations

import numpy as np

from matl.attacks.attack import Attack, Honest, Rows, Vector, as_trained, unit

DRIFT_SEED = 20_190_526
"""Of the direction of ``slow_drift``, which must be the same in every round."""


def sleeper(
    honest: Honest, draws: np.random.Generator, *, wakes: int = 10, factor: float = 3.0
) -> Rows:
    """Honest before round ``wakes``, then ``−factor · x_i``."""
    return honest.own.copy() if honest.round < wakes else -factor * honest.own


def on_off(honest: Honest, draws: np.random.Generator, *, attack: Attack, period: int = 5) -> Rows:
    """Honest for ``period`` rounds, attacking for ``period`` rounds, and so on."""
    is_on = (honest.round - 1) // period % 2 == 1
    return (attack if is_on else as_trained)(honest, draws)


def slow_drift(
    honest: Honest,
    draws: np.random.Generator,
    *,
    rate: float = 0.02,
    direction: Vector | None = None,
) -> Rows:
    """``x_i + rate · t · ‖x_i‖ v`` in round ``t``, with one unit vector ``v`` for good.

    Args:
        honest: of round ``t``.
        draws: not used, so that ``v`` stays.
        rate: how much it moves in a round, as a part of the update's length.
        direction: of ``v``; a fixed pseudo-random one unless given.
    """
    if direction is None:
        direction = np.random.default_rng(DRIFT_SEED).standard_normal(honest.d)
    return _drifted(honest, rate=rate, direction=direction)


def slow_reversal(honest: Honest, draws: np.random.Generator, *, rate: float = 0.02) -> Rows:
    """As ``slow_drift`` with ``v`` against the honest mean: after ``1/rate`` rounds no progress."""
    return _drifted(honest, rate=rate, direction=-honest.mean)


def _drifted(honest: Honest, *, rate: float, direction: Vector) -> Rows:
    lengths = np.linalg.norm(honest.own, axis=1, keepdims=True)
    return np.asarray(honest.own + rate * honest.round * lengths * unit(direction))
