"""Recorded gradients against a loop over samples."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.utils import wrap_model
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn
from torch.nn import functional

from matl_common.vision.heads import SmallGroupNormNet, build_network
from matl_participant.training.clipping.clipper import Clipper
from matl_participant.training.clipping.convolution import (
    Correlations,
    Geometry,
    share_of_kernel,
)
from matl_participant.training.clipping.recording import UnsupportedLayerError
from matl_participant.training.clipping.shares import Instantiated, Products, share_of_products

pytestmark = pytest.mark.privacy

Vector = NDArray[np.float64]
SIZE = 9


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(7)


def naive(network: nn.Module, images: Tensor, labels: Tensor, *, norm: float) -> Vector:
    """One sample at a time, with nothing but autograd."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for image, label in zip(images, labels, strict=True):
        loss = functional.cross_entropy(network(image[None]), label[None])
        parts = torch.autograd.grad(loss, parameters)
        flat = torch.cat([part.double().flatten() for part in parts])
        total += flat * min(1.0, norm / float(flat.norm()))
    return total.numpy()


def clipped(network: nn.Module, images: Tensor, labels: Tensor, *, norm: float) -> Vector:
    clipper = Clipper(network)
    total = torch.zeros(clipper.size, dtype=images.dtype)
    assert clipper.add_clipped(total, images, labels, max_grad_norm=norm) == 0
    return total.double().numpy()


def distance(found: Vector, expected: Vector) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def rounds_as_well_as(other: Vector, found: Vector, *, exact: Vector) -> bool:
    """Whether single precision costs this way no more digits than another; one in ten is chance.

    How much either loses depends on the processor.
    """
    return distance(found, exact) < 10.0 * distance(other, exact) + 1e-6


def samples(
    count: int, *, size: int = SIZE, dtype: torch.dtype = torch.float64
) -> Sequence[Tensor]:
    return torch.randn(count, 3, size, size, dtype=dtype), torch.arange(count) % 5


class Pooled(nn.Module):
    """A layer, then the classes; the first convolution makes the layer's input need a gradient."""

    def __init__(self, layer: nn.Module, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.layer = layer
        self.last = nn.Linear(channels, 5)
        for parameter in self.parameters():
            # A fresh norm scales every channel alike, which hides channels taken for another.
            nn.init.normal_(parameter, std=0.5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(self.layer(torch.tanh(self.first(images))))
        logits: Tensor = self.last(hidden.mean(dim=(2, 3)))
        return logits


class Residual(nn.Module):
    """Additions and activations in place, as stock networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.norm(self.conv(inputs))
        out += inputs
        return functional.relu_(out)


class Tokens(nn.Module):
    """A linear map of every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, inputs: Tensor) -> Tensor:
        mapped: Tensor = self.linear(inputs.permute(0, 2, 3, 1))
        return mapped.permute(0, 3, 1, 2)


LAYERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "3x3": (lambda: nn.Conv2d(4, 6, 3), 6),
    "3x3 wide": (lambda: nn.Conv2d(4, 512, 3, stride=3), 512),
    "3x3 of few pixels": (lambda: nn.Conv2d(4, 512, 3, stride=4, padding=1), 512),
    "strided and padded": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), 6),
    "oblong": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(0, 1)), 6),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=2), 6),
    "dilated wide": (lambda: nn.Conv2d(4, 512, (2, 3), stride=2, dilation=(3, 2)), 512),
    "dilated, few pixels": (lambda: nn.Conv2d(4, 512, (2, 3), stride=(3, 4), dilation=(3, 2)), 512),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), 6),
    "grouped wide": (lambda: nn.Conv2d(4, 512, 3, stride=4, groups=2), 512),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), 4),
    "reflecting": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), 6),
    "1x1": (lambda: nn.Conv2d(4, 6, 1), 6),
    "1x1 wide": (lambda: nn.Conv2d(4, 2000, 1, stride=4), 2000),
    "1x1 strided": (lambda: nn.Conv2d(4, 6, 1, stride=(2, 3), bias=False), 6),
    "1x1 padded": (lambda: nn.Conv2d(4, 6, 1, padding=1), 6),
    "1x1 grouped": (lambda: nn.Conv2d(4, 6, 1, groups=2), 6),
    "linear on pixels": (Tokens, 6),
    "norm": (lambda: nn.GroupNorm(2, 4), 4),
    "norm of permuted pixels": (lambda: nn.Sequential(Tokens(), nn.GroupNorm(2, 6)), 6),
    "norm without parameters": (lambda: nn.GroupNorm(2, 4, affine=False), 4),
    "residual in place": (Residual, 4),
    "nothing": (nn.Identity, 4),
}


@pytest.mark.parametrize("norm", [0.05, 1e6], ids=["clipped", "whole"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_equals_a_loop_over_samples(name: str, norm: float) -> None:
    build, channels = LAYERS[name]
    network = Pooled(build(), channels).double()
    for count in (1, 5):
        images, labels = samples(count)
        expected = naive(network, images, labels, norm=norm)
        assert distance(clipped(network, images, labels, norm=norm), expected) < 1e-10
        network.float()
        loop = naive(network, images.float(), labels, norm=norm)
        found = clipped(network, images.float(), labels, norm=norm)
        assert rounds_as_well_as(loop, found, exact=expected)
        network.double()


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        ((3, 3), (1, 1), (1, 1), (1, 1)),
        ((3, 3), (2, 2), (1, 1), (1, 1)),
        ((7, 7), (2, 2), (3, 3), (1, 1)),
        ((2, 3), (3, 1), (0, 2), (2, 1)),
        ((1, 1), (2, 1), (0, 0), (1, 1)),
    ],
)
def test_both_ways_to_a_kernels_norm_agree(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    inputs = torch.randn(3, 4, 10, 8, dtype=torch.float64)
    weight = torch.randn(5, 4, *kernel, dtype=torch.float64)
    outputs = functional.conv2d(inputs, weight, None, stride, padding, dilation)
    grads, factors = torch.randn_like(outputs), torch.rand(3, dtype=torch.float64)
    geometry = Geometry(weight.shape, stride, padding, dilation, 1)
    ghost = Correlations(inputs, grads, geometry)
    plain = share_of_kernel(inputs, grads, geometry)
    assert isinstance(plain, Instantiated)
    assert torch.allclose(ghost.squared_norms(), plain.squared_norms(), rtol=1e-12)
    sums = torch.ones(2, *weight.shape, dtype=torch.float64)
    ghost.add_weighted_sum(sums[0], factors)
    plain.add_weighted_sum(sums[1], factors)
    assert torch.allclose(sums[0], sums[1])
    kept = torch.tensor([True, False, True])
    assert torch.equal(ghost.rows(kept).squared_norms(), ghost.squared_norms()[kept])


def test_the_cheaper_form_is_chosen() -> None:
    def form(channels: int, kernel: int, *, size: int) -> str:
        inputs = torch.zeros(1, channels, size, size)
        shape = torch.Size((channels, channels, kernel, kernel))
        geometry = Geometry(shape, (1, 1), (kernel // 2, kernel // 2), (1, 1), 1)
        return type(share_of_kernel(inputs, inputs, geometry)).__name__

    # The first and last stage of ResNet-50 at 224 pixels.
    assert form(64, 3, size=56) == form(64, 1, size=56) == "Instantiated"
    assert (form(512, 3, size=7), form(512, 1, size=7)) == ("Correlations", "Products")
    # The last at 64 pixels.
    assert form(512, 3, size=2) == "Products"
    share = share_of_products(torch.zeros(1, 1, 2048), torch.zeros(1, 1, 512))
    assert isinstance(share, Products)


@pytest.mark.parametrize("norm", [0.1, 1e6], ids=["clipped", "whole"])
def test_the_whole_network_equals_a_loop_over_samples(norm: float) -> None:
    network = build_network("resnet50_gn").double()
    images, labels = samples(2, size=32)
    expected = naive(network, images, labels, norm=norm)
    assert distance(clipped(network, images, labels, norm=norm), expected) < 1e-10


def test_the_whole_network_in_single_precision_is_right_but_for_rounding() -> None:
    network = build_network("resnet50_gn")
    images, labels = samples(3, size=96, dtype=torch.float32)
    found = clipped(network, images, labels, norm=1e6)
    exact = naive(network.double(), images.double(), labels, norm=1e6)
    # 2e-6 is rounding; where a ReLU turns over at zero, which depends on the processor, 2e-3.
    assert distance(found, exact) < 1e-2


def test_a_smooth_network_in_single_precision_equals_a_loop_over_samples() -> None:
    network = SmallGroupNormNet(width=32)
    for index, layer in enumerate(network.features):
        if isinstance(layer, nn.ReLU):
            network.features[index] = nn.GELU()
    images, labels = samples(6, size=64, dtype=torch.float32)
    for norm in (0.05, 1e6):
        loop = naive(network, images, labels, norm=norm)
        found = clipped(network, images, labels, norm=norm)
        exact = naive(network.double(), images.double(), labels, norm=norm)
        network.float()
        assert rounds_as_well_as(loop, found, exact=exact)
        assert distance(found, exact) < 1e-4


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_opacus_clips_to_the_same_sum(mode: str) -> None:
    network = SmallGroupNormNet().double()
    images, labels = samples(5, size=16)
    expected = clipped(network, images, labels, norm=0.1)
    found = _opacus_sum(mode, network, images, labels, norm=0.1)
    # Opacus divides by the norm plus 1e-6.
    assert distance(found, expected) < 1e-5
    assert distance(naive(network, images, labels, norm=0.1), expected) < 1e-10


def _opacus_sum(
    mode: str, network: nn.Module, images: Tensor, labels: Tensor, *, norm: float
) -> Vector:
    sgd = torch.optim.SGD(network.parameters(), lr=0.0)
    settings = {
        "noise_multiplier": 0.0,
        "max_grad_norm": norm,
        "expected_batch_size": 1,
        "loss_reduction": "sum",
    }
    if mode == "hooks":
        module: nn.Module = GradSampleModule(network, loss_reduction="sum")
        optimizer = DPOptimizer(sgd, **settings)
        loss = functional.cross_entropy(module(images), labels, reduction="sum")
        torch.autograd.backward(loss)
        optimizer.clip_and_accumulate()
    else:
        module = wrap_model(
            network, grad_sample_mode="ghost", max_grad_norm=norm, loss_reduction="sum"
        )
        optimizer = DPOptimizerFastGradientClipping(sgd, **settings)
        criterion = DPLossFastGradientClipping(
            module, optimizer, nn.CrossEntropyLoss(reduction="sum"), loss_reduction="sum"
        )
        criterion(module(images), labels).backward()
        optimizer.accumulate()
    parts = [parameter.summed_grad for parameter in optimizer.params]
    return torch.cat([part.flatten() for part in parts]).detach().double().numpy()


def test_frozen_parameters_have_no_place_in_the_sum() -> None:
    for frozen in ("first.weight", "layer.weight", "layer.bias", "last.bias"):
        for layer in (nn.Conv2d(4, 4, 3), nn.Linear(9, 9), nn.GroupNorm(2, 4)):
            network = Pooled(layer, 4).double()
            network.get_parameter(frozen).requires_grad = False
            images, labels = samples(3)
            found = clipped(network, images, labels, norm=0.05)
            expected = naive(network, images, labels, norm=0.05)
            assert found.size == sum(p.numel() for p in network.parameters() if p.requires_grad)
            assert distance(found, expected) < 1e-10


def test_only_a_head_may_be_trained() -> None:
    network = SmallGroupNormNet().double()
    network.features.requires_grad_(requires_grad=False)
    images, labels = samples(3)
    expected = naive(network, images, labels, norm=0.05)
    assert distance(clipped(network, images, labels, norm=0.05), expected) < 1e-10


def test_an_unused_layer_has_a_zero_gradient() -> None:
    network = SmallGroupNormNet().double()
    images, labels = samples(3)
    expected = naive(network, images, labels, norm=0.05)
    network.unused = nn.Linear(3, 2).double()
    found = clipped(network, images, labels, norm=0.05)
    assert np.allclose(found[:-8], expected)
    assert not found[-8:].any()


def test_sums_add_up_in_place_and_leave_no_gradient() -> None:
    network = SmallGroupNormNet().double()
    images, labels = samples(7)
    clipper = Clipper(network)
    total = torch.full((clipper.size,), 3.0, dtype=torch.float64)
    for start, end in pairwise((0, 0, 3, 6, 7)):
        clipper.add_clipped(total, images[start:end], labels[start:end], max_grad_norm=0.1)
    expected = clipped(network, images, labels, norm=0.1)
    assert np.allclose(total.numpy() - 3.0, expected, atol=1e-12)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_an_empty_batch_adds_nothing() -> None:
    clipper = Clipper(SmallGroupNormNet())
    total = torch.zeros(clipper.size)
    images, labels = samples(0, dtype=torch.float32)
    assert clipper.add_clipped(total, images, labels, max_grad_norm=0.1) == 0
    assert not total.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "kind",
    ["3x3", "3x3 wide", "3x3 of few pixels", "1x1 wide", "grouped", "linear on pixels", "norm"],
)
def test_a_sample_that_is_not_finite_is_counted_and_harms_no_other(kind: str, bad: float) -> None:
    build, channels = LAYERS[kind]
    network = Pooled(build(), channels).double()
    images, labels = samples(4)
    good = clipped(network, images[1:3], labels[1:3], norm=0.1)
    for index in (0, 3):
        images[index, 1, 2, 3] = bad
    clipper = Clipper(network)
    total = torch.zeros(clipper.size, dtype=torch.float64)
    assert clipper.add_clipped(total, images, labels, max_grad_norm=0.1) == 2
    assert distance(total.numpy(), good) < 1e-10


def test_a_batch_without_a_finite_sample_adds_nothing() -> None:
    clipper = Clipper(SmallGroupNormNet())
    total = torch.zeros(clipper.size)
    images, labels = samples(2, dtype=torch.float32)
    assert clipper.add_clipped(total, images * torch.nan, labels, max_grad_norm=0.1) == 2
    assert not total.any()


class Scale(nn.Module):
    """A parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.factor


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Scale(), r"layer layer \(Scale\) has trainable"),
        (nn.LayerNorm(SIZE), r"layer layer \(LayerNorm\)"),
        (nn.ConvTranspose2d(4, 4, 3), r"layer layer \(ConvTranspose2d\)"),
        (nn.BatchNorm2d(4), r"layer layer \(BatchNorm2d\) couples"),
        (nn.BatchNorm2d(4, affine=False), r"layer layer \(BatchNorm2d\) couples"),
    ],
)
def test_an_unsupported_layer_is_refused_by_name(layer: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=message):
        Clipper(Pooled(layer, 4))


def test_an_unsupported_layer_may_be_frozen() -> None:
    layer = Scale().double().requires_grad_(requires_grad=False)
    network = Pooled(layer, 4).double()
    images, labels = samples(3)
    expected = naive(network, images, labels, norm=0.05)
    assert distance(clipped(network, images, labels, norm=0.05), expected) < 1e-10


class Standardised(nn.Conv2d):
    """Uses its weight in a way that no recorded function sees."""

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.conv2d(inputs, self.weight - self.weight.mean(), self.bias)


class StandardisedNorm(nn.GroupNorm):
    def forward(self, inputs: Tensor) -> Tensor:
        return functional.group_norm(inputs, self.num_groups, self.weight + 1.0, self.bias)


class Reshaped(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, self.weight.t(), self.bias)


class Twice(nn.Conv2d):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(super().forward(inputs))


class AlsoPenalised(nn.Conv2d):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + self.weight.square().sum()


class Halves(nn.Conv2d):
    """Makes two samples of each."""

    def forward(self, inputs: Tensor) -> Tensor:
        left, right = super().forward(torch.cat([inputs, inputs.flip(3)])).chunk(2)
        return left + right


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Standardised(4, 4, 3), r"layer\.weight is used where"),
        (Standardised(4, 4, 3, bias=False), r"layer\.weight is used where"),
        (StandardisedNorm(2, 4), r"layer\.weight is used where"),
        (Reshaped(9, 9), r"layer\.weight is used where"),
        (AlsoPenalised(4, 4, 3), r"layer\.weight is used where"),
        (Twice(4, 4, 1), r"layer\.weight is used twice"),
        (Halves(4, 4, 1), r"layer\.weight sees 4 rows, not the batch of 2"),
        (nn.Conv2d(4, 4, 3, padding="same"), r"layer\.weight is used where"),
    ],
)
def test_a_parameter_that_is_not_fully_recorded_is_refused_by_name(
    layer: nn.Module, message: str
) -> None:
    images, labels = samples(2, dtype=torch.float32)
    clipper = Clipper(Pooled(layer, 4))
    total = torch.zeros(clipper.size)
    with pytest.raises(UnsupportedLayerError, match=message):
        clipper.add_clipped(total, images, labels, max_grad_norm=0.1)
    assert not total.any()
