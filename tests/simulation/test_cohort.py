"""Who owns which images, and which data sets there are."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matl.simulation.cohort import Cohort, hostile_of, split_images
from matl.simulation.datasets import DataSet, Images, Part, load_images, store_features
from matl.simulation.study import Study
from matl_common.errors import ConfigurationError


def study(**hospitals: Any) -> Study:
    return Study.model_validate(
        {
            "hospitals": {"count": 20, "alpha": 0.5} | hospitals,
            "hostile": {"attack": "sign_flip_1", "share": 0.45},
        }
    )


@pytest.fixture(scope="module")
def cohort(digits: Images) -> Cohort:
    return split_images(digits, study(), seed=3)


def test_the_parts_of_a_split_share_no_image_and_the_root_set_is_balanced(
    digits: Images, cohort: Cohort
) -> None:
    owned = np.concatenate(cohort.members)
    assert len(np.unique(owned)) == len(owned)
    assert np.bincount(cohort.root_labels).tolist() == [50] * 10
    held = {row.tobytes() for row in np.concatenate([cohort.root_values, cohort.public_values])}
    ours = {row.tobytes() for row in digits.values[owned]}
    # Two images of the set may be equal; hardly any are.
    assert len(held & ours) <= 2


def test_hospitals_differ_in_their_classes_only_where_the_split_is_not_iid(
    digits: Images, cohort: Cohort
) -> None:
    even = split_images(digits, study(alpha=float("inf")), seed=3)
    assert np.mean([max(shares) for shares in cohort.label_shares]) > 0.3
    assert np.mean([max(shares) for shares in even.label_shares]) < 0.25


def test_a_split_is_the_same_every_time_and_another_for_another_seed(
    digits: Images, cohort: Cohort
) -> None:
    again, other = (split_images(digits, study(), seed=seed) for seed in (3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(cohort.members, again.members, strict=True))
    assert not np.array_equal(cohort.members[0], other.members[0])


def test_with_a_larger_share_the_same_hospitals_are_hostile_and_others_too() -> None:
    shares = [study().model_copy() for _ in range(2)]
    few, many = (
        hostile_of(
            Study.model_validate(each.model_dump() | {"hostile": {"attack": "alie", "share": s}}),
            seed=1,
        )
        for each, s in zip(shares, (0.2, 0.6), strict=True)
    )
    assert (few.sum(), many.sum()) == (4, 12)
    assert (few <= many).all()


def test_features_come_back_as_they_were_stored_and_every_site_keeps_its_own(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)

    def part(n: int) -> Part:
        return Part(rng.normal(size=(n, 6)).astype(np.float32), np.arange(n, dtype=np.int64) % 3)

    train, holdout = part(90), part(60)
    sites = np.repeat(np.arange(2), 45)
    store_features(
        tmp_path / "f.safetensors",
        {"train": train, "test": part(30), "public": part(40), "holdout": holdout},
        sites=sites,
        ordered=True,
    )
    images = load_images("f.safetensors", folder=tmp_path)
    assert (images.classes, images.ordered) == (3, True)
    np.testing.assert_array_equal(images.values, train.values)
    wanted = Study.model_validate(
        {
            "data": {"set": "f.safetensors", "holdout_images": 60},
            "hospitals": {"patients": [40, 50], "by_site": True},
        }
    )
    cohort = split_images(images, wanted, seed=0)
    assert [set(sites[rows].tolist()) for rows in cohort.members] == [{0}, {1}]
    assert sorted(map(bytes, cohort.root_values)) == sorted(map(bytes, holdout.values))
    other = split_images(images, wanted, seed=1)
    assert not np.array_equal(cohort.members[0], other.members[0])


def test_what_is_wrong_with_a_data_set_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="apt-get install dataset-fashion-mnist"):
        load_images(DataSet.FASHION, fashion=tmp_path)
    with pytest.raises(ConfigurationError, match="choose digits, fashion"):
        load_images("mnist")
    with pytest.raises(ConfigurationError, match=r"none\.safetensors"):
        load_images("none.safetensors", folder=tmp_path)
    one = Part(np.ones((3, 2), dtype=np.float32), np.zeros(3, dtype=np.int64))
    path = tmp_path / "f.safetensors"
    store_features(path, {"train": one}, sites=np.zeros(3, dtype=np.int64), ordered=False)
    with pytest.raises(ConfigurationError, match=r"no tensors test\.values"):
        load_images("f.safetensors", folder=tmp_path)
    bad = Part(np.full((3, 2), np.nan, dtype=np.float32), np.zeros(3, dtype=np.int64))
    sites = np.zeros(3, dtype=np.int64)
    store_features(path, {"train": one, "test": bad}, sites=sites, ordered=False)
    with pytest.raises(ConfigurationError, match="not finite"):
        load_images("f.safetensors", folder=tmp_path)


def test_more_images_than_there_are_cannot_be_held_out(digits: Images) -> None:
    wanted = Study.model_validate({"data": {"holdout_images": 5000}})
    with pytest.raises(ConfigurationError, match="holdout_images is 5000"):
        split_images(digits, wanted, seed=0)
    with pytest.raises(ConfigurationError, match="which site"):
        split_images(digits, study(alpha=float("inf"), by_site=True), seed=0)


def test_idx_files_are_read_in_the_order_they_were_written(tmp_path: Path) -> None:
    pictures = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2)
    classes = np.array([7, 0, 9], dtype=np.uint8)
    for part in ("train", "t10k"):
        for kind, values in (("images-idx3", pictures), ("labels-idx1", classes)):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
            path = tmp_path / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(header + values.tobytes()))
    images = load_images(DataSet.FASHION, fashion=tmp_path)
    assert images.labels.tolist() == [7, 0, 9]
    assert images.values[2] == pytest.approx(np.array([8, 9, 10, 11]) / 255)
