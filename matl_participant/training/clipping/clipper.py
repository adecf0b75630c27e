"""The sum of clipped per-sample gradients of a network.

``Clipper`` owns the check that the network is one whose gradients can be recorded. Nothing
here draws a sample or noise.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from matl_participant.training.clipping.recording import Tape, UnsupportedLayerError

_SUPPORTED = (nn.Conv2d, nn.Linear, nn.GroupNorm)
_COUPLING = (nn.modules.batchnorm._BatchNorm,)


class Clipper:
    """Clips the per-sample gradients of one network's trainable parameters.

    Raises:
        UnsupportedLayerError: a trainable parameter belongs to another layer than Conv2d,
            Linear or GroupNorm, or a layer couples the samples of a batch.
    """

    def __init__(self, network: nn.Module) -> None:
        _check_layers(network)
        self._network = network
        self._names: dict[Tensor, str] = {
            p: name for name, p in network.named_parameters() if p.requires_grad
        }

    @property
    def size(self) -> int:
        """Elements of all trainable parameters."""
        return sum(parameter.numel() for parameter in self._names)

    def add_clipped(
        self, total: Tensor, images: Tensor, labels: Tensor, *, max_grad_norm: float
    ) -> int:
        """Add to ``total`` each sample's cross-entropy gradient, of norm at most ``max_grad_norm``.

        A sample whose gradient is not finite adds nothing.

        Args:
            total: ``(size,)``, the trainable parameters one after the other, of their type and
                on their device; changed in place.
            images: ``(n, channels, height, width)``; none is fine.
            labels: ``(n,)`` classes.

        Returns:
            How many samples were left out. It depends on the data: not for release.

        Raises:
            UnsupportedLayerError: a parameter is used in a way that is not recorded.
        """
        if not len(images):
            return 0
        for parameter in self._names:
            parameter.grad = None
        tape = Tape(self._names, samples=len(images))
        with tape:
            logits = self._network(images)
        # The sum, not the mean: a sample's gradient must not depend on the others.
        torch.autograd.backward(functional.cross_entropy(logits, labels, reduction="sum"))
        return self._add_recorded(total, tape, max_grad_norm=max_grad_norm)

    @torch.no_grad()
    def _add_recorded(self, total: Tensor, tape: Tape, *, max_grad_norm: float) -> int:
        norms = tape.close()
        finite = torch.isfinite(norms)
        everyone = bool(finite.all())
        factors = max_grad_norm / norms[finite].clamp_min(max_grad_norm)
        start = 0
        for parameter in self._names:
            end = start + parameter.numel()
            share = tape.take(parameter)
            if share is not None:
                if not everyone:
                    # Left out, not multiplied by zero: zero times NaN is still NaN.
                    share = share.rows(finite.to(parameter.device))
                part = total[start:end].view_as(parameter)
                share.add_weighted_sum(part, factors.to(parameter.device))
            start = end
        return int((~finite).sum())


def _check_layers(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, _COUPLING):
            raise UnsupportedLayerError(
                f"layer {name} ({type(module).__name__}) couples the samples of a batch; "
                "use GroupNorm"
            )
        trainable = any(p.requires_grad for p in module.parameters(recurse=False))
        if trainable and not isinstance(module, _SUPPORTED):
            raise UnsupportedLayerError(
                f"layer {name} ({type(module).__name__}) has trainable parameters, and per-sample "
                "gradients are supported for Conv2d, Linear and GroupNorm; freeze or replace it"
            )
