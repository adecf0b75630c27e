"""Folders of photographs and their labels: planned as values, written by a pool, cached.

A folder appears whole or not at all: images are written under a partial name, and the
folder is renamed when its last file is in place. An interrupted folder is taken up where
it stopped. This module decides no grade, label or camera, and deletes nothing that it
did not write.
"""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from matl.demo.fundus.camera import Camera
from matl.demo.fundus.lesions import Grade
from matl.demo.fundus.photograph import OUTPUT_PX, RENDERER_VERSION, Eye, fundus_jpeg
from matl_common.errors import ConfigurationError, MatlError

IMAGES_FOLDER: Final = "images"
LABELS_FILE: Final = "labels_deidentified.csv"
STAMP_FILE: Final = "generated.json"
LABEL_COLUMNS: Final = ("image_id", "dr_level", "group_key")
_END_OF_IMAGE: Final = b"\xff\xd9"
_IMAGES_PER_TASK: Final = 8


class ForeignFolderError(MatlError):
    """A folder to be written holds files that are not ours to replace."""


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One image to be made: the eye, its true grade, and what the label file will say.

    ``image_id`` and ``group_key`` are random and derived from nothing of the patient;
    ``group_key`` joins the images of one patient and stays in the hospital.
    """

    image_id: str
    group_key: str
    eye: Eye
    grade: Grade
    recorded_grade: Grade
    camera: Camera


@dataclass(frozen=True, slots=True)
class ImageSet:
    """A folder of images: its name and its images in the order of the label file."""

    name: str
    images: tuple[PlannedImage, ...]

    @property
    def spec_digest(self) -> str:
        """SHA-256 over everything the folder's bytes depend on."""
        spec = {
            "name": self.name,
            "output_px": OUTPUT_PX,
            "renderer_version": RENDERER_VERSION,
            "images": [asdict(image) for image in self.images],
        }
        canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def write_image_sets(
    sets: Sequence[ImageSet],
    out: Path,
    *,
    workers: int,
    on_image: Callable[[ImageSet], None] = lambda _: None,
) -> None:
    """Make every set a folder under ``out``; those already there with this spec are kept.

    Args:
        sets: what to write, one folder each.
        out: created when absent.
        workers: processes; 1 renders in this process. The bytes do not depend on it.
        on_image: called once for each image that is in place, found or made.

    Raises:
        ConfigurationError: ``workers`` is not positive.
        ForeignFolderError: a folder is in the way that was not written by this function.
    """
    if workers < 1:
        raise ConfigurationError(f"workers is {workers}: give at least 1")
    for image_set in sets:
        _refuse_foreign(out / image_set.name)
    out.mkdir(parents=True, exist_ok=True)
    unfinished: list[ImageSet] = []
    for image_set in sets:
        if is_finished(image_set, out):
            _report(image_set, len(image_set.images), on_image)
        else:
            unfinished.append(image_set)
    if workers == 1:
        for image_set in unfinished:
            _write_set(image_set, out, lambda jobs: map(_write_image, jobs), on_image)
        return
    if not unfinished:
        return
    # Spawned, not forked: the caller may already run threads, and a fork would copy their locks.
    with get_context("spawn").Pool(workers) as pool:

        def in_pool(jobs: Sequence[tuple[PlannedImage, Path]]) -> Iterable[None]:
            return pool.imap_unordered(_write_image, jobs, chunksize=_IMAGES_PER_TASK)

        for image_set in unfinished:
            _write_set(image_set, out, in_pool, on_image)


def is_finished(image_set: ImageSet, out: Path) -> bool:
    """Tell whether the folder is there, of this spec, with every file of the set."""
    folder = out / image_set.name
    if _stamped_digest(folder) != image_set.spec_digest:
        return False
    if not (folder / LABELS_FILE).is_file() or not (folder / IMAGES_FOLDER).is_dir():
        return False
    present = set(os.listdir(folder / IMAGES_FOLDER))
    return present == {_file_name(image) for image in image_set.images}


def _write_set(
    image_set: ImageSet,
    out: Path,
    run: Callable[[Sequence[tuple[PlannedImage, Path]]], Iterable[None]],
    on_image: Callable[[ImageSet], None],
) -> None:
    partial = _open_partial(image_set, out)
    images = partial / IMAGES_FOLDER
    jobs = [
        (image, images) for image in image_set.images if not _is_whole(images / _file_name(image))
    ]
    _report(image_set, len(image_set.images) - len(jobs), on_image)
    for _ in run(jobs):
        on_image(image_set)
    _write_labels(image_set, partial / LABELS_FILE)
    _put_in_place(partial, out / image_set.name)


def _open_partial(image_set: ImageSet, out: Path) -> Path:
    """Return the partial folder of this spec, keeping what an interrupted run left in it."""
    partial = out / f".{image_set.name}.partial"
    digest = image_set.spec_digest
    if partial.exists() and _stamped_digest(partial) != digest:
        shutil.rmtree(partial)
    images = partial / IMAGES_FOLDER
    images.mkdir(parents=True, exist_ok=True)
    stamp = {"images": len(image_set.images), "spec_sha256": digest}
    _write_atomically(partial / STAMP_FILE, json.dumps(stamp, indent=2).encode() + b"\n")
    expected = {_file_name(image) for image in image_set.images}
    for leftover in images.iterdir():
        if leftover.name not in expected:
            leftover.unlink()
    return partial


def _put_in_place(partial: Path, folder: Path) -> None:
    superseded = folder.with_name(f".{folder.name}.superseded")
    shutil.rmtree(superseded, ignore_errors=True)
    if folder.exists():
        folder.rename(superseded)
    partial.rename(folder)
    shutil.rmtree(superseded, ignore_errors=True)


def _write_image(job: tuple[PlannedImage, Path]) -> None:
    image, folder = job
    jpeg = fundus_jpeg(image.eye, image.grade, image.camera)
    _write_atomically(folder / _file_name(image), jpeg)


def _write_labels(image_set: ImageSet, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(LABEL_COLUMNS)
        for image in image_set.images:
            writer.writerow([image.image_id, int(image.recorded_grade), image.group_key])


def _write_atomically(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def _is_whole(jpeg: Path) -> bool:
    """Tell whether an image left by an earlier run reached its end before the machine did."""
    return jpeg.is_file() and jpeg.read_bytes().endswith(_END_OF_IMAGE)


def _stamped_digest(folder: Path) -> str | None:
    try:
        stamp = json.loads((folder / STAMP_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(stamp.get("spec_sha256")) if isinstance(stamp, dict) else None


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and _stamped_digest(folder) is None:
        raise ForeignFolderError(
            f"{folder} exists and was not written by the demo: move it away, or choose another "
            "output folder"
        )


def _report(image_set: ImageSet, times: int, on_image: Callable[[ImageSet], None]) -> None:
    for _ in range(times):
        on_image(image_set)


def _file_name(image: PlannedImage) -> str:
    return f"{image.image_id}.jpg"
