"""The one real photograph behind every synthetic one, and where its anatomy lies.

The base is the public-domain fundus photograph that scikit-image ships
(``skimage.data.retina``). This module owns its landmarks, its scale in micrometres and
the segmentation of its vessels, computed once per process. It draws nothing and knows
nothing of patients, grades or cameras.

Coordinates are ``(x, y)`` in pixels of the base reduced to ``BASE_PX``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeAlias

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.feature import hessian_matrix, hessian_matrix_eigvals
from skimage.measure import label
from skimage.morphology import remove_small_objects, skeletonize

FloatImage: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]

SOURCE_PX: Final = 1411
BASE_PX: Final = 640
_SCALE: Final = BASE_PX / SOURCE_PX


@dataclass(frozen=True, slots=True)
class Circle:
    """A landmark: centre and radius in base pixels."""

    x: float
    y: float
    radius: float

    def contains(self, x: float, y: float, *, times: float = 1.0) -> bool:
        """Tell whether the point lies within ``times`` the radius."""
        return (x - self.x) ** 2 + (y - self.y) ** 2 <= (times * self.radius) ** 2


# Measured by hand on the 1411-pixel photograph, a right-handed view with the disc on the left.
OPTIC_DISC: Final = Circle(214 * _SCALE, 654 * _SCALE, 97 * _SCALE)
FOVEA: Final = Circle(708 * _SCALE, 699 * _SCALE, 33 * _SCALE)
FIELD: Final = Circle(705 * _SCALE, 703 * _SCALE, 690 * _SCALE)

# The disc is about 1.5 mm across, the ruler by which graders size lesions (ETDRS report 10).
DISC_DIAMETER_UM: Final = 1500.0
PX_PER_UM: Final = 2 * OPTIC_DISC.radius / DISC_DIAMETER_UM

# scikit-image annotates nothing; these are the types of what is used of it.
_photograph: Final[Callable[[], NDArray[np.uint8]]] = skimage.data.retina
_hessian: Final[Callable[..., list[FloatImage]]] = hessian_matrix
_eigenvalues: Final[Callable[[list[FloatImage]], FloatImage]] = hessian_matrix_eigvals
_skeleton: Final[Callable[[Mask], Mask]] = skeletonize
_pieces: Final[Callable[..., NDArray[np.int64]]] = label

_VESSEL_SIGMAS_PX: Final = (1.5, 2.5, 3.5)
_VESSEL_THRESHOLD: Final = 0.035
_MINIMUM_VESSEL_PX: Final = 60
_MINIMUM_SEGMENT_PX: Final = 24


@dataclass(frozen=True, slots=True)
class VesselSegment:
    """An unbranched stretch of vessel, ordered from one end to the other.

    ``points`` has shape ``(n, 2)``, base pixels; ``radii`` has shape ``(n,)``, the half
    calibre at each point.
    """

    points: NDArray[np.float64]
    radii: NDArray[np.float64]


@cache
def base_image() -> FloatImage:
    """Return the base photograph, shape ``(BASE_PX, BASE_PX, 3)``, values 0 to 255.

    Read-only and shared. Outside the field (and the camera's orientation tab) the retina
    is continued by its nearest rim, so that a shifted view shows no second edge.
    """
    source = Image.fromarray(_photograph())
    small = source.resize((BASE_PX, BASE_PX), Image.Resampling.LANCZOS)
    pixels = np.asarray(small, dtype=np.float32)
    outside = ~_field_mask(times=0.985)
    nearest = ndimage.distance_transform_edt(outside, return_distances=False, return_indices=True)
    continued: FloatImage = pixels[nearest[0], nearest[1]]
    blurred = ndimage.gaussian_filter(continued, sigma=(6, 6, 0))
    continued[outside] = blurred[outside]
    continued.flags.writeable = False
    return continued


@cache
def vessel_mask() -> Mask:
    """Return where the larger vessels run, shape ``(BASE_PX, BASE_PX)``.

    Multi-scale ridges of the green channel, where haemoglobin absorbs most (Frangi et
    al., MICCAI 1998, without its blob term).
    """
    green = base_image()[..., 1]
    background = ndimage.gaussian_filter(green, 14)
    flat = ndimage.gaussian_filter(green, 0.5) / np.maximum(background, 20)
    ridge = np.zeros_like(flat)
    for sigma in _VESSEL_SIGMAS_PX:
        hessian = _hessian(flat, sigma=sigma, order="rc", use_gaussian_derivatives=False)
        larger, smaller = _eigenvalues(hessian)
        ridge = np.maximum(ridge, sigma**2 * np.clip(larger - np.abs(smaller), 0, None))
    mask = (ridge > _VESSEL_THRESHOLD) & _field_mask(times=0.97)
    kept: Mask = remove_small_objects(mask, max_size=_MINIMUM_VESSEL_PX)
    kept.flags.writeable = False
    return kept


@cache
def vessel_segments() -> tuple[VesselSegment, ...]:
    """Return the unbranched stretches of the vessel tree, widest first."""
    mask = vessel_mask()
    skeleton = _skeleton(mask.copy())
    half_calibre = ndimage.distance_transform_edt(mask)
    degree = ndimage.convolve(skeleton.astype(int), np.ones((3, 3), int), mode="constant") - 1
    pieces = _pieces(skeleton & (degree <= 2), connectivity=2)
    segments: list[VesselSegment] = []
    for rows, columns in ndimage.value_indices(pieces, ignore_value=0).values():
        if len(rows) < _MINIMUM_SEGMENT_PX:
            continue
        points = _in_order(np.column_stack([columns, rows]))
        x, y = points[:, 0], points[:, 1]
        segments.append(VesselSegment(points.astype(float), half_calibre[y, x]))
    return tuple(sorted(segments, key=lambda s: -float(np.median(s.radii))))


def in_retina(x: float, y: float, *, times: float = 0.9) -> bool:
    """Tell whether a point is within the photographed field and off the optic disc."""
    return FIELD.contains(x, y, times=times) and not OPTIC_DISC.contains(x, y, times=1.25)


def _field_mask(*, times: float) -> Mask:
    y, x = np.mgrid[:BASE_PX, :BASE_PX]
    mask: Mask = (x - FIELD.x) ** 2 + (y - FIELD.y) ** 2 <= (times * FIELD.radius) ** 2
    return mask


def _in_order(points: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order the pixels of an unbranched curve by walking it from one end."""
    remaining = {(int(x), int(y)) for x, y in points}
    ends = [p for p in sorted(remaining) if len(_neighbours(p, remaining)) == 1]
    here: tuple[int, int] | None = ends[0] if ends else min(remaining)
    path: list[tuple[int, int]] = []
    while here is not None:
        path.append(here)
        remaining.discard(here)
        here = min(_neighbours(here, remaining), default=None)
    return np.array(path, dtype=np.int64)


def _neighbours(point: tuple[int, int], among: set[tuple[int, int]]) -> list[tuple[int, int]]:
    x, y = point
    around = [(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy]
    # Straight steps before diagonal ones, or the walk skips the corners it should round.
    around.sort(key=lambda p: abs(p[0] - x) + abs(p[1] - y))
    return [p for p in around if p in among]
