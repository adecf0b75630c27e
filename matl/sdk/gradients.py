"""Gradients as callers hold them, a list of tensors or arrays, and as an update is sent, flat.

An update is what is *added* to parameters, so it is the negative of a gradient. Torch is used
only where the caller brought its tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.tensors import ModelSchema, TensorSpec, parse_schema
from matl_participant.training.noising import noised_sum

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a list of tensors lies in a flat vector."""

    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, gradient: Sequence[Any]) -> Layout:
        """The layout of a gradient.

        Raises:
            ConfigurationError: it is no list of tensors or arrays.
        """
        if not isinstance(gradient, (list, tuple)) or not gradient:
            raise ConfigurationError(
                "gradient= is a list with one tensor or array for each parameter, as in "
                "[p.grad.clone() for p in model.parameters()]"
            )
        if bad := [at for at, each in enumerate(gradient) if not hasattr(each, "shape")]:
            raise ConfigurationError(
                f"gradient[{bad[0]}] is {type(gradient[bad[0]]).__name__}; give a tensor or an "
                "array for every parameter, zeros where there is no gradient"
            )
        return cls(tuple(tuple(int(size) for size in each.shape) for each in gradient))

    @property
    def schema(self) -> ModelSchema:
        """One flat tensor: nobody here knows what the parameters of the caller's network mean."""
        sizes = [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes]
        return parse_schema([TensorSpec("submissions", (sum(sizes),))])

    def flat(self, gradient: Sequence[Any]) -> Float64Array:
        """The gradient as one vector in float64.

        Raises:
            ConfigurationError: it has other shapes than the study's.
            InvalidInputError: a value is not finite.
        """
        found = Layout.of(gradient)
        if found != self:
            raise ConfigurationError(
                f"this gradient has {_described(found)}, the study began with {_described(self)}; "
                "every hospital trains the same network, and another network is another study="
            )
        flat = np.concatenate([_array(each).astype(np.float64).ravel() for each in gradient])
        if not np.isfinite(flat).all():
            raise InvalidInputError(
                "the gradient holds values that are not finite; nothing was charged or sent. "
                "Lower the learning rate, or look for empty batches"
            )
        return flat

    def like(self, flat: NDArray[np.floating], example: Sequence[Any]) -> list[Any]:
        """A flat vector as tensors or arrays, of the kind of ``example``'s."""
        made, start = [], 0
        for shape, each in zip(self.shapes, example, strict=True):
            end = start + int(np.prod(shape, dtype=np.int64))
            made.append(_of_kind(flat[start:end].reshape(shape), each))
            start = end
        return made


def submission(
    gradient: Float64Array, *, noise_multiplier: float, clip_norm: float
) -> Float64Array:
    """The update that a gradient becomes: clipped as a whole to C/2, negated, noised.

    Any two vectors of norm C/2 are at most C apart. So one patient, or all of them, move the result
    by no more than C, however the gradient came about.

    Args:
        gradient: shape ``(d,)``, finite.
        noise_multiplier: noise per coordinate in units of ``clip_norm``; 0 for none.
        clip_norm: C.
    """
    norm = float(np.linalg.norm(gradient))
    clipped = gradient * (-min(1.0, clip_norm / 2.0 / norm) if norm > 0.0 else -1.0)
    return noised_sum(clipped, noise_multiplier=noise_multiplier, max_grad_norm=clip_norm)


def _array(tensor: Any) -> NDArray[Any]:
    """A tensor or array as an array on the host."""
    detach = getattr(tensor, "detach", None)
    if detach is not None:
        tensor = detach().cpu().float().numpy()
    return np.asarray(tensor)


def _of_kind(values: NDArray[np.floating], example: Any) -> Any:
    if not hasattr(example, "detach"):
        return values.astype(np.asarray(example).dtype)
    import torch

    made = torch.from_numpy(np.array(values, dtype=np.float32))
    return made.to(device=example.device, dtype=example.dtype)


def _described(layout: Layout) -> str:
    elements = sum(int(np.prod(shape, dtype=np.int64)) for shape in layout.shapes)
    return f"{len(layout.shapes)} tensors of {elements} values"
