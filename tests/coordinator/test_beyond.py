"""What training does beyond the gradients, and what a hospital's weight makes of it."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from matl_common.ids import NodeId
from matl_common.protocol import RoundStart
from matl_common.tensors import Float32Vector
from matl_coordinator.scoring import path
from matl_coordinator.scoring.beyond import MOST_STEPS, beyond_gradients, train_alike
from matl_coordinator.scoring.clipped import clipped_descent
from matl_coordinator.scoring.path import Descent
from matl_participant.training.clipping.clipper import Clipper
from tests.coordinator.harness import (
    ELEMENTS,
    NODES,
    events_of,
    honest_update,
    make_site,
    play,
    running,
)

D = 12
_DRAWS = np.random.default_rng(4)
TARGETS = _DRAWS.standard_normal((2, D))
CURVATURE = _DRAWS.uniform(0.2, 2.0, (2, D))
STEP = (0.1 * _DRAWS.standard_normal(D)).astype(np.float32)
BEFORE = np.full(10, 2.0)


def downhill(label: int, change: Float32Vector | None, *, off: float = 0.0) -> Float32Vector:
    at = np.zeros(D) if change is None else change
    slope: Float32Vector = (CURVATURE[label] * (TARGETS[label] + off - at)).astype(np.float32)
    return slope


def folds(*sizes: int) -> dict[tuple[int, int], Descent]:
    """Of each class that many, which differ from one another and not in their mean."""
    return {
        (label, fold): partial(downhill, label, off=float(off))
        for label, size in enumerate(sizes)
        for fold, off in enumerate(np.linspace(-0.3, 0.3, size) if size > 1 else [0.0])
    }


def found(
    descents: Mapping[tuple[int, int], Descent],
    *,
    step: Float32Vector | None = STEP,
    steps: int = 5,
    rate: float = 0.2,
    after: float = 1.0,
) -> Float32Vector | None:
    return beyond_gradients(
        descents,
        step,
        steps=steps,
        learning_rate=rate,
        before=BEFORE,
        losses=lambda _: np.full(10, after),
    )


def trained(steps: int, rate: float) -> np.ndarray:
    at = np.zeros(D, dtype=np.float32)
    for _ in range(steps):
        at = at + np.float32(rate) * (downhill(0, at) + downhill(1, at)) / np.float32(2.0)
    return at


def test_it_is_what_training_gives_less_what_the_gradients_at_both_ends_explain() -> None:
    rest = found(folds(3, 1))
    assert rest is not None
    span = np.stack([downhill(label, at) for label in (0, 1) for at in (None, STEP)])
    moved = trained(5, 0.2)
    explained = span.T @ np.linalg.lstsq(span.T.astype(np.float64), moved, rcond=None)[0]
    assert np.linalg.norm(moved - explained) > 0.01 * np.linalg.norm(moved)
    np.testing.assert_allclose(rest, moved - explained, atol=1e-5)


def test_it_is_the_same_whatever_is_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = found(folds(3, 1))
    monkeypatch.setattr(path, "_BLOCK", 5)
    assert found(folds(3, 1)) == pytest.approx(whole, abs=1e-6)


def test_a_class_counts_as_much_as_another_however_many_folds_it_has() -> None:
    assert found(folds(4, 1)) == pytest.approx(found(folds(1, 1)), abs=1e-6)


def test_one_step_of_training_goes_nowhere_that_its_gradients_do_not() -> None:
    assert found(folds(2, 2), steps=1) is None
    assert found(folds(2, 2), steps=2) is not None


def test_without_a_step_there_is_nothing_to_compare_with() -> None:
    assert found(folds(2, 2), step=None) is None


@pytest.mark.parametrize("after", [2.0, 2.5, float("inf"), float("nan")])
def test_training_that_the_validation_part_loses_by_is_no_example(after: float) -> None:
    assert found(folds(2, 2), after=after) is None
    assert found(folds(2, 2), after=1.99) is not None


def test_gradients_that_overflow_at_the_end_of_the_step_explain_nothing() -> None:
    def overflows(change: Float32Vector | None) -> Float32Vector:
        far = change is not None and np.array_equal(change, STEP)
        return np.full(D, np.inf, dtype=np.float32) if far else downhill(0, change)

    assert found({(0, 0): overflows, (1, 0): lambda change: downhill(1, change)}) is None


def test_of_many_steps_fewer_are_taken_that_are_together_as_long() -> None:
    asked = 0

    def of_classes(change: Float32Vector | None) -> list[Float32Vector]:
        nonlocal asked
        asked += 1
        return [downhill(0, change), downhill(1, change)]

    long = train_alike(of_classes, steps=10 * MOST_STEPS, learning_rate=0.01)
    assert asked == MOST_STEPS
    np.testing.assert_allclose(long, trained(MOST_STEPS, 0.1), atol=1e-5)


WAY = np.random.default_rng(12).standard_normal(ELEMENTS)


def aside(node_id: NodeId, start: RoundStart) -> np.ndarray:
    """An honest update, with half as much along ``WAY`` or, from one hospital, against it."""
    honest = honest_update(node_id, start)
    sign = -1.0 if node_id == NODES[2] else 1.0
    further = WAY * (sign * 0.5 * np.linalg.norm(honest) / np.linalg.norm(WAY))
    return np.asarray(honest + further)


async def test_a_hospital_that_goes_against_it_loses_weight_and_is_told_why(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path, study={"rounds": 3})
    async with running(site) as coordinator:
        coordinator.scorer.beyond = WAY
        await play(coordinator, make=dict.fromkeys(NODES, aside))
        told = events_of(coordinator.store)
        standing = {each.node_id: each for each in (await coordinator.register.state()).trust}
    scored = [each for each in told if each["event"] == "round_scored"]
    weighted = [each for each in told if each["event"] == "round_weighted"]
    assert len(scored) == len(weighted) == 3
    assert "beyond-gradients" in cast("dict[str, str]", scored[0]["root"])
    against, along = NODES[2], NODES[1]
    trust = cast("dict[str, dict[str, dict[str, float]]]", scored[0]["trust"])
    cosines = {node: each["components"]["beyond"] for node, each in trust.items()}
    assert cosines[against] < -0.3 < 0.3 < cosines[along]
    last = cast("dict[str, float]", weighted[-1]["weights"])
    assert 0.0 < last[against] < 0.2 * last[along]
    # As it is kept for the next start.
    assert standing[against].beyond < 0.0 < standing[along].beyond
    assert "keeps 28% of its weight" in standing[against].reason
    assert "of its weight" not in standing[along].reason


@pytest.mark.parametrize("longest", [0.01, 0.5, 1e6])
def test_a_network_descends_as_hospitals_that_clip_every_images_gradient(longest: float) -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    images, labels = torch.randn(7, 4), torch.arange(7) % 3
    losses = (
        functional.cross_entropy(network(image[None]), label[None])
        for image, label in zip(images, labels, strict=True)
    )
    found = clipped_descent(losses, list(network.parameters()), max_grad_norm=longest)
    clipper = Clipper(network)
    total = torch.zeros(clipper.size)
    assert clipper.add_clipped(total, images, labels, max_grad_norm=longest) == 0
    np.testing.assert_allclose(found, -total.numpy() / 7, atol=1e-6)


def test_a_gradient_that_is_not_finite_adds_nothing_and_counts() -> None:
    parameter = nn.Parameter(torch.tensor([2.0]))
    losses = [parameter.sum() * factor for factor in (1.0, math.inf, 3.0)]
    found = clipped_descent(losses, [parameter], max_grad_norm=2.0)
    assert found.tolist() == pytest.approx([-(1.0 + 2.0) / 3])
