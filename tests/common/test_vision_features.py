import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from matl_common.errors import ConfigurationError
from matl_common.ids import Digest, digest_of
from matl_common.vision.backbones import Backbone
from matl_common.vision.dataset import (
    BadRowError,
    Labels,
    LabelsError,
    OnBadImage,
    RowDefect,
    SkippedRow,
    dataset_digest,
    read_labels,
)
from matl_common.vision.features import (
    FeatureCache,
    FeatureSet,
    cache_key,
    cached_features,
    extract_features,
)
from matl_common.vision.images import first_views, load_image, render

SIZE = 16


class Pixels(nn.Module):
    """Features that are simple to recompute: the mean colour of the left half."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return images[:, :, :, : SIZE // 2].mean(dim=(2, 3))


def backbone() -> Backbone:
    return Backbone("pixels", Pixels(), 3, digest_of(b"pixels"))


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    """Three patients: the first has two images, of grades 1 and 3."""
    image_dir = tmp_path / "images"
    image_dir.mkdir()
    rng = np.random.default_rng(1)
    for name in "abcd":
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(
            image_dir / f"{name}.png"
        )
    (tmp_path / "labels.csv").write_text(
        "image_id,dr_level,group_key\na,3,p\nb,0,q\nc,1,p\nd,4,r\n"
    )
    return read(tmp_path)


def read(folder: Path) -> Labels:
    return read_labels(folder / "images", folder / "labels.csv", on_bad_image=OnBadImage.SKIP)


def extract(labels: Labels, policy: OnBadImage = OnBadImage.SKIP, views: int = 2) -> FeatureSet:
    return extract_features(
        labels,
        backbone(),
        dataset=dataset_digest(labels.records),
        views=first_views(views),
        image_size=SIZE,
        on_bad_image=policy,
        decoders=2,
        device=torch.device("cpu"),
    )


def cached(labels: Labels, using: Backbone, cache: FeatureCache) -> FeatureSet:
    return cached_features(
        labels,
        using,
        cache=cache,
        views=first_views(2),
        image_size=SIZE,
        on_bad_image=OnBadImage.SKIP,
    )


def test_a_patient_is_the_mean_over_views_and_images_with_the_worst_grade(labels: Labels) -> None:
    found = extract(labels)
    assert found.patients == 3
    assert found.images == 4
    assert list(found.labels) == [3, 0, 4]
    of_first = [
        Pixels()(render(load_image(labels.records[i].path, image_size=SIZE), view)[None])[0].numpy()
        for i in (0, 2)
        for view in first_views(2)
    ]
    assert np.allclose(found.features[0], np.mean(of_first, axis=0), atol=1e-6)


def test_a_damaged_image_is_skipped_by_row_or_stops_the_job(labels: Labels) -> None:
    labels.records[3].path.write_bytes(b"damaged")
    found = extract(labels)
    assert found.skipped == (SkippedRow(5, RowDefect.CORRUPT),)
    assert list(found.labels) == [3, 0]
    with pytest.raises(BadRowError, match="row 5"):
        extract(labels, OnBadImage.FAIL)


def test_a_data_set_of_damaged_images_is_refused(labels: Labels) -> None:
    for record in labels.records:
        record.path.write_bytes(b"damaged")
    with pytest.raises(LabelsError, match="no image"):
        extract(labels)


def test_the_cache_returns_what_was_extracted_without_the_backbone(
    labels: Labels, tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path / "cache")
    labels.records[1].path.write_bytes(b"damaged")
    first = cached(labels, backbone(), cache)
    using = backbone()
    second = cached(labels, using, cache)
    assert isinstance(using.module, Pixels)
    assert using.module.calls == 0
    assert np.array_equal(first.features, second.features)
    assert np.array_equal(first.labels, second.labels)
    assert replace(first, features=second.features, labels=second.labels) == second


def test_the_cache_is_readable_by_its_owner_only(labels: Labels, tmp_path: Path) -> None:
    cached(labels, backbone(), FeatureCache(tmp_path / "cache"))
    (file,) = (tmp_path / "cache").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_changed_data_is_extracted_again(labels: Labels, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache")
    before = cached(labels, backbone(), cache)
    Image.new("RGB", (20, 20), (255, 0, 0)).save(labels.records[1].path)
    after = cached(labels, backbone(), cache)
    assert before.dataset != after.dataset
    assert not np.array_equal(before.features, after.features)


def test_a_damaged_cache_file_is_extracted_again(labels: Labels, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache")
    first = cached(labels, backbone(), cache)
    (file,) = (tmp_path / "cache").iterdir()
    for content in (b"", b"junk" * 50, file.read_bytes()[:-3]):
        file.write_bytes(content)
        assert np.array_equal(cached(labels, backbone(), cache).features, first.features)


def test_every_input_changes_the_key() -> None:
    inputs: Mapping[str, object] = {
        "dataset": Digest("a" * 64),
        "backbone": "resnet50",
        "weights": Digest("b" * 64),
        "views": 2,
        "image_size": 224,
    }
    other = {
        "dataset": Digest("c" * 64),
        "backbone": "efficientnet_lite0",
        "weights": Digest("d" * 64),
        "views": 3,
        "image_size": 96,
    }
    keys = {cache_key(**{**inputs, name: value}) for name, value in other.items()}  # type: ignore[arg-type]
    assert len(keys | {cache_key(**inputs)}) == 6  # type: ignore[arg-type]


def test_the_longest_unused_features_make_room(labels: Labels, tmp_path: Path) -> None:
    features = extract(labels)
    size = FeatureCache(tmp_path / "probe")
    size.store(digest_of(b"probe"), features)
    (file,) = (tmp_path / "probe").iterdir()
    cache = FeatureCache(tmp_path / "cache", max_bytes=2 * file.stat().st_size)
    keys = [digest_of(bytes([number])) for number in range(3)]
    for age, key in zip((300, 200), keys, strict=False):
        cache.store(key, features)
        path = tmp_path / "cache" / f"{key}.features.safetensors"
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert cache.load(keys[0]) is not None  # used now, so that the second is the oldest
    cache.store(keys[2], features)
    assert [cache.load(key) is not None for key in keys] == [True, False, True]


def test_features_larger_than_the_cache_are_refused(labels: Labels, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="raise its limit"):
        FeatureCache(tmp_path / "cache", max_bytes=10).store(digest_of(b"x"), extract(labels))


def test_progress_ends_at_the_number_of_images(labels: Labels) -> None:
    told: list[tuple[int, int]] = []
    extract_features(
        labels,
        backbone(),
        dataset=dataset_digest(labels.records),
        views=first_views(1),
        image_size=SIZE,
        on_bad_image=OnBadImage.SKIP,
        decoders=1,
        device=torch.device("cpu"),
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(4, 4)]
