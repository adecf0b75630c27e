"""Per-sample gradients of a convolution's kernel.

A convolution by 1 × 1, or of few pixels, is a matrix times patches; any other is measured
either through the Gram matrix of its pixels or one sample at a time. Nothing here knows a
network.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from matl_participant.training.clipping.shares import (
    PASSES_COST,
    Instantiated,
    Share,
    gram,
    inner_products,
    share_of_products,
)


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a kernel moves; pairs are (vertical, horizontal)."""

    kernel: torch.Size
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def is_matrix(self) -> bool:
        """One matrix at every pixel."""
        return self.is_strided_matrix and self.stride == (1, 1)

    @property
    def is_strided_matrix(self) -> bool:
        """One matrix at every pixel that the stride does not skip."""
        unpadded = self.padding == (0, 0)
        return self.kernel[2:] == (1, 1) and unpadded and self.groups == 1


def backward(
    output_grads: Tensor,
    inputs: Tensor,
    kernel: Tensor,
    geometry: Geometry,
    *,
    of_input: bool,
) -> Tensor:
    """The gradient of the input, or of the kernel (summed over samples)."""
    grads = torch.ops.aten.convolution_backward(
        output_grads,
        inputs,
        kernel,
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        (0, 0),
        geometry.groups,
        (of_input, not of_input, False),
    )
    found: Tensor = grads[0 if of_input else 1]
    return found


@dataclass(frozen=True, slots=True)
class Correlations:
    """Gradients of a kernel, as ``inputs`` (n, C, H, W) and ``output_grads`` (n, p, h, w).

    The ghost norm without unfolding. The inner product of two input patches is a sum over the
    kernel's positions of inner products of pixels, so it is read off the Gram matrix of the
    pixels, shifted: (HW)² · C multiplications where unfolded patches take (hw)² · C · kernel.
    """

    inputs: Tensor
    output_grads: Tensor
    geometry: Geometry

    def squared_norms(self) -> Tensor:
        patches = patch_gram(self.inputs, self.geometry, size=self.output_grads.shape[2:])
        pixels = self.output_grads.flatten(2).transpose(1, 2)
        return inner_products(patches, gram(pixels))

    def add_weighted_sum(self, total: Tensor, factors: Tensor) -> None:
        weighted = self.output_grads * factors.to(total.dtype)[:, None, None, None]
        # Of ``total`` only the shape is read.
        total += backward(weighted, self.inputs, total, self.geometry, of_input=False)

    def rows(self, kept: Tensor) -> "Correlations":
        return replace(self, inputs=self.inputs[kept], output_grads=self.output_grads[kept])


def patch_gram(inputs: Tensor, geometry: Geometry, *, size: torch.Size) -> Tensor:
    """Inner products of the input patches under each pair of output pixels.

    Args:
        inputs: ``(n, C, H, W)``.
        geometry: one group.
        size: (h, w) of the output.

    Returns:
        Shape ``(n, h · w, h · w)``.
    """
    down, across = geometry.padding
    padded = functional.pad(inputs, (across, across, down, down))
    count, _, high, wide = padded.shape
    pixels = gram(padded.flatten(2).transpose(1, 2)).view(count, high, wide, high, wide)
    rows, columns = (_shifts(geometry, axis, int(size[axis])) for axis in (0, 1))
    # Vertical and horizontal shifts in turn: kh + kw passes rather than kh · kw.
    by_row = pixels[:, rows[0], :, rows[0]].clone()
    for row in rows[1:]:
        by_row += pixels[:, row, :, row]
    summed = by_row[:, :, columns[0], :, columns[0]].clone()
    for column in columns[1:]:
        summed += by_row[:, :, column, :, column]
    return summed.flatten(3).flatten(1, 2)


def _shifts(geometry: Geometry, axis: int, length: int) -> list[slice]:
    """For each position of the kernel along ``axis``, the input positions under the output."""
    step = geometry.stride[axis]
    starts = [i * geometry.dilation[axis] for i in range(geometry.kernel[2 + axis])]
    return [slice(start, start + step * (length - 1) + 1, step) for start in starts]


# As ``PASSES_COST``: instantiating calls the convolution once a sample, and shifting is not
# multiplication of matrices.
_CALL_COST = 50
_SHIFT_COST = 30


def share_of_kernel(inputs: Tensor, output_grads: Tensor, geometry: Geometry) -> Share:
    """The cheapest form of a kernel's gradients; arguments as of ``Correlations``."""
    if geometry.is_matrix:
        return share_of_products(_in_rows(inputs.flatten(2)), _in_rows(output_grads.flatten(2)))
    if geometry.groups == 1 and _patches_are_cheaper(output_grads, geometry):
        patches = functional.unfold(
            inputs,
            geometry.kernel[2:],
            dilation=geometry.dilation,
            padding=geometry.padding,
            stride=geometry.stride,
        )
        return share_of_products(_in_rows(patches), _in_rows(output_grads.flatten(2)))
    if geometry.groups == 1 and _ghost_is_cheaper(inputs, output_grads, geometry):
        return Correlations(inputs, output_grads, geometry)
    gradients = inputs.new_empty(len(inputs), *geometry.kernel)
    for i, gradient in enumerate(gradients):
        one = slice(i, i + 1)
        gradient.copy_(backward(output_grads[one], inputs[one], gradient, geometry, of_input=False))
    return Instantiated(gradients)


def _in_rows(pixels: Tensor) -> Tensor:
    """One row a pixel: ``(n, features, T)`` to ``(n, T, features)``."""
    return pixels.transpose(1, 2)


def _patches_are_cheaper(output_grads: Tensor, geometry: Geometry) -> bool:
    """Of fewer pixels than the kernel has positions, unfolding is little beside the kernel."""
    return output_grads.shape[2:].numel() < geometry.kernel[2:].numel()


def _ghost_is_cheaper(inputs: Tensor, output_grads: Tensor, geometry: Geometry) -> bool:
    down, across = geometry.padding
    pixels = (inputs.shape[2] + 2 * down) * (inputs.shape[3] + 2 * across)
    length = output_grads.shape[2] * output_grads.shape[3]
    shifts = sum(geometry.kernel[2:]) * _SHIFT_COST
    ghost = pixels**2 * inputs.shape[1] + length**2 * (output_grads.shape[1] + shifts)
    return ghost < (PASSES_COST + _CALL_COST) * geometry.kernel.numel()
