"""One semi-synthetic fundus photograph as a function of who, which grade, which camera.

Three independent random streams make an eye: its look, its lesions and its exposure.
The same eye under another grade therefore differs by its lesions alone. Nothing here
writes a file or knows of hospitals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from matl.demo.fundus.camera import Camera, encode_jpeg, expose
from matl.demo.fundus.lesions import Grade, Lesion, plan_lesions
from matl.demo.fundus.painting import paint
from matl.demo.fundus.patient import draw_look, light_on_retina, view_through_pupil

OUTPUT_PX: Final = 400

# Part of every data set's identity: raise it whenever the same eye comes out differently.
RENDERER_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Eye:
    """Names one eye: the seed of the study, the source of the patients, the patient, the side.

    ``source`` numbers the hospital or set the patient belongs to.
    """

    study_seed: int
    source: int
    patient: int
    left: bool

    def streams(self) -> tuple[np.random.Generator, np.random.Generator, np.random.Generator]:
        """Return fresh generators for the look, the lesions and the exposure."""
        key = (self.source, self.patient, int(self.left))
        look, lesions, exposure = np.random.SeedSequence(self.study_seed, spawn_key=key).spawn(3)
        return (
            np.random.default_rng(look),
            np.random.default_rng(lesions),
            np.random.default_rng(exposure),
        )


def lesions_of(eye: Eye, grade: Grade) -> tuple[Lesion, ...]:
    """Return the lesions this eye has at ``grade``."""
    return plan_lesions(grade, eye.streams()[1])


def photograph(eye: Eye, lesions: Sequence[Lesion], camera: Camera) -> Image.Image:
    """Photograph an eye with the given lesions, ``OUTPUT_PX`` square."""
    look_rng, _, exposure_rng = eye.streams()
    look = draw_look(look_rng, left_eye=eye.left)
    view = view_through_pupil(paint(lesions).colour, look, size_px=OUTPUT_PX)
    light = light_on_retina(look, size_px=OUTPUT_PX)
    return expose(view, light, camera, haze=look.rim_haze, rng=exposure_rng)


def fundus_jpeg(eye: Eye, grade: Grade, camera: Camera) -> bytes:
    """Return the JPEG file of an eye at ``grade``; the same arguments give the same bytes."""
    return encode_jpeg(photograph(eye, lesions_of(eye, grade), camera), camera)
