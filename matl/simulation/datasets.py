"""What hospitals in a simulation own: two public image sets, or rows of features from a file.

Digits are for tests and for speed, Fashion-MNIST for reporting; constants of the defence were
chosen on both (docs/adr). Nothing here downloads.
"""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from matl_common.errors import ConfigurationError

Float32Array = NDArray[np.float32]
Labels = NDArray[np.int64]

FASHION_FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")
FEATURES_SUFFIX: Final = ".safetensors"
_CLASSES: Final = 10
_DIGITS_TEST: Final = 500
_IDX_UBYTE: Final = 8
_PARTS: Final = ("train", "test", "public", "holdout")


class DataSet(StrEnum):
    """What the hospitals' images are, where they are not features from a file."""

    DIGITS = "digits"
    """1,797 images of 8 x 8 pixels, from scikit-learn."""
    FASHION = "fashion"
    """70,000 images of 28 x 28 pixels. For reporting."""


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows ``(n, d)`` with their classes ``(n,)``."""

    values: Float32Array
    labels: Labels


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Images, or features of images, as rows."""

    values: Float32Array
    """Shape ``(n, d)``; pixels lie in [0, 1]."""
    labels: Labels
    test_values: Float32Array
    test_labels: Labels
    classes: int = _CLASSES
    ordered: bool = False
    """Whether classes are grades, so that a far miss is worse than a near one."""
    public: Part | None = None
    """Shared by everybody; taken from the hospitals' images where there is none."""
    holdout: Part | None = None
    """The coordinator's, likewise."""
    sites: Labels | None = None
    """The number of the hospital, hence the camera, that each row comes from."""


def load_images(
    data_set: str, *, fashion: Path = FASHION_FOLDER, folder: Path | None = None
) -> Images:
    """Read a data set, or a file of features whose name is relative to ``folder``.

    A file of features holds the tensors ``train.values`` (n, d) and ``train.labels`` (n,), the
    same for ``test``, and where it has them for ``public``, ``holdout`` and ``train.sites``
    (n,); its metadata may say ``ordered: true``.

    Raises:
        ConfigurationError: there is no such set, or it is not what it should be.
    """
    if data_set.endswith(FEATURES_SUFFIX):
        return _features((folder or Path()) / data_set)
    match data_set:
        case DataSet.DIGITS:
            return _digits()
        case DataSet.FASHION:
            return _fashion(fashion)
        case _:
            raise ConfigurationError(
                f"data.set is {data_set[:80]!r}: choose {', '.join(DataSet)}, or name a file of "
                f"features that ends in {FEATURES_SUFFIX}"
            )


def store_features(path: Path, parts: Mapping[str, Part], *, sites: Labels, ordered: bool) -> None:
    """Write a file of features; ``parts`` are named train, test, public and holdout."""
    tensors: dict[str, NDArray[np.generic]] = {"train.sites": sites}
    for name, part in parts.items():
        tensors |= {f"{name}.values": part.values, f"{name}.labels": part.labels}
    safetensors.numpy.save_file(tensors, path, metadata={"ordered": str(ordered).lower()})


def _features(path: Path) -> Images:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            ordered = (file.metadata() or {}).get("ordered") == "true"
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(f"{path}: {error}; see data.set in the study") from None
    parts = {name: _part(tensors, name, path) for name in _PARTS if f"{name}.values" in tensors}
    if missing := {"train", "test"} - parts.keys():
        raise ConfigurationError(f"{path} has no tensors {', '.join(sorted(missing))}.values")
    train, test = parts["train"], parts["test"]
    sites = tensors.get("train.sites")
    if sites is not None and sites.shape != train.labels.shape:
        raise ConfigurationError(f"{path}: train.sites must have one number for each row")
    if len({part.values.shape[1] for part in parts.values()}) > 1:
        raise ConfigurationError(f"{path}: parts have rows of different lengths")
    return Images(
        train.values,
        train.labels,
        test.values,
        test.labels,
        classes=1 + max(int(part.labels.max()) for part in parts.values()),
        ordered=ordered,
        public=parts.get("public"),
        holdout=parts.get("holdout"),
        sites=None if sites is None else sites.astype(np.int64),
    )


def _part(tensors: Mapping[str, NDArray[np.generic]], name: str, path: Path) -> Part:
    values, labels = tensors[f"{name}.values"], tensors.get(f"{name}.labels")
    if labels is None or values.ndim != 2 or labels.shape != values.shape[:1] or not len(labels):
        raise ConfigurationError(
            f"{path}: {name}.values must be (n, d) and {name}.labels (n,), with n above 0"
        )
    if not np.isfinite(values).all() or labels.min() < 0:
        raise ConfigurationError(
            f"{path}: {name} has values that are not finite, or labels below 0"
        )
    return Part(values.astype(np.float32), labels.astype(np.int64))


def _digits() -> Images:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ConfigurationError(
            "digits come with scikit-learn: pip install scikit-learn"
        ) from None

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
