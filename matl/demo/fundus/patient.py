"""What makes one patient's eye unlike another's: geometry, pigment, light.

``draw_look`` chooses; ``view_through_pupil`` warps a painted base photograph into the
camera's frame. No lesion and no property of a camera is decided here.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from matl.demo.fundus.anatomy import FIELD, FloatImage

_MESH_CELLS: Final = 16
_ELASTIC_KNOTS: Final = 6
# Base pixels; 5 px are 90 micrometres, which bends the arcades but not the disc.
_ELASTIC_SIGMA_PX: Final = 5.0
_MOTTLE_KNOTS: Final = (7, 19)


@dataclass(frozen=True, slots=True)
class Look:
    """The appearance of one eye under one exposure.

    ``shift_px`` and ``elastic_px`` (shape ``(knots, knots, 2)``) are in base pixels;
    ``zoom`` above 1 shows less of the retina; ``stretch`` is the ratio of width to
    height; ``melanin`` runs from -1 (blond fundus) to 1 (dark).
    """

    left_eye: bool
    rotation_degrees: float
    zoom: float
    stretch: float
    shift_px: tuple[float, float]
    elastic_px: NDArray[np.float64]
    melanin: float
    yellowing: float
    exposure: float
    light_tilt: tuple[float, float]
    rim_shade: float
    rim_haze: float
    mottle: tuple[NDArray[np.float64], ...]


def draw_look(rng: np.random.Generator, *, left_eye: bool) -> Look:
    """Choose the appearance of one eye."""
    zoom = rng.uniform(1.05, 1.16)
    slack = FIELD.radius * (1 - 1 / zoom)
    away, turn = slack * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
    return Look(
        left_eye=left_eye,
        rotation_degrees=float(np.clip(rng.normal(0, 4), -10, 10)),
        zoom=zoom,
        stretch=float(np.clip(rng.normal(1, 0.015), 0.96, 1.04)),
        shift_px=(away * np.cos(turn), away * np.sin(turn)),
        elastic_px=rng.normal(0, _ELASTIC_SIGMA_PX, (_ELASTIC_KNOTS, _ELASTIC_KNOTS, 2)),
        melanin=float(np.clip(rng.normal(0, 0.45), -1, 1)),
        yellowing=float(abs(rng.normal(0, 0.5))),
        exposure=float(np.exp(rng.normal(0, 0.07))),
        light_tilt=(rng.normal(0, 0.08), rng.normal(0, 0.08)),
        rim_shade=float(rng.uniform(0.0, 0.22)),
        rim_haze=float(max(rng.normal(0.0, 0.1), 0)),
        mottle=tuple(rng.normal(0, 1, (knots, knots)) for knots in _MOTTLE_KNOTS),
    )


def view_through_pupil(painted: FloatImage, look: Look, *, size_px: int) -> FloatImage:
    """Warp the base photograph into a square view of ``size_px``, values 0 to 255.

    The view is centred on the field, whose radius becomes half the side times the zoom.
    """
    source = Image.fromarray(np.clip(painted + 0.5, 0, 255).astype(np.uint8))
    corners = _source_corners(look)
    edges = np.linspace(0, size_px, _MESH_CELLS + 1).round().astype(int)
    cells = [
        (
            (int(edges[i]), int(edges[j]), int(edges[i + 1]), int(edges[j + 1])),
            # Pillow's order: upper left, lower left, lower right, upper right.
            tuple(
                float(v)
                for row, column in ((j, i), (j + 1, i), (j + 1, i + 1), (j, i + 1))
                for v in corners[row, column]
            ),
        )
        for j in range(_MESH_CELLS)
        for i in range(_MESH_CELLS)
    ]
    view = source.transform(
        (size_px, size_px), Image.Transform.MESH, cells, Image.Resampling.BILINEAR
    )
    if look.left_eye:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(view, dtype=np.float32)


def light_on_retina(look: Look, *, size_px: int) -> FloatImage:
    """Return the patient's light and pigment, shape ``(size_px, size_px, 3)``, a factor."""
    axis = np.linspace(-1, 1, size_px, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    tilt = look.light_tilt[0] * x + look.light_tilt[1] * y
    light = look.exposure * (1 + tilt) * (1 - look.rim_shade * (x**2 + y**2) ** 2)
    coarse, fine = (_stretched(knots, size_px) for knots in look.mottle)
    mottle = 0.035 * coarse + 0.02 * fine
    # Melanin absorbs more at short wavelengths; an ageing lens takes the blue.
    absorbed = look.melanin * np.array([0.17, 0.24, 0.22]) + look.yellowing * np.array(
        [0, 0.04, 0.1]
    )
    pigment = np.exp(-absorbed).astype(np.float32)
    texture = 1 + mottle[..., None] * np.array([0.6, 1.2, 1.2], np.float32)
    factor: FloatImage = light[..., None] * texture * pigment
    return factor.astype(np.float32)


def _source_corners(look: Look) -> NDArray[np.float64]:
    """Where each corner of the mesh looks in the base, shape ``(cells+1, cells+1, 2)``."""
    axis = np.linspace(-1, 1, _MESH_CELLS + 1) * FIELD.radius / look.zoom
    x, y = np.meshgrid(axis * look.stretch**0.5, axis / look.stretch**0.5)
    turn = np.deg2rad(look.rotation_degrees)
    turned_x = np.cos(turn) * x - np.sin(turn) * y + FIELD.x + look.shift_px[0]
    turned_y = np.sin(turn) * x + np.cos(turn) * y + FIELD.y + look.shift_px[1]
    factor = (_MESH_CELLS + 1) / _ELASTIC_KNOTS
    bend = ndimage.zoom(look.elastic_px, (factor, factor, 1), order=3, mode="nearest")
    corners: NDArray[np.float64] = np.stack([turned_x, turned_y], axis=-1) + bend
    return corners


def _stretched(knots: NDArray[np.float64], size_px: int) -> FloatImage:
    """Interpolate a small grid of values smoothly over the view."""
    sheet = Image.fromarray(knots.astype(np.float32))
    return np.asarray(sheet.resize((size_px, size_px), Image.Resampling.BICUBIC), np.float32)
