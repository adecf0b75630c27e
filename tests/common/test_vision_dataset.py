from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from matl_common.errors import InvalidInputError, MatlError
from matl_common.vision.dataset import (
    BadRowError,
    IdentifyingColumnError,
    LabelsError,
    OnBadImage,
    RetinalDataset,
    RowDefect,
    dataset_digest,
    plain_view,
    read_labels,
)
from matl_common.vision.images import (
    IMAGENET_MEAN,
    IMAGENET_STDDEV,
    MAX_PIXELS,
    VIEWS,
    BadImageError,
    View,
    augmentation,
    first_views,
    load_image,
    render,
)

Folder = Callable[..., tuple[Path, Path]]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Write a labels file, and one small image for each id in ``images``."""

    def write(csv: str, *, images: tuple[str, ...] = ("eye1", "eye2", "eye3")) -> tuple[Path, Path]:
        image_dir = tmp_path / "images"
        image_dir.mkdir(exist_ok=True)
        rng = np.random.default_rng(5)
        for name in images:
            pixels = rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(image_dir / f"{name}.jpg")
        labels_csv = tmp_path / "labels.csv"
        labels_csv.write_text(csv)
        return image_dir, labels_csv

    return write


def read(paths: tuple[Path, Path], policy: OnBadImage = OnBadImage.SKIP):  # type: ignore[no-untyped-def]
    return read_labels(*paths, on_bad_image=policy)


def test_rows_become_records_and_a_group_is_one_patient(folder: Folder) -> None:
    labels = read(folder("image_id,dr_level,group_key\neye1,0,a\neye2,4,b\neye3,2,a\n"))
    assert [(r.row, r.level, r.patient) for r in labels.records] == [
        (2, 0, 0),
        (3, 4, 1),
        (4, 2, 0),
    ]
    assert labels.patients == 2
    assert labels.skipped == ()


def test_without_a_group_key_every_image_is_a_patient(folder: Folder) -> None:
    assert read(folder("image_id,dr_level\neye1,0\neye2,1\n")).patients == 2


@pytest.mark.parametrize(
    "column",
    [
        "patient_id",
        "Patient Name",
        "MRN",
        "ssn",
        "dob",
        "date-of-birth",
        "address",
        "E-Mail",
        "age",
    ],
)
def test_an_identifying_column_is_refused_by_its_name(folder: Folder, column: str) -> None:
    with pytest.raises(IdentifyingColumnError, match="identifies patients"):
        read(folder(f"image_id,dr_level,{column}\neye1,0,secret\n"))


def test_any_other_column_is_refused_without_repeating_it(folder: Folder) -> None:
    with pytest.raises(LabelsError, match="column 3") as caught:
        read(folder("image_id,dr_level,Jane Doe 1961\neye1,0,x\n"))
    assert "Jane" not in str(caught.value)


@pytest.mark.parametrize(
    "csv", ["", "image_id\neye1\n", "dr_level\n0\n", "image_id,dr_level,dr_level\neye1,0,0\n"]
)
def test_missing_or_repeated_columns_are_refused(folder: Folder, csv: str) -> None:
    with pytest.raises(LabelsError):
        read(folder(csv))


@pytest.mark.parametrize(
    ("line", "defect"),
    [
        ("../eye1,0,g", RowDefect.IMAGE_ID),
        ("/etc/passwd,0,g", RowDefect.IMAGE_ID),
        ("a..b,0,g", RowDefect.IMAGE_ID),
        (".hidden,0,g", RowDefect.IMAGE_ID),
        ("a\\b,0,g", RowDefect.IMAGE_ID),
        (",0,g", RowDefect.IMAGE_ID),
        ("eye2,5,g", RowDefect.LEVEL),
        ("eye2,-1,g", RowDefect.LEVEL),
        ("eye2,2.0,g", RowDefect.LEVEL),
        ("eye2,,g", RowDefect.LEVEL),
        ("eye2,mild,g", RowDefect.LEVEL),
        ("eye2,2,a b", RowDefect.GROUP_KEY),
        ("eye2,2,", RowDefect.GROUP_KEY),
        ("eye2,2", RowDefect.FIELDS),
        ("eye2,2,g,extra", RowDefect.FIELDS),
        ("eye1,2,g", RowDefect.DUPLICATE),
        ("absent,2,g", RowDefect.MISSING),
    ],
)
def test_each_defect_is_reported_by_row_and_fatal_on_request(
    folder: Folder, line: str, defect: RowDefect
) -> None:
    paths = folder(f"image_id,dr_level,group_key\neye1,0,g\n{line}\neye3,1,h\n")
    labels = read(paths)
    assert [(s.row, s.defect) for s in labels.skipped] == [(3, defect)]
    assert len(labels.records) == 2
    with pytest.raises(BadRowError, match=f"row 3 of the labels file: {defect.value}"):
        read(paths, OnBadImage.FAIL)


def test_a_link_out_of_the_folder_counts_as_missing(folder: Folder, tmp_path: Path) -> None:
    image_dir, labels_csv = folder("image_id,dr_level\neye1,0\nlinked,1\n")
    outside = tmp_path / "outside.jpg"
    Image.new("RGB", (8, 8)).save(outside)
    (image_dir / "linked.jpg").symlink_to(outside)
    labels = read((image_dir, labels_csv))
    assert [(s.row, s.defect) for s in labels.skipped] == [(3, RowDefect.MISSING)]


def test_a_file_without_a_usable_row_is_refused(folder: Folder) -> None:
    with pytest.raises(LabelsError, match=r"no usable row \(1 unusable\)"):
        read(folder("image_id,dr_level\nabsent,0\n"))


def test_an_absent_or_binary_labels_file_is_refused(folder: Folder, tmp_path: Path) -> None:
    image_dir, labels_csv = folder("image_id,dr_level\neye1,0\n")
    with pytest.raises(LabelsError, match="does not exist"):
        read((image_dir, tmp_path / "none.csv"))
    labels_csv.write_bytes(b"\xff\xfe\x00image")
    with pytest.raises(LabelsError):
        read((image_dir, labels_csv))


def test_the_digest_covers_labels_groups_and_pixels(folder: Folder) -> None:
    csv = "image_id,dr_level,group_key\neye1,0,a\neye2,4,b\n"
    paths = folder(csv)
    before = dataset_digest(read(paths).records)
    assert dataset_digest(read(folder(csv)).records) == before
    for changed in (csv.replace(",4,", ",3,"), csv.replace(",b", ",a")):
        assert dataset_digest(read(folder(changed)).records) != before
    paths = folder(csv)
    with (paths[0] / "eye2.jpg").open("ab") as file:
        file.write(b"\0")
    assert dataset_digest(read(paths).records) != before


def test_items_are_normalised_tensors_with_their_level(folder: Folder) -> None:
    paths = folder("image_id,dr_level\neye1,3\neye2,1\n")
    dataset = RetinalDataset(*paths, transform=plain_view, image_size=32)
    image, level = dataset[0]
    assert len(dataset) == 2
    assert level == 3
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.float32
    restored = image * torch.tensor(IMAGENET_STDDEV)[:, None, None]
    restored += torch.tensor(IMAGENET_MEAN)[:, None, None]
    assert restored.min() >= -1e-6
    assert restored.max() <= 1.0 + 1e-6


def test_the_default_transform_varies_and_ignores_seeds(folder: Folder) -> None:
    dataset = RetinalDataset(*folder("image_id,dr_level\neye1,3\n"), image_size=32)
    seen = []
    for _ in range(4):
        torch.manual_seed(0)
        seen.append(dataset[0][0])
    assert any(not torch.equal(seen[0], other) for other in seen[1:])


def test_a_damaged_image_is_named_by_row(folder: Folder) -> None:
    image_dir, labels_csv = folder("image_id,dr_level\neye1,3\neye2,0\n")
    (image_dir / "eye2.jpg").write_bytes((image_dir / "eye2.jpg").read_bytes()[:200])
    dataset = RetinalDataset(image_dir, labels_csv, image_size=16)
    with pytest.raises(BadRowError, match="row 3"):
        dataset[1]


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_bytes_that_are_no_image_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(BadImageError) as caught:
        load_image(path, image_size=16)
    assert "x.png" not in str(caught.value)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    side = int((1.05 * MAX_PIXELS) ** 0.5)
    Image.new("1", (side, side)).save(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(BadImageError, match="pixels"):
        load_image(path, image_size=16)


def test_views_are_distinct_and_the_first_is_the_image_itself() -> None:
    assert VIEWS[0] == View()
    assert len(set(VIEWS)) == len(VIEWS)
    square = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
    rendered = [render(square, view) for view in VIEWS]
    assert torch.equal(render(square, View(flipped=True)), rendered[0].flip(2))
    for number, one in enumerate(rendered):
        assert all(not torch.equal(one, other) for other in rendered[number + 1 :])


@pytest.mark.parametrize("count", [0, 7])
def test_a_number_of_views_that_does_not_exist_is_refused(count: int) -> None:
    with pytest.raises(InvalidInputError, match="views"):
        first_views(count)


def test_augmentation_stays_within_ten_degrees() -> None:
    assert augmentation(0.5, 1.0) == View(flipped=True, degrees=10.0)
    assert augmentation(0.51, 0.5) == View(flipped=False, degrees=0.0)
    assert augmentation(1.0, 1e-9).degrees == pytest.approx(-10.0, abs=1e-6)


def test_every_error_of_a_row_is_one_of_ours(folder: Folder) -> None:
    with pytest.raises(MatlError):
        read(folder('image_id,dr_level\n"eye1,0\n'))
