"""The semi-synthetic photographs: what is drawn, where, and that it is always the same."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from matl.demo.fundus import (
    CAMERAS,
    OUTPUT_PX,
    Eye,
    Grade,
    Kind,
    contact_sheet,
    fundus_jpeg,
    lesions_of,
    photograph,
)
from matl.demo.fundus.anatomy import (
    BASE_PX,
    FIELD,
    FOVEA,
    OPTIC_DISC,
    PX_PER_UM,
    base_image,
    vessel_mask,
    vessel_segments,
)
from matl.demo.fundus.painting import paint

EYES = [Eye(study_seed=3, source=1, patient=p, left=p % 2 == 0) for p in range(12)]
ALDER, ELM = CAMERAS["alder"], CAMERAS["elm"]
ALLOWED = {
    Grade.NONE: set(),
    Grade.MILD: {Kind.MICROANEURYSM},
    Grade.MODERATE: {Kind.MICROANEURYSM, Kind.DOT_HAEMORRHAGE, Kind.HARD_EXUDATE},
    Grade.SEVERE: set(Kind) - {Kind.NEW_VESSELS, Kind.PRERETINAL_HAEMORRHAGE},
    Grade.PROLIFERATIVE: set(Kind) - {Kind.VENOUS_BEADING, Kind.FLAME_HAEMORRHAGE},
}
HAEMORRHAGES = {Kind.DOT_HAEMORRHAGE, Kind.BLOT_HAEMORRHAGE, Kind.FLAME_HAEMORRHAGE}


def marker_segments(jpeg: bytes) -> list[int]:
    """Return the marker bytes of the segments before the scan (ITU T.81, annex B)."""
    assert jpeg[:2] == b"\xff\xd8"
    markers, at = [], 2
    while jpeg[at + 1] != 0xDA:
        assert jpeg[at] == 0xFF
        markers.append(jpeg[at + 1])
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return markers


def test_the_disc_is_the_brightest_landmark_and_the_fovea_the_darkest() -> None:
    green = base_image()[..., 1]
    y, x = np.mgrid[:BASE_PX, :BASE_PX]

    def mean_within(cx: float, cy: float, radius: float) -> float:
        return float(green[(x - cx) ** 2 + (y - cy) ** 2 <= radius**2].mean())

    retina = mean_within(FIELD.x, FIELD.y, FIELD.radius)
    assert mean_within(OPTIC_DISC.x, OPTIC_DISC.y, OPTIC_DISC.radius) > 1.5 * retina
    assert mean_within(FOVEA.x, FOVEA.y, FOVEA.radius) < 0.75 * retina


def test_the_vessels_are_a_thin_tree_darker_than_their_surroundings() -> None:
    mask = vessel_mask()
    green = base_image()[..., 1]
    assert 0.02 < mask.mean() < 0.12
    assert green[mask].mean() < green[~mask].mean()


def test_a_vessel_segment_is_an_unbroken_walk_along_the_vessels() -> None:
    segments = vessel_segments()
    assert len(segments) > 30
    for segment in segments:
        steps = np.abs(np.diff(segment.points, axis=0)).max(axis=1)
        assert steps.max() == 1
        assert vessel_mask()[
            segment.points[:, 1].astype(int), segment.points[:, 0].astype(int)
        ].all()


def test_the_same_eye_grade_and_camera_give_the_same_bytes() -> None:
    for grade in Grade:
        assert fundus_jpeg(EYES[0], grade, ALDER) == fundus_jpeg(EYES[0], grade, ALDER)


def test_another_seed_source_patient_side_or_camera_gives_another_image() -> None:
    eye = Eye(study_seed=3, source=1, patient=0, left=True)
    others = [
        Eye(study_seed=4, source=1, patient=0, left=True),
        Eye(study_seed=3, source=2, patient=0, left=True),
        Eye(study_seed=3, source=1, patient=1, left=True),
        Eye(study_seed=3, source=1, patient=0, left=False),
    ]
    images = {fundus_jpeg(e, Grade.NONE, ALDER) for e in [eye, *others]}
    images.add(fundus_jpeg(eye, Grade.NONE, ELM))
    assert len(images) == 6


def test_an_eye_without_retinopathy_is_the_lesion_free_photograph() -> None:
    for eye in EYES[:4]:
        assert lesions_of(eye, Grade.NONE) == ()
        bare = np.asarray(photograph(eye, (), ALDER))
        healthy = np.asarray(photograph(eye, lesions_of(eye, Grade.NONE), ALDER))
        mild = np.asarray(photograph(eye, lesions_of(eye, Grade.MILD), ALDER))
        assert np.array_equal(bare, healthy)
        assert not np.array_equal(bare, mild)


def test_painting_changes_no_pixel_without_a_lesion_and_never_the_shared_base() -> None:
    before = base_image().copy()
    for grade in Grade:
        canvas = paint(lesions_of(EYES[1], grade))
        untouched = canvas.cover == 0
        assert np.array_equal(canvas.colour[untouched], before[untouched])
    assert np.array_equal(base_image(), before)


def test_each_grade_has_the_lesions_that_define_it_and_no_others() -> None:
    for eye in EYES:
        for grade in Grade:
            kinds = Counter(lesion.kind for lesion in lesions_of(eye, grade))
            assert set(kinds) <= ALLOWED[grade]
            if grade >= Grade.MILD:
                assert kinds[Kind.MICROANEURYSM] >= 5
            if grade is Grade.MODERATE:
                assert kinds[Kind.DOT_HAEMORRHAGE] >= 5
                assert kinds[Kind.HARD_EXUDATE] > 0
            if grade is Grade.SEVERE:
                assert kinds[Kind.COTTON_WOOL_SPOT] >= 3
                assert kinds[Kind.VENOUS_BEADING] > 0
            if grade is Grade.PROLIFERATIVE:
                assert kinds[Kind.NEW_VESSELS] > 0


def test_severe_eyes_bleed_in_all_four_quadrants() -> None:
    for eye in EYES:
        bleeding = Counter(
            (lesion.x > FIELD.x, lesion.y > FIELD.y)
            for lesion in lesions_of(eye, Grade.SEVERE)
            if lesion.kind in HAEMORRHAGES
        )
        assert len(bleeding) == 4
        assert min(bleeding.values()) >= 5


def test_lesions_stay_on_the_retina_and_off_the_disc_save_new_vessels_there() -> None:
    at_disc = 0
    for eye in EYES:
        for grade in Grade:
            for lesion in lesions_of(eye, grade):
                assert FIELD.contains(lesion.x, lesion.y, times=0.9)
                on_disc = OPTIC_DISC.contains(lesion.x, lesion.y)
                assert not on_disc or lesion.kind is Kind.NEW_VESSELS
                at_disc += on_disc
    assert at_disc > 0


def test_microaneurysms_are_small_and_near_the_posterior_pole() -> None:
    for eye in EYES:
        for lesion in lesions_of(eye, Grade.MILD):
            assert 2 * lesion.size_px / PX_PER_UM <= 125
            away = np.hypot(lesion.x - FOVEA.x, lesion.y - FOVEA.y) / PX_PER_UM
            assert away <= 4000.5


def test_the_area_under_lesions_grows_with_the_grade() -> None:
    def mean_area(grade: Grade) -> float:
        return float(np.mean([paint(lesions_of(e, grade)).lesion_area_mm2 for e in EYES]))

    areas = [mean_area(grade) for grade in Grade]
    assert areas[0] == 0
    assert all(np.diff(areas) > 0)


def test_files_decode_to_the_promised_size_and_carry_no_metadata() -> None:
    for camera in CAMERAS.values():
        jpeg = fundus_jpeg(EYES[2], Grade.PROLIFERATIVE, camera)
        markers = marker_segments(jpeg)
        assert markers[0] == 0xE0
        assert not [m for m in markers[1:] if 0xE0 <= m <= 0xEF or m == 0xFE]
        image = Image.open(io.BytesIO(jpeg))
        image.load()
        assert image.size == (OUTPUT_PX, OUTPUT_PX)
        assert image.mode == "RGB"
        assert not image.getexif()


def test_the_frame_outside_the_aperture_is_dark_and_the_retina_is_not() -> None:
    for camera in CAMERAS.values():
        pixels = np.asarray(photograph(EYES[3], (), camera)).astype(float)
        assert pixels[:12, :12].mean() < 20
        middle = pixels[OUTPUT_PX // 2 - 40 :, :][:80]
        assert middle[..., 0].mean() > 80
        assert middle[..., 0].mean() > middle[..., 1].mean() > middle[..., 2].mean() * 0.8


def test_the_contact_sheet_shows_every_grade_under_every_camera(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("sheet") / "sheet.png"
    contact_sheet(path, cameras=(ALDER, ELM), side_px=60)
    sheet = np.asarray(Image.open(path)).astype(float)
    assert sheet.shape[0] - sheet.shape[1] == 3 * 60
    for grade in Grade:
        for column in range(2):
            top, left = sheet.shape[0] - 60 * (5 - grade), sheet.shape[1] - 60 * (2 - column)
            assert sheet[top + 25 : top + 35, left + 25 : left + 35].mean() > 40
