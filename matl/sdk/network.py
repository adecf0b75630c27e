"""A network of the caller's as a study's model, and a data set as tensors. Needs torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import Buffer

from matl_common.errors import ConfigurationError
from matl_common.tensors import ModelSchema, TensorSpec, parse_schema


def schema_of(network: nn.Module) -> ModelSchema:
    """The schema of a network's trainable parameters, in their order.

    What is frozen is the same for everybody and stays out.

    Raises:
        ConfigurationError: nothing is trainable, or not in single precision.
    """
    trainable = [(name, each) for name, each in network.named_parameters() if each.requires_grad]
    if not trainable:
        raise ConfigurationError("model= has no parameter with requires_grad; nothing would train")
    if wrong := [name for name, each in trainable if each.dtype is not torch.float32]:
        raise ConfigurationError(f"parameter {wrong[0]} of model= is not float32; call .float()")
    return parse_schema([TensorSpec(name, tuple(each.shape)) for name, each in trainable])


def blocks_of(network: nn.Module) -> Iterator[Buffer]:
    """The values of the schema's tensors in their order."""
    for each in network.parameters():
        if each.requires_grad:
            yield np.ascontiguousarray(each.detach().cpu().numpy(), dtype="<f4").data


def load_trainable(network: nn.Module, values: NDArray[np.floating]) -> None:
    """Set a network's trainable parameters from one flat vector, shape ``(d,)``."""
    start = 0
    with torch.no_grad():
        for each in network.parameters():
            if each.requires_grad:
                end = start + each.numel()
                part = torch.from_numpy(np.array(values[start:end], dtype=np.float32))
                each.copy_(part.view_as(each))
                start = end


def batches_of(dataset: Any, *, batch: int, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """A data set's items in order, as ``(images, labels)`` of at most ``batch`` rows.

    Raises:
        ConfigurationError: an item is no pair of a tensor and a whole number.
    """
    for start in range(0, len(dataset), batch):
        rows = [dataset[row] for row in range(start, min(start + batch, len(dataset)))]
        try:
            images = torch.stack([torch.as_tensor(image) for image, _ in rows])
            labels = torch.tensor([int(label) for _, label in rows], dtype=torch.int64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigurationError(
                f"{name}[{start}] and the rows after it are not (image, label) with images of one "
                "shape; end transform= with ToTensor(), and let labels be whole numbers"
            ) from error
        yield images, labels


def stacked(dataset: Any, *, name: str) -> tuple[Tensor, Tensor]:
    """A whole data set in memory: images ``(n, …)`` and labels ``(n,)``.

    Raises:
        ConfigurationError: it is empty, or an item is something else.
    """
    if len(dataset) == 0:
        raise ConfigurationError(f"{name} is empty")
    parts = list(batches_of(dataset, batch=256, name=name))
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])
