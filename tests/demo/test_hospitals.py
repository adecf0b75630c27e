"""The five hospitals: shares, labels, files, and folders that survive interruption."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from matl.demo.fundus import CAMERAS, Grade
from matl.demo.fundus.image_set import (
    STAMP_FILE,
    ForeignFolderError,
    ImageSet,
    is_finished,
    write_image_sets,
)
from matl.demo.hospitals import (
    CAREFUL,
    DEMO_PATIENTS,
    TUTORIAL_PATIENTS,
    HospitalSpec,
    MislabelKind,
    Mislabelling,
    Study,
    five_hospitals,
    plan_balanced,
    plan_hospital,
)
from matl_common.errors import ConfigurationError
from matl_common.ids import NodeId

SMALL = HospitalSpec(
    NodeId("hospital_a"), 12, (0.25, 0.25, 0.25, 0.25, 0.0), CAMERAS["birch"], two_eyed=2
)


class SetInterruptedError(Exception):
    """Stands for the user's Ctrl-C in the middle of a set."""


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def inodes(folder: Path) -> dict[str, tuple[int, int]]:
    stats = {p.name: p.stat() for p in (folder / "images").iterdir()}
    return {name: (s.st_ino, s.st_mtime_ns) for name, s in stats.items()}


def interrupt_after(images: int, image_set: ImageSet, out: Path) -> None:
    seen = 0

    def stop(_: ImageSet) -> None:
        nonlocal seen
        seen += 1
        if seen == images:
            raise SetInterruptedError

    with pytest.raises(SetInterruptedError):
        write_image_sets([image_set], out, workers=1, on_image=stop)


def wrong_labels(planned: ImageSet) -> int:
    return sum(image.grade != image.recorded_grade for image in planned.images)


@pytest.mark.parametrize(
    ("patients", "sizes"),
    [
        (DEMO_PATIENTS, [1000, 500, 300, 200, 100]),
        (TUTORIAL_PATIENTS, [10_000, 5_000, 3_000, 2_000, 1_000]),
        (110, [52, 26, 16, 11, 5]),
    ],
)
def test_hospitals_share_the_patients_as_10_5_3_2_1(patients: int, sizes: Sequence[int]) -> None:
    assert [h.patients for h in five_hospitals(patients)] == sizes


def test_too_few_patients_are_refused_with_the_minimum() -> None:
    with pytest.raises(ConfigurationError, match="105"):
        five_hospitals(104)


def test_each_hospital_has_its_own_label_mix_to_the_patient() -> None:
    hospitals = five_hospitals(DEMO_PATIENTS)
    assert len({h.label_mix for h in hospitals}) == 5
    for hospital in hospitals:
        assert sum(hospital.label_mix) == pytest.approx(1)
        counts = Counter(image.grade for image in plan_hospital(hospital, seed=7).images)
        for grade in Grade:
            expected = hospital.label_mix[grade] * hospital.patients
            assert abs(counts[grade] - expected) < 1


def test_each_hospital_has_its_own_camera_and_the_public_set_has_others() -> None:
    study = Study(seed=7, hospitals=five_hospitals(105))
    cameras = {s.name: {i.camera.name for i in s.images} for s in study.image_sets()}
    theirs = [cameras[h.node_id] for h in study.hospitals]
    assert all(len(c) == 1 for c in theirs)
    everywhere = set().union(*theirs)
    assert len(everywhere) == 5
    assert cameras["holdout"] == cameras["test"] == everywhere
    assert not cameras["public"] & everywhere


def test_only_hospital_e_is_careless() -> None:
    for hospital in five_hospitals(DEMO_PATIENTS):
        planned = plan_hospital(hospital, seed=7)
        if hospital.node_id == "hospital_e":
            assert all(i.recorded_grade == 4 - i.grade for i in planned.images)
        else:
            assert wrong_labels(planned) == 0


@pytest.mark.parametrize("kind", ["shift", "random"])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.35, 1.0])
def test_the_mislabelled_fraction_is_exact(fraction: float, kind: MislabelKind) -> None:
    spec = replace(SMALL, patients=200, two_eyed=0, mislabelling=Mislabelling(fraction, kind))
    assert wrong_labels(plan_hospital(spec, seed=1)) == round(fraction * 200)


def test_a_reversed_fraction_is_exact_and_spares_the_middle_grade() -> None:
    mix = (0.5, 0.0, 0.0, 0.0, 0.5)
    spec = replace(SMALL, patients=200, label_mix=mix, two_eyed=0)
    half = replace(spec, mislabelling=Mislabelling(0.5, "reverse"))
    assert wrong_labels(plan_hospital(half, seed=1)) == 100
    middle = replace(half, label_mix=(0.0, 0.0, 1.0, 0.0, 0.0))
    assert wrong_labels(plan_hospital(middle, seed=1)) == 0


def test_shifted_labels_move_up_one_and_wrap() -> None:
    spec = replace(SMALL, label_mix=(0.2,) * 5, mislabelling=Mislabelling(1.0, "shift"))
    for image in plan_hospital(spec, seed=1).images:
        assert image.recorded_grade == (image.grade + 1) % 5


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_outside_the_unit_interval_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigurationError, match="from 0 to 1"):
        Mislabelling(fraction, "random")
    with pytest.raises(ConfigurationError, match="from 0 to 1"):
        five_hospitals(105, two_eyed_fraction=fraction)


def test_mislabelling_changes_labels_and_no_image() -> None:
    careful = plan_hospital(replace(SMALL, mislabelling=CAREFUL), seed=5)
    careless = plan_hospital(replace(SMALL, mislabelling=Mislabelling(1.0, "shift")), seed=5)
    for one, other in zip(careful.images, careless.images, strict=True):
        assert replace(one, recorded_grade=Grade.NONE) == replace(other, recorded_grade=Grade.NONE)


def test_a_two_eyed_patient_has_two_images_one_grade_and_one_group_key() -> None:
    planned = plan_hospital(SMALL, seed=5)
    assert len(planned.images) == 14
    groups: dict[str, list[tuple[Grade, bool]]] = {}
    for image in planned.images:
        groups.setdefault(image.group_key, []).append((image.grade, image.eye.left))
    pairs = [eyes for eyes in groups.values() if len(eyes) == 2]
    assert len(groups) == 12
    assert len(pairs) == 2
    for (one_grade, one_left), (other_grade, other_left) in pairs:
        assert one_grade == other_grade
        assert one_left != other_left


def test_ids_are_distinct_across_the_study_and_say_nothing_of_order_or_grade() -> None:
    sets = Study(seed=7, hospitals=five_hospitals(DEMO_PATIENTS)).image_sets()
    images = [image for s in sets for image in s.images]
    ids = {image.image_id for image in images} | {image.group_key for image in images}
    assert len(ids) == 2 * len(images)
    first = sets[0].images
    values = [int(image.image_id, 16) for image in first]
    for other in (range(len(first)), [image.grade for image in first]):
        assert abs(np.corrcoef(np.argsort(np.argsort(values)), other)[0, 1]) < 0.12


@pytest.mark.parametrize("size", [0, 25, 200, 500])
def test_the_coordinators_sets_are_class_balanced_and_rightly_labelled(size: int) -> None:
    planned = plan_balanced("holdout", size, tuple(CAMERAS.values())[:5], seed=7)
    assert len(planned.images) == size
    assert wrong_labels(planned) == 0
    by_grade = Counter(image.grade for image in planned.images)
    by_pair = Counter((image.grade, image.camera.name) for image in planned.images)
    assert all(by_grade[grade] == size // 5 for grade in Grade)
    assert all(count <= -(-size // 25) for count in by_pair.values())


def test_no_patient_is_in_two_sets() -> None:
    sets = Study(seed=7, hospitals=five_hospitals(105)).image_sets()
    eyes = [image.eye for s in sets for image in s.images]
    assert len(set(eyes)) == len(eyes)


def test_the_files_are_the_same_whatever_the_number_of_workers(tmp_path: Path) -> None:
    planned = plan_hospital(SMALL, seed=5)
    for workers in (1, 2):
        write_image_sets([planned], tmp_path / str(workers), workers=workers)
    alone, pooled = (file_bytes(tmp_path / str(n)) for n in (1, 2))
    assert len(alone) == len(planned.images) + 2
    assert alone == pooled


def test_the_label_file_has_the_recorded_grade_of_every_image(tmp_path: Path) -> None:
    planned = plan_hospital(replace(SMALL, mislabelling=Mislabelling(1.0, "shift")), seed=5)
    write_image_sets([planned], tmp_path, workers=1)
    folder = tmp_path / "hospital_a"
    with (folder / "labels_deidentified.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image_id", "dr_level", "group_key"]
    assert {r["image_id"] for r in rows} == {p.stem for p in (folder / "images").iterdir()}
    assert [int(r["dr_level"]) for r in rows] == [i.recorded_grade for i in planned.images]


def test_a_finished_folder_is_not_written_again(tmp_path: Path) -> None:
    planned = plan_hospital(SMALL, seed=5)
    write_image_sets([planned], tmp_path, workers=1)
    before = inodes(tmp_path / "hospital_a")
    reported: list[str] = []
    write_image_sets([planned], tmp_path, workers=1, on_image=lambda s: reported.append(s.name))
    assert inodes(tmp_path / "hospital_a") == before
    assert reported == ["hospital_a"] * len(planned.images)


def test_another_spec_replaces_the_folder(tmp_path: Path) -> None:
    write_image_sets([plan_hospital(SMALL, seed=5)], tmp_path, workers=1)
    other = plan_hospital(SMALL, seed=6)
    write_image_sets([other], tmp_path, workers=1)
    assert is_finished(other, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["hospital_a"]


def test_the_digest_of_a_set_sees_labels_cameras_and_seeds() -> None:
    planned = plan_hospital(SMALL, seed=5)
    variants = [
        plan_hospital(SMALL, seed=6),
        plan_hospital(replace(SMALL, camera=CAMERAS["elm"]), seed=5),
        plan_hospital(replace(SMALL, mislabelling=Mislabelling(0.5, "shift")), seed=5),
        replace(planned, images=planned.images[::-1]),
    ]
    assert len({s.spec_digest for s in [planned, *variants]}) == 5


def test_an_interrupted_folder_is_invisible_and_then_completed(tmp_path: Path) -> None:
    planned = plan_hospital(SMALL, seed=5)
    interrupt_after(5, planned, tmp_path)
    assert not (tmp_path / "hospital_a").exists()
    partial = tmp_path / ".hospital_a.partial"
    kept = inodes(partial)
    assert len(kept) == 5
    torn = sorted((partial / "images").iterdir())[0]
    torn.write_bytes(torn.read_bytes()[:500])
    (partial / "images" / "stray.jpg").write_bytes(b"\xff\xd9")

    write_image_sets([planned], tmp_path, workers=1)
    write_image_sets([planned], tmp_path / "undisturbed", workers=1)
    after = inodes(tmp_path / "hospital_a")
    assert all(after[name] == kept[name] for name in kept if name != torn.name)
    assert file_bytes(tmp_path / "hospital_a") == file_bytes(tmp_path / "undisturbed/hospital_a")
    assert not partial.exists()


def test_what_an_interrupted_run_of_another_spec_left_is_not_used(tmp_path: Path) -> None:
    # The same ids under another camera: only the spec tells the files apart.
    interrupt_after(5, plan_hospital(replace(SMALL, camera=CAMERAS["elm"]), seed=5), tmp_path)
    planned = plan_hospital(SMALL, seed=5)
    write_image_sets([planned], tmp_path, workers=1)
    write_image_sets([planned], tmp_path / "undisturbed", workers=1)
    assert file_bytes(tmp_path / "hospital_a") == file_bytes(tmp_path / "undisturbed/hospital_a")


def test_an_interrupted_replacement_leaves_the_old_folder_whole(tmp_path: Path) -> None:
    old = plan_hospital(SMALL, seed=5)
    write_image_sets([old], tmp_path, workers=1)
    interrupt_after(3, plan_hospital(SMALL, seed=6), tmp_path)
    assert is_finished(old, tmp_path)


def test_a_folder_that_lost_an_image_is_completed(tmp_path: Path) -> None:
    planned = plan_hospital(SMALL, seed=5)
    write_image_sets([planned], tmp_path, workers=1)
    whole = file_bytes(tmp_path / "hospital_a")
    next((tmp_path / "hospital_a" / "images").iterdir()).unlink()
    assert not is_finished(planned, tmp_path)
    write_image_sets([planned], tmp_path, workers=1)
    assert file_bytes(tmp_path / "hospital_a") == whole


@pytest.mark.parametrize("stamp", [None, b"not json", b"[]"])
def test_a_folder_of_somebody_else_is_refused_and_left_alone(
    tmp_path: Path, stamp: bytes | None
) -> None:
    folder = tmp_path / "hospital_a"
    folder.mkdir()
    (folder / "thesis.txt").write_text("ten years of work")
    if stamp is not None:
        (folder / STAMP_FILE).write_bytes(stamp)
    with pytest.raises(ForeignFolderError, match="another"):
        write_image_sets([plan_hospital(SMALL, seed=5)], tmp_path, workers=1)
    assert (folder / "thesis.txt").read_text() == "ten years of work"


def test_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        write_image_sets([], tmp_path, workers=0)
