"""A public map that is not linear: how like each public image an image is.

Scholkopf, Smola and Mueller (1998): principal directions of these similarities are those of the
kernel's own space. It is measured and not offered.
"""

from functools import lru_cache
from typing import Final

import numpy as np

from benchmarks.utility.extraction import Float32Array, Images
from matl_common.vision.linear_head import PublicSpectrum, project, project_onto, public_spectrum

_DIRECTIONS: Final = 512
_WHITENING: Final = 0.5
_SCALE_ROWS: Final = 500


@lru_cache(maxsize=16)
def similarities(images: Images, public: Images, *, sharpness: float) -> Images:
    """Gaussian similarities ``(n, m)`` to each of m public images, with the labels kept.

    Args:
        images: features ``(n, d)``.
        public: features ``(m, d)``; only they say what is near.
        sharpness: of the kernel, over the median squared distance of public images.
    """
    landmarks = _rows(public, public)
    some = _squared_distances(landmarks[:_SCALE_ROWS], landmarks[:_SCALE_ROWS])
    median = float(np.median(some[np.triu_indices(len(some), k=1)]))
    distances = _squared_distances(_rows(images, public), landmarks)
    return Images(np.exp(-sharpness / median * distances), images.labels)


@lru_cache(maxsize=4)
def _spectrum(public: Images) -> PublicSpectrum:
    return public_spectrum(public.features)


def _rows(images: Images, public: Images) -> Float32Array:
    spectrum = _spectrum(public)
    dimensions = min(_DIRECTIONS, len(spectrum.singular))
    projection = project_onto(spectrum, dimensions=dimensions, whitening=_WHITENING)
    return project(images.features, projection).astype(np.float32)


def _squared_distances(rows: Float32Array, others: Float32Array) -> Float32Array:
    squares = np.square(rows).sum(axis=1)[:, None] + np.square(others).sum(axis=1)
    distances: Float32Array = np.maximum(squares - 2.0 * rows @ others.T, 0.0)
    return distances
