"""Attacks made for a coordinator that judges by direction have what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from matl.attacks import AttackError
from matl.attacks.adaptive import held_cosine, leaked_root
from tests.attacks.knowledge import D, cosine, crafted, known


@pytest.mark.parametrize("held", [0.1, 0.3, 0.5, -0.2, 1.0])
def test_the_cosine_is_held_and_the_length_is_honest(held: float) -> None:
    honest = known()
    row = held_cosine(honest, np.random.default_rng(0), cosine=held)[0]
    assert cosine(row, honest.mean) == pytest.approx(held)
    assert np.linalg.norm(row) == pytest.approx(np.median(np.linalg.norm(honest.updates, axis=1)))
    rest = row - (row @ honest.mean) * honest.mean / (honest.mean @ honest.mean)
    assert rest @ honest.updates.std(axis=0) <= 1e-9


def test_inside_the_classes_an_update_is_the_honest_one_and_outside_it_goes_against_the_mean() -> (
    None
):
    honest = known()
    assert honest.class_gradients is not None
    rows = crafted("within_classes", honest)
    np.testing.assert_allclose(
        rows @ honest.class_gradients.T, honest.own @ honest.class_gradients.T
    )
    basis, _ = np.linalg.qr(honest.class_gradients.T)
    aside = honest.mean - basis @ (basis.T @ honest.mean)
    assert (rows @ aside < 0.0).all()
    length = np.median(np.linalg.norm(honest.updates, axis=1))
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.full(len(rows), length))


def test_an_update_is_also_the_honest_one_in_what_the_coordinator_trains_itself() -> None:
    honest = known()
    assert honest.class_gradients is not None
    assert honest.class_training is not None
    seen = np.vstack([honest.class_gradients, honest.class_training])
    rows = crafted("within_training", honest)
    np.testing.assert_allclose(rows @ seen.T, honest.own @ seen.T)
    blind = crafted("within_classes", honest) @ honest.class_training
    assert np.abs(blind - honest.own @ honest.class_training).min() > 0.1
    basis, _ = np.linalg.qr(seen.T)
    assert (rows @ (honest.mean - basis @ (basis.T @ honest.mean)) < 0.0).all()


def test_a_cosine_beyond_one_is_refused() -> None:
    with pytest.raises(AttackError):
        held_cosine(known(), np.random.default_rng(0), cosine=1.01)


def test_no_other_update_that_passes_the_leaked_projection_does_more_harm() -> None:
    honest, draws = known(), np.random.default_rng(5)
    assert honest.root is not None
    reference = honest.root / np.linalg.norm(honest.root)
    floor = float(np.median(honest.updates @ reference))
    length = float(np.median(np.linalg.norm(honest.updates, axis=1)))
    row = crafted("leaked_root", honest)[0]
    assert row @ reference == pytest.approx(floor)
    assert np.linalg.norm(row) == pytest.approx(length)
    harm = row @ honest.mean
    # Others near it and far from it, of the same length, that pass as well.
    others = np.concatenate(
        [row + scale * draws.standard_normal((2000, D)) for scale in (1e-3, 0.03, 1.0)]
    )
    others *= length / np.linalg.norm(others, axis=1, keepdims=True)
    passing = others[others @ reference >= floor]
    assert len(passing) > 500
    assert (passing @ honest.mean > harm).all()


def test_a_leaked_root_lets_an_attacker_pass_by_as_much_as_it_likes() -> None:
    honest = known()
    assert honest.root is not None
    reference = honest.root / np.linalg.norm(honest.root)
    floor = float(np.median(honest.updates @ reference))
    row = leaked_root(honest, np.random.default_rng(0), passes=0.5)[0]
    assert row @ reference == pytest.approx(0.5 * floor)
    # More than an update can have is cut to a whole one.
    length = float(np.median(np.linalg.norm(honest.updates, axis=1)))
    far = leaked_root(honest, np.random.default_rng(0), passes=1e6)[0]
    assert far @ reference == pytest.approx(length)
