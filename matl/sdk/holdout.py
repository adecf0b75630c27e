"""A network of the caller's on a holdout set of the caller's: what MODE1 compares updates with.

As ``matl_coordinator.scoring`` does for the daemon, in this process and for any network. Nothing
here decides what a score means.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from matl.sdk.network import load_trainable, stacked
from matl_common.errors import ConfigurationError, IntegrityError, MatlError
from matl_common.ids import Digest, NodeId, digest_of
from matl_common.tensors import Float32Vector, read_model, read_trainable, read_update
from matl_common.vision.metrics import evaluate
from matl_coordinator.core.robust.root import BEYOND_ROW, RootRow
from matl_coordinator.core.rounds import Evaluation
from matl_coordinator.ports import (
    BeyondRow,
    HoldoutFacts,
    HoldoutReport,
    InitialModel,
    RootGradient,
)
from matl_coordinator.scoring.beyond import beyond_gradients
from matl_coordinator.scoring.clipped import clipped_descent
from matl_coordinator.scoring.path import common_step, descent_along
from matl_coordinator.scoring.reach import try_change, try_step
from matl_coordinator.scoring.split import Indices, split_holdout
from matl_coordinator.service.founding import MINIMUM_PER_CLASS
from matl_coordinator.store.models import FileModelStore

FOLDS = 4
MAX_LOSS = 1e6
"""What an infinite or undefined loss counts as."""
_BATCH = 64


class TensorScorer:
    """A ``ports.Scorer`` over tensors in memory.

    Owns a copy of the network, which only one call at a time may use.
    """

    def __init__(
        self,
        models: FileModelStore,
        network: nn.Module,
        *,
        images: Tensor,
        labels: NDArray[np.int64],
        classes: int,
        steps: int,
        learning_rate: float,
        max_grad_norm: float,
    ) -> None:
        """Take a holdout set.

        Args:
            models: of the study.
            network: whose parameters a study's models replace; it becomes this object's own.
            images: shape ``(n, …)``, as the network takes them.
            labels: shape ``(n,)``.
            classes: how many the network tells apart.
            steps: gradient steps in a round, as hospitals train.
            learning_rate: of each.
            max_grad_norm: to which hospitals clip every image's gradient; infinite for none.

        Raises:
            ConfigurationError: a class that occurs has too few images.
        """
        self._models = models
        self._network = network.eval()
        self._images = images
        self._labels = labels
        self._classes = classes
        self._steps = steps
        self._learning_rate = learning_rate
        self._max_grad_norm = max_grad_norm
        self._split = split_holdout(labels, folds=FOLDS)
        self._lock = asyncio.Lock()
        per_class = np.bincount(labels, minlength=classes)
        if lacking := np.flatnonzero((per_class > 0) & (per_class < MINIMUM_PER_CLASS)).tolist():
            raise ConfigurationError(
                f"holdout= has fewer than {MINIMUM_PER_CLASS} images of classes {lacking}; without "
                "them no update can be scored for those classes"
            )

    async def initial_model(self, folder: Path) -> InitialModel:
        """Never asked: an embedded study begins with the caller's network."""
        self._refuse()

    async def prepare(self) -> HoldoutFacts:
        """As ``ports.Scorer``."""
        per_class = tuple(np.bincount(self._labels, minlength=self._classes).tolist())
        return HoldoutFacts(images=len(self._labels), skipped=0, per_class=per_class)

    async def root(self, base_model: Digest, *, folder: Path) -> tuple[RootGradient, ...]:
        """As ``ports.Scorer``."""
        async with self._lock:
            base = self._parameters(base_model)
            return await asyncio.to_thread(self._rows, "root", base, folder, step=None)

    async def report(
        self,
        base_model: Digest,
        updates: Mapping[NodeId, Path],
        *,
        weights: Mapping[NodeId, float],
        folder: Path,
    ) -> HoldoutReport:
        """As ``ports.Scorer``."""
        async with self._lock:
            return await asyncio.to_thread(self._report, base_model, updates, weights, folder)

    async def reach(self, base_model: Digest, candidate: Path) -> float:
        """As ``ports.UpdateScorer``."""
        async with self._lock:
            return await asyncio.to_thread(self._reach, base_model, candidate)

    async def evaluate(self, model: Digest) -> Evaluation:
        """As ``ports.Scorer``."""
        async with self._lock:
            return await asyncio.to_thread(self._evaluate, model)

    async def close(self) -> None:
        """Nothing to end."""

    def _report(
        self,
        base_model: Digest,
        updates: Mapping[NodeId, Path],
        weights: Mapping[NodeId, float],
        folder: Path,
    ) -> HoldoutReport:
        base = self._parameters(base_model)
        schema, _ = read_model(self._models.path(base_model))
        load_trainable(self._network, base)
        before = self._losses(self._split.validation)
        improvement = {
            node: float((before - self._losses_after(base, read_update(path, schema))).mean())
            for node, path in updates.items()
        }
        counted = {node: weights[node] for node in updates}
        step = common_step(lambda node: read_update(updates[node], schema), counted)
        losses = partial(self._losses_after, base)
        reach, step = try_step(step, before=before, losses=losses)
        descend = self._clipped_descent if math.isfinite(self._max_grad_norm) else self._descent
        beyond = beyond_gradients(
            {part: partial(descend, base, rows) for part, rows in self._split.folds.items()},
            step,
            steps=self._steps,
            learning_rate=self._learning_rate,
            before=before,
            losses=losses,
        )
        return HoldoutReport(
            self._rows("path", base, folder, step=step),
            None if beyond is None else BeyondRow(*_written(beyond, folder / f"{BEYOND_ROW}.f32")),
            improvement,
            reach,
        )

    def _reach(self, base_model: Digest, candidate: Path) -> float:
        base = self._parameters(base_model)
        load_trainable(self._network, base)
        before = self._losses(self._split.validation)
        change = read_trainable(candidate) - base
        return try_change(change, before=before, losses=partial(self._losses_after, base))

    def _losses_after(self, base: Float32Vector, update: Float32Vector) -> NDArray[np.float64]:
        # A hostile update may overflow; its loss then counts as the worst there is.
        with np.errstate(over="ignore", invalid="ignore"):
            load_trainable(self._network, base + update)
        return self._losses(self._split.validation)

    def _evaluate(self, model: Digest) -> Evaluation:
        load_trainable(self._network, self._parameters(model))
        parts = [logits.argmax(1).numpy() for _, logits in self._logits(_all(self._labels))]
        found = evaluate(self._labels, np.concatenate(parts), classes=self._classes)
        recall = tuple(None if np.isnan(each) else each for each in found.recall)
        return Evaluation(
            found.accuracy,
            found.balanced_accuracy,
            found.quadratic_weighted_kappa,
            recall,
            found.images,
        )

    def _parameters(self, model: Digest) -> Float32Vector:
        return read_trainable(self._models.path(model))

    def _rows(
        self, kind: str, base: Float32Vector, folder: Path, *, step: Float32Vector | None
    ) -> tuple[RootGradient, ...]:
        """Minus the gradient over every fold along a step from ``base``, as rows on disk."""
        found = []
        for (label, fold), members in self._split.folds.items():
            row = descent_along(partial(self._descent, base, members), step)
            if not np.isfinite(row).all():
                raise IntegrityError("the model's gradient on the holdout set is not finite")
            root = RootRow(f"{kind}-{label}-{fold}", label, fold, len(members))
            found.append(RootGradient(root, *_written(row, folder / f"{root.name}.f32")))
        return tuple(found)

    def _descent(
        self, base: Float32Vector, members: Indices, update: Float32Vector | None
    ) -> Float32Vector:
        """Minus the gradient of the mean loss over ``members``."""
        load_trainable(self._network, base if update is None else base + update)
        self._network.zero_grad(set_to_none=True)
        for part in _batches(members):
            labels = torch.from_numpy(self._labels[part])
            loss = functional.cross_entropy(self._network(self._images[part]), labels)
            # Batches may differ in size; the mean is over rows, not batches.
            torch.autograd.backward(loss * (len(part) / len(members)))
        return np.concatenate(
            [
                np.zeros(each.numel(), dtype=np.float32)
                if each.grad is None
                else -each.grad.detach().numpy().ravel()
                for each in self._network.parameters()
                if each.requires_grad
            ]
        )

    def _clipped_descent(
        self, base: Float32Vector, members: Indices, update: Float32Vector | None
    ) -> Float32Vector:
        """The same, with every image's gradient clipped first."""
        load_trainable(self._network, base if update is None else base + update)
        losses = (
            functional.cross_entropy(
                self._network(self._images[row : row + 1]),
                torch.from_numpy(self._labels[row : row + 1]),
            )
            for row in members
        )
        trained = [each for each in self._network.parameters() if each.requires_grad]
        return clipped_descent(losses, trained, max_grad_norm=self._max_grad_norm)

    def _losses(self, rows: Indices) -> NDArray[np.float64]:
        losses = [
            functional.cross_entropy(logits.double(), labels, reduction="none").numpy()
            for part, logits in self._logits(rows)
            for labels in [torch.from_numpy(self._labels[part])]
        ]
        bounded = np.nan_to_num(np.concatenate(losses), nan=MAX_LOSS, posinf=MAX_LOSS)
        capped: NDArray[np.float64] = np.minimum(bounded, MAX_LOSS)
        return capped

    def _logits(self, rows: Indices) -> Iterator[tuple[Indices, Tensor]]:
        with torch.inference_mode():
            for part in _batches(rows):
                yield part, self._network(self._images[part])

    @staticmethod
    def _refuse() -> NoReturn:
        raise MatlError("the caller's network is the first model")


def tensor_scorer(
    network: Callable[[], nn.Module],
    holdout: Any,
    *,
    classes: int,
    steps: int,
    learning_rate: float,
    max_grad_norm: float,
) -> Callable[[FileModelStore], TensorScorer]:
    """Read a holdout set into memory once; returns what makes a scorer of a study's models.

    Args:
        network: makes a network of the study's shape.
        holdout: a data set of ``(image, label)``, every patient of it de-identified.
        classes: how many the network tells apart.
        steps: gradient steps in a round, as hospitals train.
        learning_rate: of each.
        max_grad_norm: to which hospitals clip every image's gradient; infinite for none.

    Raises:
        ConfigurationError: it is empty, or its items are something else.
    """
    images, labels = stacked(holdout, name="holdout")
    return lambda models: TensorScorer(
        models,
        network(),
        images=images,
        labels=labels.numpy(),
        classes=classes,
        steps=steps,
        learning_rate=learning_rate,
        max_grad_norm=max_grad_norm,
    )


def _written(row: Float32Vector, path: Path) -> tuple[Path, Digest]:
    data = row.astype("<f4", copy=False).tobytes()
    path.write_bytes(data)
    return path, digest_of(data)


def _all(labels: NDArray[np.int64]) -> Indices:
    return np.arange(len(labels))


def _batches(rows: Indices) -> Iterator[Indices]:
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH]
