"""Whole networks that are trained end to end (the ``full`` recipe), by name.

No network here has batch normalisation: it couples the samples of a batch, which breaks the
sensitivity that differential privacy rests on. Nothing here trains or draws noise.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import (
    Bottleneck,
    ResNet,
)

from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.tensors import ModelSchema, TensorSpec, parse_schema
from matl_common.vision.backbones import BackboneError, load_backbone, load_state

CLASSES = 5
_HIDDEN = 512
_GROUPS = 32
_RESNET50_LAYERS = [3, 4, 6, 3]


class PureBottleneck(Bottleneck):  # type: ignore[misc]  # untyped parent
    """torchvision's bottleneck with no operation in place.

    ``out += identity`` and in-place ReLU overwrite values that per-sample gradient hooks
    have still to read.
    """

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = functional.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        identity = x if self.downsample is None else self.downsample(x)
        return functional.relu(out + identity)


class DiabRetinoModel(nn.Module):
    """ResNet-50 for the five levels of retinopathy: 2048 → 512 → ReLU → Dropout → 5.

    Args:
        pretrained: load torchvision's ImageNet weights from this machine.
        dropout: 0.5 in the tutorial; 0 under differential privacy, where it only adds
            variance.
        group_norm: GroupNorm instead of BatchNorm throughout, as private training needs.
            ImageNet weights for it come from ``weights_file``; torchvision has none.
        weights_file: pretrained backbone weights with torchvision's names.

    Raises:
        BackboneError: pretrained weights are not on this machine, or do not fit.
    """

    def __init__(
        self,
        *,
        pretrained: bool = True,
        dropout: float = 0.5,
        group_norm: bool = False,
        weights_file: Path | None = None,
    ) -> None:
        super().__init__()
        self.backbone = _resnet50(
            pretrained=pretrained, group_norm=group_norm, weights_file=weights_file
        )
        features = Bottleneck.expansion * 512
        self.backbone.fc = nn.Sequential(
            nn.Linear(features, _HIDDEN),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(_HIDDEN, CLASSES),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.backbone(images)
        return logits


def _resnet50(*, pretrained: bool, group_norm: bool, weights_file: Path | None) -> ResNet:
    if not group_norm:
        if pretrained and weights_file is None:
            return _unfrozen(load_backbone("resnet50").module)
        network = ResNet(Bottleneck, _RESNET50_LAYERS)
    else:
        network = ResNet(PureBottleneck, _RESNET50_LAYERS, norm_layer=_group_norm)
        for block in network.modules():
            if isinstance(block, ResNet | PureBottleneck):
                block.relu = nn.ReLU(inplace=False)
    if not pretrained:
        return network
    if weights_file is None:
        raise BackboneError(
            "no ImageNet weights exist in torchvision for ResNet-50 with GroupNorm; give "
            "weights_file, or start with pretrained=False"
        )
    state = {name: t for name, t in load_state(weights_file).items() if not name.startswith("fc.")}
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise BackboneError("the weights file is for another architecture") from error
    if unexpected or set(missing) - {"fc.weight", "fc.bias"}:
        raise BackboneError("the weights file is for another architecture")
    return network


def _unfrozen(module: nn.Module) -> ResNet:
    assert isinstance(module, ResNet)  # narrows the type
    module.requires_grad_(requires_grad=True)
    return module


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(_GROUPS, channels), channels)


class SmallGroupNormNet(nn.Module):
    """Three strided convolutions with GroupNorm: for small images, on a processor."""

    def __init__(self, *, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs in (width, 2 * width, 4 * width):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(4, outputs),
                nn.ReLU(),
            ]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.mean(self.features(images), dim=(2, 3))
        logits: Tensor = self.classifier(hidden)
        return logits


def _build_resnet50_gn() -> nn.Module:
    return DiabRetinoModel(pretrained=False, dropout=0.0, group_norm=True)


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet50_gn": _build_resnet50_gn,
    "small_gn": SmallGroupNormNet,
}


def build_network(name: str) -> nn.Module:
    """An untrained network for the ``full`` recipe.

    Raises:
        ConfigurationError: unknown name.
    """
    if name not in NETWORKS:
        raise ConfigurationError(f"network {name!r} is unknown; use one of {', '.join(NETWORKS)}")
    return NETWORKS[name]()


def network_schema(network: nn.Module) -> ModelSchema:
    """The schema of a network as a model: every parameter, all trainable.

    Raises:
        InvalidInputError: the network has buffers, which would carry private statistics.
    """
    if any(True for _ in network.buffers()):
        raise InvalidInputError(
            "the network has buffers (batch normalisation?); use GroupNorm for private training"
        )
    return parse_schema(
        TensorSpec(name, tuple(parameter.shape)) for name, parameter in network.named_parameters()
    )


def network_tensors(network: nn.Module) -> Mapping[str, NDArray[np.float32]]:
    """Copies of the parameters by name, in schema order."""
    return {
        name: parameter.detach().cpu().numpy().astype(np.float32, copy=True)
        for name, parameter in network.named_parameters()
    }


def load_network(
    name: str, schema: ModelSchema, tensors: Mapping[str, NDArray[np.float32]]
) -> nn.Module:
    """Build a network and give it a model's values.

    Raises:
        InvalidInputError: the schema is not the network's, or a value is not finite.
    """
    network = build_network(name)
    if network_schema(network) != schema:
        raise InvalidInputError(f"the model is not a {name!r}: names, shapes or order differ")
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            values = torch.from_numpy(np.array(tensors[key], dtype=np.float32))
            if not bool(torch.isfinite(values).all()):
                raise InvalidInputError("the model holds a value that is not finite")
            parameter.copy_(values)
    return network
