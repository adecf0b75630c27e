"""EfficientNet-Lite0: the architecture only, for weights converted from TensorFlow.

MobileNetV2 blocks with EfficientNet-B0's widths and depths, ReLU6, no squeeze-and-
excitation (Tan & Le, arXiv 1905.11946; the Lite variants are TensorFlow's). Parameter
names are those of the published weight file. Loading weights is ``backbones.py``.
"""

from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

FEATURE_DIM = 1280
_BATCH_NORM_EPS = 1e-3
_STEM_CHANNELS = 32

# (repeats, kernel size, first stride, expansion, output channels); EfficientNet table 1.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


# From the third on: what comes before sees a few pixels only.
_AVERAGED_STAGES = _STAGES[2:]
_AVERAGED_BLOCKS = [end - 1 for end in accumulate(repeats for repeats, *_ in _STAGES)][2:]
LAYERED_FEATURE_DIM = FEATURE_DIM + sum(channels for *_, channels in _AVERAGED_STAGES)


class SamePaddedConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow's ``SAME``: the odd pixel goes right and below."""

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        across, down = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0)
            for size in (input.shape[3], input.shape[2])
        )
        padding = (across // 2, across - across // 2, down // 2, down - down // 2)
        output: Tensor = super().forward(functional.pad(input, padding))
        return output


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to the input where shapes agree."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel_size: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, hidden, 1, bias=False)
            self._bn0 = _batch_norm(hidden)
        self._depthwise_conv = SamePaddedConv2d(
            hidden, hidden, kernel_size, stride=stride, groups=hidden, bias=False
        )
        self._bn1 = _batch_norm(hidden)
        self._project_conv = nn.Conv2d(hidden, outputs, 1, bias=False)
        self._bn2 = _batch_norm(outputs)

    def forward(self, images: Tensor) -> Tensor:
        hidden = images
        if self.expands:
            hidden = functional.relu6(self._bn0(self._expand_conv(hidden)))
        hidden = functional.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        output: Tensor = images + hidden if self.residual else hidden
        return output


class EfficientNetLite0(nn.Module):
    """Images ``(n, 3, h, w)`` to logits ``(n, 1000)``.

    ``features`` stops at ``(n, 1280)``; ``layered_features`` are those and the averages over
    the image of what the last five stages put out, ``(n, 2024)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SamePaddedConv2d(3, _STEM_CHANNELS, 3, stride=2, bias=False)
        self._bn0 = _batch_norm(_STEM_CHANNELS)
        self._blocks = nn.ModuleList(_blocks())
        self._conv_head = nn.Conv2d(_STAGES[-1][-1], FEATURE_DIM, 1, bias=False)
        self._bn1 = _batch_norm(FEATURE_DIM)
        self._fc = nn.Linear(FEATURE_DIM, 1000)

    def features(self, images: Tensor) -> Tensor:
        hidden = self._stem(images)
        for block in self._blocks:
            hidden = block(hidden)
        return self._top(hidden)

    def layered_features(self, images: Tensor) -> Tensor:
        hidden = self._stem(images)
        averages: list[Tensor] = []
        for index, block in enumerate(self._blocks):
            hidden = block(hidden)
            if index in _AVERAGED_BLOCKS:
                averages.append(torch.mean(hidden, dim=(2, 3)))
        return torch.cat([self._top(hidden), *averages], dim=1)

    def _stem(self, images: Tensor) -> Tensor:
        return functional.relu6(self._bn0(self._conv_stem(images)))

    def _top(self, hidden: Tensor) -> Tensor:
        hidden = functional.relu6(self._bn1(self._conv_head(hidden)))
        return torch.mean(hidden, dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self._fc(self.features(images))
        return logits


def fold_batch_norms(network: EfficientNetLite0) -> None:
    """Fold each normalisation into the convolution before it; a quarter faster.

    The network must be in evaluation mode and can only be evaluated afterwards.
    """
    _fold(network, "_conv_stem", "_bn0")
    _fold(network, "_conv_head", "_bn1")
    for block in network.modules():
        if isinstance(block, InvertedResidual):
            if block.expands:
                _fold(block, "_expand_conv", "_bn0")
            _fold(block, "_depthwise_conv", "_bn1")
            _fold(block, "_project_conv", "_bn2")


def _fold(module: nn.Module, convolution: str, norm: str) -> None:
    fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
    setattr(module, convolution, fused)
    setattr(module, norm, nn.Identity())


def _blocks() -> list[InvertedResidual]:
    blocks: list[InvertedResidual] = []
    inputs = _STEM_CHANNELS
    for repeats, kernel_size, first_stride, expansion, outputs in _STAGES:
        for index in range(repeats):
            blocks.append(
                InvertedResidual(
                    inputs,
                    outputs,
                    kernel_size=kernel_size,
                    stride=first_stride if index == 0 else 1,
                    expansion=expansion,
                )
            )
            inputs = outputs
    return blocks


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_BATCH_NORM_EPS)
