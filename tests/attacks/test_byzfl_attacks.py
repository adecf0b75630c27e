"""Parity with the attacks of ByzFL 0.0.11, which shares no code with ours.

Differences, all of sign or of whose update is meant:

- ALIE goes below the mean here, as in its paper, and above it in ByzFL, which leaves the
  factor to the caller (1.5 unless given) where ours follows from ``n`` and ``f``.
- SignFlipping is of the mean there; here it is of each attacker's own update, which is the
  mean for attackers without data of their own.
- ByzFL's Gaussian has a given deviation for each coordinate; ours a given length. Both draw
  another generator's numbers, so only their distribution could be compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from matl.attacks import ATTACKS, Honest, Rows, Vector
from matl.attacks.published import alie, alie_z, ipm, mimic, optimal_alie, optimal_ipm

with warnings.catch_warnings():
    # Of its plotting library.
    warnings.simplefilter("ignore")
    byzfl: Any = pytest.importorskip("byzfl", reason="of the development extra")

pytestmark = pytest.mark.peers
TOLERANCE = 1e-6
SETTINGS = [(11, 9), (4, 1), (3, 2), (16, 4)]
D = 257


def draws() -> np.random.Generator:
    return np.random.default_rng(0)


def rows_of(h: int, *, scale: float = 1.0) -> Rows:
    generator = np.random.default_rng(h)
    return scale * (generator.normal(0.3, 1.0, D) + generator.standard_normal((h, D)))


def expect_all(rows: Rows, theirs: Vector, *, f: int) -> None:
    assert rows.shape == (f, D)
    scale = float(np.abs(theirs).max())
    np.testing.assert_allclose(rows, np.tile(theirs, (f, 1)), rtol=0, atol=TOLERANCE * scale)


@pytest.mark.parametrize("scale", [1.0, 1e-6])
@pytest.mark.parametrize(("h", "f"), SETTINGS)
def test_sign_flip_ipm_mimic_and_infinity_are_theirs(h: int, f: int, scale: float) -> None:
    updates = rows_of(h, scale=scale)
    honest = Honest.without_data(updates, f=f)
    flipped = ATTACKS["sign_flip_1"].craft(honest, draws())
    expect_all(flipped, byzfl.SignFlipping()(updates), f=f)
    for tau in (0.1, 2.0):
        theirs = byzfl.InnerProductManipulation(tau)(updates)
        expect_all(ipm(honest, draws(), tau=tau), theirs, f=f)
        expect_all(ATTACKS[f"ipm_{tau:g}"].craft(honest, draws()), theirs, f=f)
    for victim in (0, h - 1):
        expect_all(mimic(honest, draws(), victim=victim), byzfl.Mimic(victim)(updates), f=f)
    assert np.array_equal(ATTACKS["plus_infinity"].craft(honest, draws())[0], byzfl.Inf()(updates))


@pytest.mark.parametrize(("h", "f"), SETTINGS)
def test_alie_is_theirs_with_the_papers_factor_and_sign(h: int, f: int) -> None:
    updates = rows_of(h)
    honest = Honest.without_data(updates, f=f)
    theirs = byzfl.ALittleIsEnough(tau=-alie_z(h + f, f))(updates)
    expect_all(alie(honest, draws()), theirs, f=f)
    expect_all(alie(honest, draws(), z=1.5), byzfl.ALittleIsEnough(tau=-1.5)(updates), f=f)


def rules(f: int) -> dict[str, tuple[list[Any], Any]]:
    """Pre-aggregations and aggregators of theirs that need no random vector."""
    return {
        "mean": ([], byzfl.Average()),
        "trimmed mean": ([], byzfl.TrMean(f=f)),
        "clipping, median": ([byzfl.Clipping(c=2.0)], byzfl.Median()),
        "nnm, trimmed mean": ([byzfl.NNM(f=f)], byzfl.TrMean(f=f)),
        "arc, multi-krum": ([byzfl.ARC(f=f)], byzfl.MultiKrum(f=f)),
        "geometric median": ([], byzfl.GeometricMedian()),
    }


def composed(stages: list[Any], aggregator: Any, rows: Rows) -> Vector:
    for stage in stages:
        rows = stage(rows)
    return np.asarray(aggregator(rows))


@pytest.mark.parametrize("rule", rules(1))
@pytest.mark.parametrize(("h", "f"), [(11, 9), (4, 1), (16, 4)])
def test_optimal_attacks_find_the_factor_that_theirs_find(h: int, f: int, rule: str) -> None:
    stages, aggregator = rules(f)[rule]
    aggregate = partial(composed, stages, aggregator)
    updates = rows_of(h)
    honest = Honest(updates, np.zeros((f, D)), aggregate=aggregate)
    theirs = byzfl.Optimal_InnerProductManipulation(aggregator, pre_agg_list=stages, f=f)(updates)
    expect_all(optimal_ipm(honest, draws()), theirs, f=f)

    # Theirs goes up from the mean and ours down: mirrored updates make them the same.
    mirrored: Callable[[Rows], Vector] = lambda rows: -aggregate(-rows)  # noqa: E731
    honest = Honest(-updates, np.zeros((f, D)), aggregate=mirrored)
    theirs = byzfl.Optimal_ALittleIsEnough(aggregator, pre_agg_list=stages, f=f)(updates)
    expect_all(-optimal_alie(honest, draws()), theirs, f=f)
