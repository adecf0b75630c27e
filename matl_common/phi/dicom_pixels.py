"""The picture in a DICOM file, as grey levels, for reading text in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from matl_common.phi.dicom import quietly
from matl_common.phi.ocr import MAX_PIXELS, UnreadableImageError

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

_CHANNELS: Final = (3, 4)


def grey_of(dataset: FileDataset) -> Image.Image:
    """The first frame, stretched to 8 bits.

    Raises:
        UnreadableImageError: nothing here decodes it, or it is too large.
    """
    try:
        with quietly():
            if int(dataset.Rows) * int(dataset.Columns) > MAX_PIXELS:
                raise UnreadableImageError
            frames = max(1, int(dataset.get("NumberOfFrames") or 1))
            pixels = np.asarray(dataset.pixel_array)
    except UnreadableImageError:
        raise
    # Whatever its many decoders raise on damaged bytes.
    except Exception as error:
        raise UnreadableImageError from error
    if frames > 1:
        pixels = pixels[0]
    if pixels.ndim == 3 and pixels.shape[-1] in _CHANNELS:
        pixels = pixels[..., :3].mean(axis=-1)
    if pixels.ndim != 2 or not pixels.size:
        raise UnreadableImageError
    levels = pixels.astype(np.float64)
    low, high = float(levels.min()), float(levels.max())
    stretched = (levels - low) * (255.0 / max(high - low, 1.0))
    return Image.fromarray(stretched.astype(np.uint8))
