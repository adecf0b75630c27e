"""Semi-synthetic fundus photographs for the demonstration.

One real, public-domain photograph gives the anatomy; every patient's look, every lesion
and every camera is drawn. Numbers measured on these images say nothing about patients.
"""

from matl.demo.fundus.camera import CAMERAS, Camera
from matl.demo.fundus.contact_sheet import contact_sheet
from matl.demo.fundus.lesions import Grade, Kind, Lesion, plan_lesions
from matl.demo.fundus.photograph import (
    OUTPUT_PX,
    RENDERER_VERSION,
    Eye,
    fundus_jpeg,
    lesions_of,
    photograph,
)

__all__ = [
    "CAMERAS",
    "OUTPUT_PX",
    "RENDERER_VERSION",
    "Camera",
    "Eye",
    "Grade",
    "Kind",
    "Lesion",
    "contact_sheet",
    "fundus_jpeg",
    "lesions_of",
    "photograph",
    "plan_lesions",
]
