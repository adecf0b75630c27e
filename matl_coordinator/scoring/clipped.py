"""What hospitals descend: the mean of gradients that were clipped one image at a time."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from matl_common.tensors import Float32Vector


def clipped_descent(
    losses: Iterable[Tensor], parameters: Sequence[nn.Parameter], *, max_grad_norm: float
) -> Float32Vector:
    """Minus the mean of the losses' gradients, each of norm at most ``max_grad_norm``.

    A gradient that is not finite adds nothing, as at the hospitals. One image's at a time, so
    that it works for any network, and takes no more memory than one.

    Args:
        losses: one scalar for each image, at least one.
        parameters: of the network behind them, all of which require a gradient.
        max_grad_norm: C, above 0.
    """
    total = torch.zeros(sum(each.numel() for each in parameters), device=parameters[0].device)
    count = 0
    for loss in losses:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradient = torch.cat(
            [
                torch.zeros_like(each).flatten() if slope is None else slope.flatten()
                for each, slope in zip(parameters, found, strict=True)
            ]
        )
        norm = gradient.norm()
        if torch.isfinite(norm):
            total += gradient * torch.clamp(max_grad_norm / norm, max=1.0)
        count += 1
    descent: Float32Vector = (total / -count).cpu().numpy()
    return descent
