"""The two public image sets that the evidence is measured on.

Digits are for tuning and for tests, Fashion-MNIST for reporting: the trust rule was
never fitted to it. Nothing here downloads.
"""

import gzip
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from matl_common.errors import ConfigurationError

Float32Array = NDArray[np.float32]
Labels = NDArray[np.int64]

FASHION_FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")
CLASSES: Final = 10
_DIGITS_TEST: Final = 500
_IDX_UBYTE: Final = 8


class DataSet(StrEnum):
    """What the hospitals' images are."""

    DIGITS = "digits"
    """1,797 images of 8 x 8 pixels, from scikit-learn. For tuning."""
    FASHION = "fashion"
    """70,000 images of 28 x 28 pixels. For reporting."""


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Images as rows of values in [0, 1], with their classes."""

    values: Float32Array
    """Shape ``(n, pixels)``."""
    labels: Labels
    test_values: Float32Array
    test_labels: Labels


def load_images(data_set: DataSet, *, fashion: Path = FASHION_FOLDER) -> Images:
    """Read a data set.

    Raises:
        ConfigurationError: Fashion-MNIST is not in its folder.
    """
    match data_set:
        case DataSet.DIGITS:
            return _digits()
        case DataSet.FASHION:
            return _fashion(fashion)


def _digits() -> Images:
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    values, labels = (values / 16.0).astype(np.float32), labels.astype(np.int64)
    # The set is ordered by writer; a fixed order mixes them, so that every part has all.
    order = np.random.default_rng(0).permutation(len(labels))
    values, labels = values[order], labels[order]
    return Images(
        values[_DIGITS_TEST:], labels[_DIGITS_TEST:], values[:_DIGITS_TEST], labels[:_DIGITS_TEST]
    )


def _fashion(folder: Path) -> Images:
    def read(part: str, kind: str) -> NDArray[np.uint8]:
        path = folder / f"{part}-{kind}-ubyte.gz"
        try:
            content = gzip.decompress(path.read_bytes())
        except FileNotFoundError:
            raise ConfigurationError(
                f"{path} is missing: apt-get install dataset-fashion-mnist, or pass --fashion DIR"
            ) from None
        if content[2] != _IDX_UBYTE:
            raise ConfigurationError(f"{path} is not an IDX file of bytes; fetch it again")
        shape = np.frombuffer(content, dtype=">u4", count=content[3], offset=4)
        return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * content[3]).reshape(shape)

    def images(part: str) -> Float32Array:
        raw = read(part, "images-idx3")
        return raw.reshape(len(raw), -1).astype(np.float32) / np.float32(255)

    return Images(
        images("train"),
        read("train", "labels-idx1").astype(np.int64),
        images("t10k"),
        read("t10k", "labels-idx1").astype(np.int64),
    )
