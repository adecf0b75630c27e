"""One forward and backward pass that leaves per-sample gradients behind.

While a ``Tape`` is entered, convolutions, linear maps and group norms with trainable
parameters compute what they always do and keep their per-sample gradients in the tape; the
parameters themselves receive none. Any other use of a trainable parameter goes through
autograd unrecorded, and is found by whoever closes the pass (``Tape.close``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from matl_common.errors import MatlError
from matl_participant.training.clipping.convolution import Geometry, backward, share_of_kernel
from matl_participant.training.clipping.shares import Instantiated, Share, share_of_products


class UnsupportedLayerError(MatlError):
    """A layer whose per-sample gradients cannot be computed exactly."""


class Tape(TorchFunctionMode):
    """The record of one pass over ``samples`` samples. Not reusable.

    Args:
        names: the trainable parameters, and what to call each in an error.
        samples: the batch, which every recorded layer must see as its first dimension.
    """

    def __init__(self, names: Mapping[Tensor, str], *, samples: int) -> None:
        super().__init__()
        self._names = names
        self._samples = samples
        self._used: set[Tensor] = set()
        # Each parameter once, until taken.
        self._shares: dict[Tensor, Share] = {}
        self._squared_norms = torch.zeros(samples, dtype=torch.float64)
        self._handlers: Mapping[Any, Callable[..., Tensor]] = {
            functional.conv2d: self._conv2d,
            functional.linear: self._linear,
            functional.group_norm: self._group_norm,
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        handler = self._handlers.get(func, func)
        return handler(*args, **(kwargs or {}))

    def close(self) -> Tensor:
        """End the pass, after the backward one: the gradient norms, float64 of ``(samples,)``.

        Raises:
            UnsupportedLayerError: a parameter got a gradient that was not recorded.
        """
        for parameter, name in self._names.items():
            if parameter.grad is not None:
                raise UnsupportedLayerError(
                    f"parameter {name} is used where per-sample gradients are not recorded; they "
                    "are in Conv2d with padding in numbers, Linear and GroupNorm: freeze the "
                    "parameter, or change the network"
                )
        return self._squared_norms.sqrt()

    def take(self, parameter: Tensor) -> Share | None:
        """Hand out a parameter's share and forget it; None when the loss ignores it."""
        return self._shares.pop(parameter, None)

    def keep(self, parameter: Tensor, share: Share) -> None:
        """Add a parameter's share, measured while it is in the cache."""
        self._squared_norms += share.squared_norms().cpu()
        self._shares[parameter] = share

    def _claim_all(
        self, inputs: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None] | None:
        """The weight and the bias as far as they are to be recorded.

        None when nothing is, or when something computed from parameters would lose its
        gradient: left to autograd, it is found by ``close``.
        """
        wanted = [each for each in (weight, bias) if each is not None and each.requires_grad]
        if not wanted or any(each not in self._names for each in wanted):
            return None
        return self._claim(weight, inputs), self._claim(bias, inputs)

    def _claim(self, parameter: Tensor | None, inputs: Tensor) -> Tensor | None:
        """``parameter`` if it is to be recorded, which may happen once a pass.

        Raises:
            UnsupportedLayerError: it is used twice, or not once a sample.
        """
        if parameter is None or not parameter.requires_grad:
            return None
        name = self._names[parameter]
        if parameter in self._used:
            raise UnsupportedLayerError(
                f"parameter {name} is used twice in one pass; per-sample norms of shared "
                "parameters are not computed: give each layer its own"
            )
        if len(inputs) != self._samples:
            raise UnsupportedLayerError(
                f"parameter {name} sees {len(inputs)} rows, not the batch of {self._samples}; "
                "keep samples in the first dimension"
            )
        self._used.add(parameter)
        return parameter

    def _conv2d(  # noqa: PLR0917 - torch's signature
        self,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        claimed = self._claim_all(inputs, weight, bias)
        if claimed is None or isinstance(padding, str) or inputs.dim() != 4:
            return functional.conv2d(inputs, weight, bias, stride, padding, dilation, groups)
        geometry = Geometry(weight.shape, _pair(stride), _pair(padding), _pair(dilation), groups)
        if geometry.is_strided_matrix:
            # Skipped pixels would cost time in the backward pass.
            down, across = geometry.stride
            inputs = inputs[:, :, ::down, ::across]
            geometry = replace(geometry, stride=(1, 1))
        record = _ConvolutionRecord(self, *claimed, geometry)
        outputs: Tensor = _Convolution.apply(inputs, weight, bias, record)
        return outputs

    def _linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        claimed = self._claim_all(inputs, weight, bias)
        if claimed is None:
            return functional.linear(inputs, weight, bias)
        outputs: Tensor = _Linear.apply(inputs, weight, bias, _Record(self, *claimed))
        return outputs

    def _group_norm(
        self,
        inputs: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        claimed = self._claim_all(inputs, weight, bias)
        if claimed is None:
            return functional.group_norm(inputs, num_groups, weight, bias, eps)
        record = _NormRecord(self, *claimed, num_groups, eps)
        outputs: Tensor = _GroupNorm.apply(inputs.contiguous(), weight, bias, record)
        return outputs


def _pair(value: Any) -> tuple[int, int]:
    """torch takes one number, or one for each direction."""
    if isinstance(value, int):
        return value, value
    down, across = value if len(value) == 2 else (*value, *value)
    return int(down), int(across)


@dataclass(frozen=True, slots=True)
class _Record:
    """Where a layer's shares go, and of which parameters there are any."""

    tape: Tape
    weight: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class _ConvolutionRecord(_Record):
    geometry: Geometry


@dataclass(frozen=True, slots=True)
class _NormRecord(_Record):
    groups: int
    eps: float


class _Convolution(torch.autograd.Function):
    """``conv2d`` that leaves its parameters' per-sample gradients in a tape."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, record: _ConvolutionRecord
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.record = record
        to = record.geometry
        return functional.conv2d(
            inputs, weight, bias, to.stride, to.padding, to.dilation, to.groups
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        record: _ConvolutionRecord = ctx.record
        inputs, weight = ctx.saved_tensors
        output_grads = grads[0].contiguous()
        if record.weight is not None:
            share = share_of_kernel(inputs, output_grads, record.geometry)
            record.tape.keep(record.weight, share)
        if record.bias is not None:
            record.tape.keep(record.bias, Instantiated(output_grads.sum(dim=(2, 3))))
        input_grads = None
        if ctx.needs_input_grad[0]:
            input_grads = backward(output_grads, inputs, weight, record.geometry, of_input=True)
        return input_grads, None, None, None


class _Linear(torch.autograd.Function):
    """``linear`` that leaves its parameters' per-sample gradients in a tape."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, record: _Record
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.record = record
        return functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        record: _Record = ctx.record
        inputs, weight = ctx.saved_tensors
        # Whatever lies between sample and feature is summed over.
        rows, row_grads = (
            each.reshape(len(each), -1, each.shape[-1]) for each in (inputs, grads[0])
        )
        if record.weight is not None:
            share = share_of_products(rows, row_grads)
            record.tape.keep(record.weight, share)
        if record.bias is not None:
            record.tape.keep(record.bias, Instantiated(row_grads.sum(dim=1)))
        input_grads = grads[0] @ weight if ctx.needs_input_grad[0] else None
        return input_grads, None, None, None


class _GroupNorm(torch.autograd.Function):
    """``group_norm`` that leaves its parameters' per-sample gradients in a tape."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, record: _NormRecord
    ) -> Tensor:
        count, channels = inputs.shape[:2]
        pixels = inputs.shape[2:].numel()
        outputs, mean, deviation = torch.native_group_norm(
            inputs, weight, bias, count, channels, pixels, record.groups, record.eps
        )
        ctx.save_for_backward(inputs, weight, mean, deviation)
        ctx.record = record
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        record: _NormRecord = ctx.record
        inputs, weight, mean, deviation = ctx.saved_tensors
        count, channels = inputs.shape[:2]
        # All samples' channels as the channels of one: the gradient of a repeated scale is
        # then the per-sample gradient.
        input_grads, *shares = torch.ops.aten.native_group_norm_backward(
            grads[0].contiguous(),
            inputs,
            mean.view(1, -1),
            deviation.view(1, -1),
            None if weight is None else weight.repeat(count),
            1,
            count * channels,
            inputs.shape[2:].numel(),
            count * record.groups,
            (ctx.needs_input_grad[0], record.weight is not None, record.bias is not None),
        )
        for parameter, share in zip((record.weight, record.bias), shares, strict=True):
            if parameter is not None:
                record.tape.keep(parameter, Instantiated(share.view(count, channels)))
        return input_grads, None, None, None
