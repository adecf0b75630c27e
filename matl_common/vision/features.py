"""Features of a hospital's patients: extracted once, averaged per patient, cached on disk.

One row per patient: the backbone's output averaged over the deterministic views and over
the patient's images, with the patient's worst level as label. The cache is patient data:
readable by its owner only, bounded in size, written whole or not at all. Nothing here is
private in the differential sense, and nothing here leaves the hospital.

Several processes may share the backbone's work: each runs whole batches, the same ones that
one process would run, and the first puts the rows together in the order of the records. So
the features do not depend on how many processes there were.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from PIL import Image

from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError
from matl_common.ids import Digest, digest_of
from matl_common.vision.backbones import Backbone
from matl_common.vision.dataset import (
    Labels,
    LabelsError,
    OnBadImage,
    Record,
    RowDefect,
    SkippedRow,
    bad_row,
    dataset_digest,
)
from matl_common.vision.images import BadImageError, View, load_image, render

_LOG = logging.getLogger(__name__)
_SUFFIX = ".features.safetensors"
_FORMAT = 1
_BATCH_IMAGES = 16

Progress = Callable[[int, int], None]
Extract = Callable[[Digest, Digest], "FeatureSet"]
"""From the digest of a data set and the cache's key to features that are stored under it."""


class Team(Protocol):
    """The processes that extract features together, as one of them sees them."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def gather(self, values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Everybody's arrays, of one shape, in order of rank; in all but the first, none."""


class _Alone:
    """A team of one."""

    rank, size = 0, 1

    def gather(self, values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Nobody else's."""
        return [values]


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """What the ``head`` recipe trains on. Never leaves the hospital.

    Attributes:
        features: float32, shape (patients, feature_dim).
        labels: int64, shape (patients,).
        images: how many images went in.
        skipped: the rows that did not, in order of row.
        dataset: digest of the data set the features came from.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    images: int
    skipped: tuple[SkippedRow, ...]
    dataset: Digest

    @property
    def patients(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class FeatureCache:
    """A folder of extracted features, the longest unused removed first.

    Attributes:
        folder: created if absent, for its owner only.
        max_bytes: bound on all files together.
    """

    folder: Path
    max_bytes: int = 4 << 30

    def load(self, key: Digest) -> FeatureSet | None:
        """The features stored under ``key``; a damaged file counts as absent."""
        path = self._path(key)
        try:
            with safetensors.safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
            found = _from_file(metadata, safetensors.numpy.load_file(path))
            os.utime(path)
        except FileNotFoundError:
            return None
        except (safetensors.SafetensorError, KeyError, ValueError):
            _LOG.warning("a damaged feature cache file was removed")
            path.unlink(missing_ok=True)
            return None
        return found

    def store(self, key: Digest, features: FeatureSet) -> None:
        """Write durably, then make room.

        Raises:
            ConfigurationError: the features alone are larger than the cache may be.
        """
        content = _to_bytes(features)
        if len(content) > self.max_bytes:
            raise ConfigurationError(
                f"the features need {len(content)} bytes and the cache may hold "
                f"{self.max_bytes}; raise its limit"
            )
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(self._path(key), [content])
        self._make_room(keep=self._path(key))

    def _make_room(self, *, keep: Path) -> None:
        files = [(path.stat(), path) for path in self.folder.glob(f"*{_SUFFIX}")]
        excess = sum(stat.st_size for stat, _ in files) - self.max_bytes
        for stat, path in sorted(files, key=lambda item: item[0].st_mtime_ns):
            if excess <= 0:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                excess -= stat.st_size

    def _path(self, key: Digest) -> Path:
        return self.folder / f"{key}{_SUFFIX}"


def cache_key(
    *, dataset: Digest, backbone: str, weights: Digest, views: int, image_size: int
) -> Digest:
    """Names the features that these inputs give; ``weights`` is the backbone's digest."""
    parts = [_FORMAT, dataset, backbone, weights, views, image_size]
    return digest_of(json.dumps(parts).encode())


def cached_features(
    labels: Labels,
    backbone: Backbone,
    *,
    cache: FeatureCache,
    views: Sequence[View],
    image_size: int,
    on_bad_image: OnBadImage,
    decoders: int = 2,
    device: torch.device | None = None,
    progress: Progress | None = None,
    extract: Extract | None = None,
) -> FeatureSet:
    """Read the features from the cache, or extract and store them.

    Args:
        labels, backbone, views, image_size, decoders, device: as in ``extract_features``.
        cache: where they are looked for, and stored.
        on_bad_image: whether a damaged image leaves its patient out or ends the job.
        progress: told how many images are done, and of how many.
        extract: extracts and stores them in the place of this process.

    Raises:
        BadRowError: an image is damaged and ``on_bad_image`` is ``FAIL``.
        LabelsError: no image can be decoded.
    """
    dataset = dataset_digest(labels.records)
    key = cache_key(
        dataset=dataset,
        backbone=backbone.name,
        weights=backbone.weights_digest,
        views=len(views),
        image_size=image_size,
    )
    found = cache.load(key)
    if found is not None and (on_bad_image is OnBadImage.SKIP or not found.skipped):
        return found
    if extract is not None:
        return extract(dataset, key)
    features = extract_features(
        labels,
        backbone,
        dataset=dataset,
        views=views,
        image_size=image_size,
        on_bad_image=on_bad_image,
        decoders=decoders,
        device=device or torch.device("cpu"),
        progress=progress,
    )
    cache.store(key, features)
    return features


def extract_features(
    labels: Labels,
    backbone: Backbone,
    *,
    dataset: Digest,
    views: Sequence[View],
    image_size: int,
    on_bad_image: OnBadImage,
    decoders: int,
    device: torch.device,
    team: Team | None = None,
    progress: Progress | None = None,
) -> FeatureSet:
    """Run every image through the backbone; memory is bounded by one batch.

    Args:
        team: the processes that share the work, of which this is the first; every other one
            calls ``help_extract`` with the same arguments. This process alone if not given.

    Raises:
        BadRowError, LabelsError: as ``cached_features``.
    """
    sums = np.zeros((labels.patients, backbone.feature_dim), dtype=np.float64)
    counts = np.zeros(labels.patients, dtype=np.int64)
    levels = np.zeros(labels.patients, dtype=np.int64)
    skipped = list(labels.skipped)
    done = 0
    for batch, rows in _computed(
        labels.records,
        backbone,
        views=views,
        image_size=image_size,
        decoders=decoders,
        device=device,
        team=team or _Alone(),
    ):
        for record, (is_decoded, *_), row in zip(batch, rows, rows[:, 1:], strict=False):
            if is_decoded:
                sums[record.patient] += row
                counts[record.patient] += 1
                levels[record.patient] = max(levels[record.patient], record.level)
                continue
            skipped.append(SkippedRow(record.row, RowDefect.CORRUPT))
            if on_bad_image is OnBadImage.FAIL:
                raise bad_row(skipped[-1])
        done += len(batch)
        if progress is not None:
            progress(done, len(labels.records))
    seen = counts > 0
    features = (sums[seen] / counts[seen, None]).astype(np.float32)
    if not len(features) or not np.isfinite(features).all():
        raise LabelsError("no image of the data set could be turned into features")
    skipped.sort(key=lambda row: row.row)
    return FeatureSet(features, levels[seen], int(counts.sum()), tuple(skipped), dataset)


def help_extract(
    labels: Labels,
    backbone: Backbone,
    *,
    views: Sequence[View],
    image_size: int,
    decoders: int,
    device: torch.device,
    team: Team,
) -> None:
    """Do one process's share of ``extract_features``, which the first one calls."""
    for _ in _computed(
        labels.records,
        backbone,
        views=views,
        image_size=image_size,
        decoders=decoders,
        device=device,
        team=team,
    ):
        """Only the first is given rows."""


def _computed(
    records: Sequence[Record],
    backbone: Backbone,
    *,
    views: Sequence[View],
    image_size: int,
    decoders: int,
    device: torch.device,
    team: Team,
) -> Iterator[tuple[Sequence[Record], NDArray[np.float64]]]:
    """Batches of records in order, each with what ``_rows`` made of it, in the first process."""
    module = backbone.module.to(device)
    wave = _BATCH_IMAGES * team.size
    with ThreadPoolExecutor(max_workers=decoders) as pool:

        def decode(record: Record) -> Image.Image | None:
            try:
                return load_image(record.path, image_size=image_size)
            except BadImageError:
                return None

        for start in range(0, len(records), wave):
            batches = [
                records[at : at + _BATCH_IMAGES] for at in range(start, start + wave, _BATCH_IMAGES)
            ]
            squares = list(pool.map(decode, batches[team.rank]))
            rows = np.zeros((_BATCH_IMAGES, 1 + backbone.feature_dim), dtype=np.float64)
            _fill(rows, squares, module, views, device)
            yield from zip(batches, team.gather(rows), strict=False)


def _fill(
    rows: NDArray[np.float64],
    squares: Sequence[Image.Image | None],
    module: torch.nn.Module,
    views: Sequence[View],
    device: torch.device,
) -> None:
    """Write a 1 and the features into the row of every image that could be decoded."""
    good = [at for at, square in enumerate(squares) if square is not None]
    if good:
        rows[good, 0] = 1.0
        decoded = [square for square in squares if square is not None]
        rows[good, 1:] = _average_over_views(module, decoded, views, device)


def _average_over_views(
    module: torch.nn.Module,
    squares: Sequence[Image.Image],
    views: Sequence[View],
    device: torch.device,
) -> NDArray[np.float64]:
    total: NDArray[np.float64] | None = None
    with torch.inference_mode():
        for view in views:
            images = torch.stack([render(square, view) for square in squares])
            images = images.to(device, memory_format=torch.channels_last)
            rows = module(images).cpu().numpy().astype(np.float64)
            total = rows if total is None else total + rows
    assert total is not None  # first_views gives at least one
    mean: NDArray[np.float64] = total / len(views)
    return mean


def _to_bytes(features: FeatureSet) -> bytes:
    metadata = {
        "images": str(features.images),
        "dataset": features.dataset,
        "skipped": json.dumps([[row.row, row.defect.name] for row in features.skipped]),
    }
    tensors: dict[str, np.ndarray[tuple[int, ...], np.dtype[Any]]] = {
        "features": features.features,
        "labels": features.labels,
    }
    return safetensors.numpy.save(tensors, metadata=metadata)


def _from_file(metadata: dict[str, str], tensors: dict[str, NDArray[Any]]) -> FeatureSet:
    skipped = tuple(
        SkippedRow(int(row), RowDefect[name]) for row, name in json.loads(metadata["skipped"])
    )
    return FeatureSet(
        np.asarray(tensors["features"], dtype=np.float32),
        np.asarray(tensors["labels"], dtype=np.int64),
        int(metadata["images"]),
        skipped,
        Digest(metadata["dataset"]),
    )
