"""A caller's own network on a caller's own holdout set."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from matl.sdk.holdout import TensorScorer
from matl_common.ids import Digest, NodeId
from matl_common.tensors import TensorSpec, parse_schema, store_model
from matl_coordinator.ports import RootGradient
from matl_coordinator.scoring.split import split_holdout
from matl_coordinator.store.models import FileModelStore

SCHEMA = parse_schema((TensorSpec("weight", (3, 4)), TensorSpec("bias", (3,))))
ELEMENTS = SCHEMA.update_elements
PER_CLASS = 40


def stored(models: FileModelStore, values: np.ndarray) -> Digest:
    parts = np.split(values.astype("<f4"), [12])
    digest = store_model(models.incoming, SCHEMA, [part.tobytes() for part in parts])
    return models.adopt(models.incoming / f"{digest}.safetensors")


def values_of(rows: tuple[RootGradient, ...]) -> np.ndarray:
    return np.stack([np.fromfile(each.path, dtype="<f4") for each in rows])


@pytest.mark.parametrize(("length", "reach"), [(0.1, 1.0), (64.0, None)])
async def test_updates_are_scored_along_the_step_they_take_together(
    tmp_path: Path, length: float, reach: float | None
) -> None:
    random = np.random.default_rng(5)
    models = FileModelStore.open(tmp_path / "models")
    base = random.standard_normal(ELEMENTS).astype("<f4")
    # Of one length, so that nobody is cut down to the median.
    drawn = random.standard_normal((2, ELEMENTS))
    first, second = (length * each / np.linalg.norm(each) for each in drawn)
    paths = {NodeId("a"): tmp_path / "a.f32", NodeId("b"): tmp_path / "b.f32"}
    for path, update in zip(paths.values(), (first, second), strict=True):
        update.astype("<f4").tofile(path)
    step = 0.25 * first + 0.75 * second
    scorer = TensorScorer(
        models,
        nn.Linear(4, 3),
        images=torch.from_numpy(random.standard_normal((3 * PER_CLASS, 4)).astype("<f4")),
        labels=np.arange(3 * PER_CLASS, dtype=np.int64) % 3,
        classes=3,
        steps=3,
        learning_rate=0.5,
        max_grad_norm=math.inf,
    )
    digest = stored(models, base)
    for folder in ("rows", "path"):
        (tmp_path / folder).mkdir()
    rows = tmp_path / "rows"
    start = values_of(await scorer.root(digest, folder=rows))
    weights = {NodeId("a"): 1.0, NodeId("b"): 3.0}
    report = await scorer.report(digest, paths, weights=weights, folder=tmp_path / "path")
    assert report.reach == reach or (reach is None and report.reach < 1.0)
    ahead = stored(models, base + min(1.0, 2.0 * report.reach) * step)
    end = values_of(await scorer.root(ahead, folder=rows))
    assert np.abs(end - start).max() > 1e-3
    np.testing.assert_allclose(values_of(report.path), (start + end) / 2, rtol=1e-3, atol=1e-5)
    whole = stored(models, base + step)
    # Whatever it was asked about before.
    await scorer.evaluate(whole)
    assert await scorer.reach(digest, models.path(whole)) == report.reach


def trained_alike(base: np.ndarray, images: np.ndarray, labels: np.ndarray, **by: Any) -> Any:
    """Full batches of the reference images, all classes alike; with every gradient on the way."""
    folds, moved, gradients = split_holdout(labels, folds=4).folds, np.zeros(ELEMENTS), []
    for _ in range(by["steps"]):
        weight, bias = (base + moved)[:12].reshape(3, 4), (base + moved)[12:]
        errors = np.exp(images @ weight.T + bias)
        errors = errors / errors.sum(axis=1, keepdims=True) - np.eye(3)[labels]
        each = np.hstack([(errors[:, :, None] * images[:, None]).reshape(-1, 12), errors])
        norms = np.linalg.norm(each, axis=1, keepdims=True)
        each = each * np.minimum(1.0, by["max_grad_norm"] / norms)
        classes = [
            np.mean([each[rows].mean(axis=0) for (c, _), rows in folds.items() if c == label], 0)
            for label in range(3)
        ]
        gradients.append(classes)
        moved = moved - by["learning_rate"] * np.mean(classes, axis=0)
    return moved, gradients


@pytest.mark.parametrize("max_grad_norm", [math.inf, 0.3])
async def test_updates_are_compared_with_training_as_the_hospitals_do_it(
    tmp_path: Path, max_grad_norm: float
) -> None:
    random = np.random.default_rng(5)
    models = FileModelStore.open(tmp_path / "models")
    base = random.standard_normal(ELEMENTS).astype("<f4")
    images = random.standard_normal((3 * PER_CLASS, 4)).astype("<f4")
    labels = np.arange(3 * PER_CLASS, dtype=np.int64) % 3
    by: dict[str, Any] = {"steps": 12, "learning_rate": 1.5, "max_grad_norm": max_grad_norm}
    scorer = TensorScorer(
        models, nn.Linear(4, 3), images=torch.from_numpy(images), labels=labels, classes=3, **by
    )
    step = (0.1 * random.standard_normal(ELEMENTS)).astype("<f4")
    step.tofile(tmp_path / "a.f32")
    node = NodeId("a")
    report = await scorer.report(
        stored(models, base), {node: tmp_path / "a.f32"}, weights={node: 1.0}, folder=tmp_path
    )
    assert report.beyond is not None
    rest = np.fromfile(report.beyond.path, dtype="<f4").astype(np.float64)
    moved, (start, *_) = trained_alike(base, images, labels, **by)
    _, (end,) = trained_alike(base + step, images, labels, **{**by, "steps": 1})
    basis, _ = np.linalg.qr(np.stack([*start, *end]).T)
    expected = moved - basis @ (basis.T @ moved)
    assert np.linalg.norm(expected) > 0.005 * np.linalg.norm(moved)
    assert np.linalg.norm(rest - expected) < 0.02 * np.linalg.norm(expected)
