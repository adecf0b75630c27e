"""From an image file to a normalised tensor, and the views and augmentations of it.

Deterministic: every angle and flip is an argument. Decoding happens under limits, and a
file that cannot be decoded is a ``BadImageError`` that names no file.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from matl_common.errors import InvalidInputError, MatlError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STDDEV = (0.229, 0.224, 0.225)
MAX_ROTATION_DEGREES = 10.0
MAX_PIXELS = 64_000_000

_MEAN = np.array(IMAGENET_MEAN, dtype=np.float32)
_STDDEV = np.array(IMAGENET_STDDEV, dtype=np.float32)


class BadImageError(MatlError):
    """An image file is missing, is no image, is damaged, or is larger than allowed."""


@dataclass(frozen=True, slots=True)
class View:
    """One way of looking at a square image."""

    flipped: bool = False
    degrees: float = 0.0


VIEWS = (
    View(),
    View(flipped=True),
    View(degrees=MAX_ROTATION_DEGREES),
    View(flipped=True, degrees=-MAX_ROTATION_DEGREES),
    View(degrees=-MAX_ROTATION_DEGREES),
    View(flipped=True, degrees=MAX_ROTATION_DEGREES),
)
"""The deterministic views averaged by the ``head`` recipe, in order of use."""


def first_views(count: int) -> tuple[View, ...]:
    """The first ``count`` of ``VIEWS``.

    Raises:
        InvalidInputError: there are not so many.
    """
    if not 1 <= count <= len(VIEWS):
        raise InvalidInputError(f"views is {count}; it must lie between 1 and {len(VIEWS)}")
    return VIEWS[:count]


def augmentation(flip: float, rotation: float) -> View:
    """The tutorial's random flip and rotation of ±10°, from two uniforms in (0, 1]."""
    return View(flipped=flip <= 0.5, degrees=(2.0 * rotation - 1.0) * MAX_ROTATION_DEGREES)


def load_image(path: Path, *, image_size: int) -> Image.Image:
    """Decode a file to an RGB square of ``image_size`` pixels a side.

    Raises:
        BadImageError: the file cannot be read as an image of at most ``MAX_PIXELS``.
    """
    try:
        with Image.open(path) as image:
            # Opening reads the header only; nothing is decoded yet.
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(f"an image has more than {MAX_PIXELS} pixels")
            # JPEG can be decoded at 1/2, 1/4 or 1/8 of its size; never below twice ours.
            image.draft("RGB", (2 * image_size, 2 * image_size))
            square = image.convert("RGB").resize(
                (image_size, image_size), Image.Resampling.BILINEAR
            )
    except BadImageError:
        raise
    # Pillow's decoders raise whatever their format's parser raises on damaged bytes.
    except Exception as error:
        raise BadImageError("an image file is missing or cannot be decoded") from error
    return square


def render(square: Image.Image, view: View) -> Tensor:
    """The normalised tensor of one view, shape ``(3, image_size, image_size)``."""
    if view.flipped:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if view.degrees:
        square = square.rotate(view.degrees, resample=Image.Resampling.BILINEAR)
    pixels = np.asarray(square, dtype=np.float32) / np.float32(255.0)
    normalised = (pixels - _MEAN) / _STDDEV
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))
