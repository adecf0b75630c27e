"""The scan for identifiers, before a hospital's data is prepared."""

import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from structlog.testing import capture_logs

from matl_common.vision.dataset import OnBadImage, read_labels
from matl_common.worker import Message
from matl_participant.metrics import Metrics
from matl_participant.reports import Reports
from matl_participant.training.phi import IdentifiersFoundError, look_for_identifiers
from matl_participant.training.requests import PhiScan
from matl_participant.training.worker import handle

CANARY = "Canarysson"
RECORD = "90817263"


def picture(**how: object) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (16, 16), (90, 40, 20)).save(buffer, "JPEG", **how)
    return buffer.getvalue()


class Hospital:
    """Three images with their labels, and what was told while they were looked at."""

    def __init__(self, folder: Path) -> None:
        self.images = folder / "images"
        self.labels = folder / "labels_deidentified.csv"
        self.state = folder / "state"
        self.told: list[Message] = []
        self.images.mkdir()
        self.state.mkdir()
        for number in range(3):
            (self.images / f"e{number}.jpg").write_bytes(picture())
        self.write_labels("e0", "e1", "e2")

    def write_labels(self, *names: str) -> None:
        self.labels.write_text("image_id,dr_level\n" + "".join(f"{name},1\n" for name in names))

    def look(self, policy: str = "refuse") -> Message:
        labels = read_labels(self.images, self.labels, on_bad_image=OnBadImage.SKIP)
        asked = PhiScan.model_validate({"policy": policy, "folder": self.state})
        self.told.clear()
        return look_for_identifiers(labels.records, self.labels, asked, self.told.append)


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path)


def test_clean_data_is_scanned_once_and_a_restart_only_computes_its_digest(
    hospital: Hospital,
) -> None:
    first = hospital.look()
    assert first["phi"]["findings"] == 0
    assert first["phi"]["not_tested"] == [
        "text burned into pixels: not asked for (--ocr); 3 images"
    ]
    assert hospital.told[-1] == {"scanned_percent": 100}
    assert hospital.look() == first
    assert hospital.told == []


def test_data_that_changed_is_scanned_again(hospital: Hospital) -> None:
    hospital.look()
    (hospital.images / "e1.jpg").write_bytes(picture(comment=CANARY.encode()))
    with pytest.raises(IdentifiersFoundError, match=r"e1\.jpg: comment: free text"):
        hospital.look()
    # A verdict that refuses is kept as well as any other.
    with pytest.raises(IdentifiersFoundError):
        hospital.look()
    assert hospital.told == []


def test_a_refusal_names_file_and_category_and_no_value(hospital: Hospital) -> None:
    exif = Image.Exif()
    exif[0x013B] = CANARY
    (hospital.images / f"{RECORD}.jpg").write_bytes(picture(exif=exif, comment=b"a" * 9))
    hospital.write_labels("e0", RECORD)
    with pytest.raises(IdentifiersFoundError) as caught:
        hospital.look()
    text = str(caught.value)
    assert "row 3, column 1 (image_id): other unique number or code" in text
    assert "#1~" in text
    assert "name of the file: other unique number or code" in text
    for kept in (text, *(path.read_bytes().decode("latin-1") for path in hospital.state.iterdir())):
        assert CANARY not in kept
        assert RECORD not in kept


def test_only_what_the_labels_list_is_looked_at(hospital: Hospital) -> None:
    (hospital.images / "other.jpg").write_bytes(picture(comment=CANARY.encode()))
    (hospital.images / "lost+found").mkdir(mode=0)
    assert hospital.look()["phi"]["findings"] == 0


def test_an_image_that_decodes_but_cannot_be_examined_is_refused_and_a_damaged_one_is_not(
    hospital: Hospital,
) -> None:
    (hospital.images / "e0.jpg").write_bytes(b"damaged")
    assert hospital.look()["phi"]["not_understood"] == 1
    gif = BytesIO()
    Image.new("L", (16, 16)).save(gif, "GIF", comment=CANARY)
    (hospital.images / "e1.jpg").write_bytes(gif.getvalue())
    with pytest.raises(IdentifiersFoundError, match="rows 3 of the labels file"):
        hospital.look()


def test_links_are_looked_through_as_training_reads_through_them(
    hospital: Hospital, tmp_path: Path
) -> None:
    table, image = tmp_path / "..data", hospital.images / "target.jpg"
    hospital.labels.rename(table)
    hospital.labels.symlink_to(table)
    (hospital.images / "e1.jpg").rename(image)
    (hospital.images / "e1.jpg").symlink_to(image)
    assert hospital.look()["phi"]["not_understood"] == 0
    image.write_bytes(picture(comment=CANARY.encode()))
    with pytest.raises(IdentifiersFoundError, match=r"e1\.jpg: comment: free text"):
        hospital.look()
    image.write_bytes(picture())
    hospital.write_labels("e0", RECORD)
    (hospital.images / f"{RECORD}.jpg").write_bytes(picture())
    with pytest.raises(IdentifiersFoundError, match="row 3, column 1"):
        hospital.look()


def test_a_labels_file_that_cannot_be_examined_is_refused(hospital: Hospital) -> None:
    misnamed = hospital.labels.with_suffix(".xlsx")
    hospital.labels.rename(misnamed)
    hospital.labels = misnamed
    with pytest.raises(IdentifiersFoundError, match="labels file cannot be examined"):
        hospital.look()
    assert hospital.look("warn")["phi"]["not_understood"] == 1


def test_a_warning_says_where_and_trains(hospital: Hospital) -> None:
    (hospital.images / "e1.jpg").write_bytes(picture(comment=CANARY.encode()))
    answer = hospital.look("warn")
    with capture_logs() as logs:
        Reports(Metrics()).data_checked({"images": 3, "skipped": 0} | answer)
    found = [each for each in logs if each["event"] == "participant.phi_found"]
    assert [(each["place"], each["category"]) for each in found] == [
        ("e1.jpg: comment", "free text")
    ]
    assert CANARY not in json.dumps(logs)


def test_a_damaged_verdict_is_none(hospital: Hospital) -> None:
    first = hospital.look()
    (hospital.state / "verdict.json").write_text("[" * 100_000)
    assert hospital.look() == first
    assert hospital.told


def test_the_worker_scans_before_it_computes(hospital: Hospital) -> None:
    (hospital.images / "e1.jpg").write_bytes(picture(comment=CANARY.encode()))
    request = {
        "job": "prepare",
        "recipe": "full",
        "data": {
            "data_dir": str(hospital.images),
            "labels_csv": str(hospital.labels),
            "image_size": 16,
            "backbone": "small_gn",
        },
        "phi": {"policy": "refuse", "folder": str(hospital.state)},
    }
    with pytest.raises(IdentifiersFoundError, match="comment"):
        handle(request, lambda _: None)
    prepared = handle(request | {"phi": None}, lambda _: None)
    assert (prepared["images"], "phi" in prepared) == (3, False)
