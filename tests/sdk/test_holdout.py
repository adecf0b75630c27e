"""A caller's own network on a caller's own holdout set."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from matl.sdk.holdout import TensorScorer
from matl_common.ids import Digest, NodeId
from matl_common.tensors import TensorSpec, parse_schema, store_model
from matl_coordinator.ports import RootGradient
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
