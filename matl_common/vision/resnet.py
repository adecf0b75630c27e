"""ResNet-50 for the ``full`` recipe.

Apart from ``heads``, since importing torchvision costs as much as importing torch: a worker that
trains or judges another network does not pay for it.
"""

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import Bottleneck, ResNet

from matl_common.vision.backbones import BackboneError, load_backbone, load_state
from matl_common.vision.dataset import CLASSES

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
