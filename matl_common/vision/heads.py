"""Whole networks that are trained end to end (the ``full`` recipe), by name.

No network here has batch normalisation: it couples the samples of a batch, which breaks the
sensitivity that differential privacy rests on. Nothing here trains or draws noise.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.tensors import ModelSchema, TensorSpec, parse_schema
from matl_common.vision.dataset import CLASSES


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
    from matl_common.vision.resnet import DiabRetinoModel

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
