"""A model on the holdout set: losses, predictions and gradients, one recipe each.

A judge holds the holdout set and the base model; updates come and go. Nothing here
writes a file or knows what a loss will be used for.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from matl_common.tensors import Float32Vector, ModelSchema, update_views
from matl_common.vision.dataset import plain_view
from matl_common.vision.linear_head import (
    BIAS_INPUT,
    LinearHead,
    head_logits,
    project,
    residuals,
)
from matl_coordinator.scoring.clipped import clipped_descent
from matl_coordinator.scoring.split import Indices

Float64Array = NDArray[np.float64]
LabelArray = NDArray[np.int64]


class Judge(Protocol):
    """Judges one base model, with or without an update added."""

    labels: LabelArray

    def losses(self, rows: Indices, *, update: Float32Vector | None = None) -> Float64Array:
        """Cross-entropy of each of these holdout rows, in order; may be infinite."""
        ...

    def predictions(self) -> LabelArray:
        """The base model's likeliest class of every holdout row."""
        ...

    def descent(self, rows: Indices, *, update: Float32Vector | None = None) -> Float32Vector:
        """Minus the gradient of the mean loss over ``rows``, laid out like an update."""
        ...


class HeadJudge:
    """The ``head`` recipe: everything happens on cached features, in numpy."""

    def __init__(
        self,
        head: LinearHead,
        schema: ModelSchema,
        *,
        features: NDArray[np.float32],
        labels: LabelArray,
    ) -> None:
        self.labels = labels
        self._head = head
        self._schema = schema
        self._inputs = project(features, head.projection)

    def losses(self, rows: Indices, *, update: Float32Vector | None = None) -> Float64Array:
        """As ``Judge.losses``."""
        logits = head_logits(self._inputs[rows], *self._parameters(update))
        return _cross_entropy(logits, self.labels[rows])

    def predictions(self) -> LabelArray:
        """As ``Judge.predictions``."""
        logits = head_logits(self._inputs, self._head.weight, self._head.bias)
        likeliest: LabelArray = logits.argmax(axis=1)
        return likeliest

    def descent(self, rows: Indices, *, update: Float32Vector | None = None) -> Float32Vector:
        """As ``Judge.descent``."""
        inputs = self._inputs[rows]
        errors = residuals(head_logits(inputs, *self._parameters(update)), self.labels[rows])
        weight = errors.T @ inputs
        bias = BIAS_INPUT * errors.sum(axis=0)
        flat = np.concatenate([weight.ravel(), bias]) / -len(rows)
        return flat.astype(np.float32)

    def _parameters(self, update: Float32Vector | None) -> tuple[Float64Array, Float64Array]:
        weight = self._head.weight.astype(np.float64)
        bias = self._head.bias.astype(np.float64)
        if update is None:
            return weight, bias
        change = update_views(update, self._schema)
        return weight + change["head.weight"], bias + change["head.bias"]


class NetworkJudge:
    """The ``full`` recipe: forward and backward passes of a whole network.

    Holds the decoded images (150 KB each at 224 pixels) and two copies of the parameters.
    """

    def __init__(
        self,
        network: nn.Module,
        schema: ModelSchema,
        *,
        squares: Sequence[Image.Image],
        labels: LabelArray,
        device: torch.device,
        physical_batch: int,
    ) -> None:
        self.labels = labels
        self._network = network.to(device).eval()
        self._schema = schema
        self._squares = squares
        self._device = device
        self._batch = physical_batch
        self._base: Mapping[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in network.named_parameters()
        }

    def losses(self, rows: Indices, *, update: Float32Vector | None = None) -> Float64Array:
        """As ``Judge.losses``."""
        self._set_parameters(update)
        return np.concatenate(
            [_cross_entropy(logits, self.labels[part]) for part, logits in self._logits(rows)]
        )

    def predictions(self) -> LabelArray:
        """As ``Judge.predictions``."""
        self._set_parameters(None)
        every = np.arange(len(self.labels))
        return np.concatenate([logits.argmax(axis=1) for _, logits in self._logits(every)])

    def descent(self, rows: Indices, *, update: Float32Vector | None = None) -> Float32Vector:
        """As ``Judge.descent``."""
        self._set_parameters(update)
        self._network.zero_grad(set_to_none=True)
        for part in self._batches(rows):
            labels = torch.from_numpy(self.labels[part]).to(self._device)
            loss = functional.cross_entropy(self._network(self._images(part)), labels)
            # Batches of a fold may differ in size; the mean is over rows, not batches.
            (loss * (len(part) / len(rows))).backward()  # type: ignore[no-untyped-call]
        return np.concatenate([_descent_of(parameter) for parameter in self._network.parameters()])

    def clipped_descent(
        self, rows: Indices, *, update: Float32Vector | None = None, max_grad_norm: float
    ) -> Float32Vector:
        """As ``descent``, with every image's gradient clipped first, as hospitals do."""
        self._set_parameters(update)
        parameters = list(self._network.parameters())
        return clipped_descent(map(self._loss, rows), parameters, max_grad_norm=max_grad_norm)

    def _loss(self, row: np.int64) -> Tensor:
        label = torch.tensor([int(self.labels[row])], device=self._device)
        return functional.cross_entropy(self._network(self._images(np.array([row]))), label)

    def _set_parameters(self, update: Float32Vector | None) -> None:
        change = None if update is None else update_views(update, self._schema)
        with torch.no_grad():
            for name, parameter in self._network.named_parameters():
                parameter.copy_(self._base[name])
                if change is not None:
                    # A copy, because the update is mapped read-only.
                    parameter.add_(torch.from_numpy(np.array(change[name])).to(self._device))

    def _logits(self, rows: Indices) -> Iterator[tuple[Indices, Float64Array]]:
        with torch.inference_mode():
            for part in self._batches(rows):
                yield part, self._network(self._images(part)).double().cpu().numpy()

    def _batches(self, rows: Indices) -> Iterator[Indices]:
        for start in range(0, len(rows), self._batch):
            yield rows[start : start + self._batch]

    def _images(self, rows: Indices) -> Tensor:
        images = torch.stack([plain_view(self._squares[row]) for row in rows])
        return images.to(self._device)


def _descent_of(parameter: nn.Parameter) -> Float32Vector:
    if parameter.grad is None:
        return np.zeros(parameter.numel(), dtype=np.float32)
    flat: Float32Vector = -parameter.grad.detach().cpu().numpy().ravel()
    return flat


def _cross_entropy(logits: Float64Array, labels: LabelArray) -> Float64Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    own = shifted[np.arange(len(labels)), labels]
    losses: Float64Array = np.log(np.exp(shifted).sum(axis=1)) - own
    return losses
