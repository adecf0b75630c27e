"""Updates that no honest training gives: to be refused before they meet another update.

Nothing here depends on the honest updates but for their number of coordinates.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from matl.attacks.attack import Honest, Rows

SUBNORMAL: Final = float(np.finfo(np.float32).smallest_subnormal)
LARGEST: Final = float(np.finfo(np.float32).max)


def filled(honest: Honest, draws: np.random.Generator, *, value: float) -> Rows:
    """One value everywhere: NaN, ±∞, ±0, the smallest or the largest number of float32."""
    return np.full((honest.f, honest.d), value)


def one_nan(honest: Honest, draws: np.random.Generator) -> Rows:
    """An honest update with one NaN at a place drawn anew for each attacker."""
    rows = honest.own.copy()
    rows[np.arange(honest.f), draws.integers(honest.d, size=honest.f)] = np.nan
    return rows


def cancelling_infinities(honest: Honest, draws: np.random.Generator) -> Rows:
    """+∞ and −∞ by turns, whose sum is NaN only where somebody adds them up."""
    signs = np.where((np.arange(honest.d) + np.arange(honest.f)[:, None]) % 2, -1.0, 1.0)
    return signs * np.inf


def resized(honest: Honest, draws: np.random.Generator, *, extra: int) -> Rows:
    """An honest update with ``extra`` zeros behind it, or without its last ``-extra`` values.

    At least one value stays.
    """
    if extra >= 0:
        return np.pad(honest.own, ((0, 0), (0, extra)))
    return honest.own[:, : max(1, honest.d + extra)].copy()


def halved(honest: Honest, draws: np.random.Generator) -> Rows:
    """The first half of an honest update, as a broken transfer leaves it."""
    return honest.own[:, : max(1, honest.d // 2)].copy()
