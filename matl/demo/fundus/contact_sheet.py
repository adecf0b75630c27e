"""A contact sheet of grades by cameras, for the eye of a clinician."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

from matl.demo.fundus.camera import CAMERAS, Camera
from matl.demo.fundus.lesions import Grade
from matl.demo.fundus.photograph import Eye, lesions_of, photograph

_MARGIN_PX: Final = 22


def contact_sheet(
    path: Path,
    *,
    study_seed: int = 7,
    cameras: Sequence[Camera] = tuple(CAMERAS.values())[:5],
    side_px: int = 300,
) -> None:
    """Write a PNG with one row a grade and one column a camera, every eye a different patient."""
    width = _MARGIN_PX + side_px * len(cameras)
    sheet = Image.new("RGB", (width, _MARGIN_PX + side_px * len(Grade)), "black")
    pen = ImageDraw.Draw(sheet)
    for column, camera in enumerate(cameras):
        left = _MARGIN_PX + column * side_px
        pen.text((left + 8, 5), f"camera {camera.name}", fill="white")
        for grade in Grade:
            patient = column * len(Grade) + grade
            eye = Eye(study_seed, source=0, patient=patient, left=patient % 2 == 1)
            shown = photograph(eye, lesions_of(eye, grade), camera)
            top = _MARGIN_PX + grade * side_px
            sheet.paste(shown.resize((side_px, side_px), Image.Resampling.LANCZOS), (left, top))
            pen.text((6, top + 8), str(int(grade)), fill="white")
    sheet.save(path)
