"""Fundus cameras: what each does to the light of an eye, down to the JPEG bytes.

A camera is a value; two hospitals with different cameras photograph the same eye
differently. This module adds no lesion and no metadata.
"""

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageFilter

from matl.demo.fundus.anatomy import FloatImage

_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, slots=True)
class Camera:
    """The settings of one camera.

    ``gains`` multiply red, green and blue; ``gamma`` below 1 brightens the middle tones;
    ``saturation`` of 1 leaves colours alone; ``blur_px`` is a Gaussian's sigma, ``noise``
    the standard deviation in grey levels at mid-grey; ``field`` is the diameter of the
    round aperture as a fraction of the side, ``crop`` the fraction of the side cut from
    its top and bottom each; ``tab`` draws the notch some cameras put at the rim.
    """

    name: str
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 1.0
    saturation: float = 1.0
    blur_px: float = 0.4
    noise: float = 2.0
    vignette: float = 0.1
    jpeg_quality: int = 90
    field: float = 0.96
    crop: float = 0.0
    tab: bool = False
    background: float = 3.0


CAMERAS: Final[dict[str, Camera]] = {
    camera.name: camera
    for camera in (
        Camera("alder", gains=(0.95, 0.90, 0.95), jpeg_quality=92, tab=True),
        Camera(
            "birch",
            gains=(0.84, 0.84, 0.90),
            gamma=0.95,
            saturation=0.92,
            blur_px=0.5,
            noise=2.5,
            vignette=0.18,
            crop=0.07,
            jpeg_quality=88,
        ),
        Camera(
            "cedar",
            gains=(0.88, 0.76, 0.72),
            gamma=1.08,
            saturation=1.10,
            noise=3.0,
            vignette=0.25,
            field=0.92,
            background=6.0,
            jpeg_quality=85,
        ),
        Camera(
            "douglas",
            gains=(0.92, 0.93, 1.15),
            gamma=0.90,
            saturation=0.80,
            blur_px=0.7,
            noise=2.0,
            vignette=0.05,
            crop=0.1,
            field=0.99,
            jpeg_quality=82,
        ),
        Camera(
            "elm",
            gains=(0.76, 0.70, 0.72),
            gamma=0.96,
            blur_px=0.8,
            noise=4.0,
            vignette=0.30,
            field=0.94,
            tab=True,
            background=8.0,
            jpeg_quality=78,
        ),
        Camera("fir", gains=(0.90, 0.88, 0.98), gamma=0.97, saturation=0.95, field=0.97, crop=0.04),
        Camera(
            "ginkgo",
            gains=(0.90, 0.82, 0.72),
            saturation=1.05,
            blur_px=0.6,
            noise=3.0,
            vignette=0.2,
            field=0.93,
            jpeg_quality=84,
        ),
    )
}


def expose(
    view: FloatImage,
    light: FloatImage,
    camera: Camera,
    *,
    haze: float,
    rng: np.random.Generator,
) -> Image.Image:
    """Photograph a view of the retina, as the camera's sensor gives it.

    Args:
        view: shape ``(size, size, 3)``, values 0 to 255.
        light: shape of ``view``, the patient's light and pigment as a factor.
        haze: strength of the pale crescent that a small pupil puts at the rim.
        rng: draws the sensor's noise and the crescent's bearing.
    """
    size = view.shape[0]
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    squared = x**2 + y**2
    colour = view * light * np.asarray(camera.gains, np.float32)
    colour *= (1 - np.float32(camera.vignette) * squared)[..., None]
    colour = 255 * (np.clip(colour, 0, 255) / 255) ** np.float32(camera.gamma)
    grey = colour @ _LUMA
    colour = grey[..., None] + np.float32(camera.saturation) * (colour - grey[..., None])
    bearing = rng.uniform(0, 2 * np.pi)
    rim = np.clip(squared - 0.55, 0, None) * np.clip(
        x * np.float32(np.cos(bearing)) + y * np.float32(np.sin(bearing)), 0, None
    )
    colour += (np.float32(haze) * rim)[..., None] * (np.array([210, 215, 235], np.float32) - colour)
    colour *= _aperture(camera, size)[..., None]
    lit = _blurred(colour, camera.blur_px)
    grain = rng.standard_normal(lit.shape, dtype=np.float32)
    # Shot noise grows with the root of the light, on a floor of read noise.
    lit += grain * (camera.noise * (0.25 + 0.75 * np.sqrt(np.maximum(lit, 0) / 128)))
    lit += np.float32(camera.background)
    return Image.fromarray(np.clip(lit + 0.5, 0, 255).astype(np.uint8))


def encode_jpeg(photograph: Image.Image, camera: Camera) -> bytes:
    """Return the photograph as baseline JPEG with a JFIF header and nothing else."""
    buffer = io.BytesIO()
    photograph.save(buffer, format="JPEG", quality=camera.jpeg_quality)
    return buffer.getvalue()


def _aperture(camera: Camera, size: int) -> FloatImage:
    """The lit part of the frame, shape ``(size, size)``, 0 to 1."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    x, y = axis[None, :], axis[:, None]
    distance = np.hypot(x, y)
    radius = camera.field / 2
    inside = (radius - distance) * size
    if camera.tab:
        along, across = (x - y) * np.float32(0.7071), (x + y) * np.float32(0.7071)
        tab = np.minimum(radius + 0.03 - along, 0.022 - np.abs(across)) * size
        inside = np.maximum(inside, np.where(along > 0, tab, -1))
    lit = np.clip(inside + 0.5, 0, 1)
    lit *= np.clip((0.5 - camera.crop - np.abs(y)) * size + 0.5, 0, 1)
    return lit.astype(np.float32)


def _blurred(colour: FloatImage, sigma_px: float) -> FloatImage:
    quantised = Image.fromarray(np.clip(colour + 0.5, 0, 255).astype(np.uint8))
    return np.array(quantised.filter(ImageFilter.GaussianBlur(sigma_px)), dtype=np.float32)
