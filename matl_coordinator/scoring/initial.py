"""The model a study begins with: public knowledge only.

``head``: a projection fitted to public images, and a head of zeros or one that has learnt from
their labels. ``full``: a network
with its public weights, or a fixed random start. The same request gives the same file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from matl_common.ids import Digest
from matl_common.tensors import MODEL_SUFFIX, ModelSchema, store_model
from matl_common.vision.dataset import CLASSES
from matl_common.vision.heads import build_network, network_schema, network_tensors
from matl_common.vision.linear_head import (
    Labels,
    LinearHead,
    fit_projection,
    head_schema,
    head_tensors,
    initial_head,
    project,
    public_descent,
)

START_SEED = 0
"""Of a network without public weights; public, so it protects nothing and need not vary."""


def write_initial_head(
    features: NDArray[np.float32],
    labels: Labels,
    *,
    dimensions: int,
    whitening: float,
    steps: int,
    learning_rate: float,
    folder: Path,
) -> Path:
    """Store a head over the principal directions of public ``features``, (n, d).

    It is zero, moved by ``steps`` gradient steps on those images and their ``labels``, (n,).
    """
    projection = fit_projection(features, dimensions=dimensions, whitening=whitening)
    zero = initial_head(projection, classes=CLASSES)
    weight, bias = public_descent(
        project(features, projection),
        labels,
        zero.weight,
        zero.bias,
        steps=steps,
        learning_rate=learning_rate,
    )
    schema = head_schema(feature_dim=features.shape[1], dimensions=dimensions, classes=CLASSES)
    return _store(schema, head_tensors(LinearHead(projection, weight, bias)), folder)


def write_initial_network(name: str, *, folder: Path) -> Path:
    """Store a network of ``matl_common.vision.heads`` with a fixed random start."""
    torch.manual_seed(START_SEED)
    network = build_network(name)
    return _store(network_schema(network), network_tensors(network), folder)


def _store(schema: ModelSchema, tensors: Mapping[str, NDArray[np.float32]], folder: Path) -> Path:
    blocks = (
        np.ascontiguousarray(tensors[spec.name], dtype="<f4").tobytes() for spec in schema.tensors
    )
    digest: Digest = store_model(folder, schema, blocks)
    return folder / f"{digest}{MODEL_SUFFIX}"
