"""The training worker: ``python -m matl_participant.training.worker``.

Answers ``prepare`` and ``train`` requests over the pipe of ``matl_common.worker``. It keeps
no state between requests, charges no budget (its daemon did, before asking) and reports
nothing about the data while training: progress is the number of steps done.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray

from matl_common.durable import write_atomically
from matl_common.errors import IntegrityError, MatlError
from matl_common.ids import Digest, digest_of_file
from matl_common.protocol import Recipe
from matl_common.tensors import ModelSchema, read_model
from matl_common.vision.backbones import load_backbone
from matl_common.vision.dataset import (
    Labels,
    OnBadImage,
    Record,
    RowDefect,
    SkippedRow,
    bad_row,
    dataset_digest,
    read_labels,
)
from matl_common.vision.features import FeatureCache, FeatureSet, cache_key, cached_features
from matl_common.vision.images import BadImageError, first_views, load_image
from matl_common.vision.linear_head import LinearHead, parse_head
from matl_common.vision.requests import ImageSource
from matl_common.worker import Message, ReportProgress, serve
from matl_participant.training.devices import bound_threads, choose_device, count_processes
from matl_participant.training.evaluation import noised_correct
from matl_participant.training.group import ProcessGroup
from matl_participant.training.head import HeadTraining, train_head
from matl_participant.training.phi import look_for_identifiers
from matl_participant.training.processes import train_in_processes
from matl_participant.training.requests import (
    PrepareRequest,
    Resources,
    TrainRequest,
    parse_request,
)

MAX_REPORTED_ROWS = 1000


class DatasetChangedError(MatlError):
    """The data on disk is not the data that the privacy budget was opened for."""


class OutOfMemoryError(MatlError):
    """The device or the process had not enough memory for the job."""


def handle(message: Message, report: ReportProgress) -> Message:
    """Do one job.

    Raises:
        MatlError: with a text for the operator and without patient data.
    """
    request = parse_request(message)
    resources = request.resources
    if isinstance(request, TrainRequest) and request.recipe is Recipe.FULL:
        processes = count_processes(resources.device, asked=resources.processes)
        if processes > 1:
            # Before a device is chosen: this process only waits, and takes no memory there.
            return train_in_processes(request, message, processes=processes, report=report)
    bound_threads(resources.workers)
    device = choose_device(resources.device, memory_bytes=resources.device_memory_bytes)
    with explaining_memory():
        match request:
            case PrepareRequest():
                return _prepare(request, device, report)
            case TrainRequest():
                return train(request, device, report)
            case _:
                assert_never(request)


@contextmanager
def explaining_memory() -> Iterator[None]:
    """Say what to do about a lack of memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(
            "not enough memory; lower physical_batch or image_size, or raise the limit"
        ) from error


def _prepare(request: PrepareRequest, device: torch.device, report: ReportProgress) -> Message:
    data = request.data
    labels = _labels(data)
    # Before features are computed: they would be of data that must not be used.
    phi = look_for_identifiers(labels.records, data.labels_csv, request.phi, report)
    if request.recipe is Recipe.HEAD:
        found = _features(labels, data, request.resources, device, report)
        return phi | _prepared(found.patients, found.images, found.skipped, found.dataset)
    usable, skipped = _decodable(labels, data, report)
    patients = len({record.patient for record in usable})
    return phi | _prepared(patients, len(usable), skipped, dataset_digest(usable))


def _prepared(
    patients: int, images: int, skipped: tuple[SkippedRow, ...], dataset: Digest
) -> Message:
    return {
        "patients": patients,
        "images": images,
        "skipped": len(skipped),
        "skipped_rows": [
            {"row": row.row, "reason": row.defect.value} for row in skipped[:MAX_REPORTED_ROWS]
        ],
        "dataset_digest": dataset,
    }


def train(
    request: TrainRequest,
    device: torch.device,
    report: ReportProgress,
    *,
    group: ProcessGroup | None = None,
) -> Message:
    """Train one round; write the update, if this is the only or the first process.

    Args:
        request: the same in every process.
        device: of this process.
        report: told the steps done.
        group: the processes that train together, for ``full``; this one alone if not given.

    Returns:
        What was written and left out; nothing from a process that is not the first.
    """
    if digest_of_file(request.model_path) != request.model_digest:
        raise IntegrityError("the model file is not the one the request names; fetch it again")
    schema, tensors = read_model(request.model_path)

    def on_step(step: int) -> None:
        report({"step": step, "steps": request.steps})

    left_out: list[int] = []
    evaluated: Message = {}
    match request.recipe:
        case Recipe.HEAD:
            found = _pinned_features(request, device)
            head = parse_head(schema, tensors)
            update = train_head(
                head,
                found.features,
                found.labels,
                training=HeadTraining(
                    steps=request.steps,
                    learning_rate=request.learning_rate,
                    noise=request.noise,
                    noise_multiplier=request.noise_multiplier,
                    max_grad_norm=request.max_grad_norm,
                    declared_patients=request.declared_patients,
                    images_per_patient=request.images_per_patient,
                ),
                on_step=on_step,
                on_left_out=left_out.append,
            )
            # After ``train_head``, which checks that model and features fit together.
            evaluated = _evaluated(request, head, found)
        case Recipe.FULL:
            update = _train_full(
                request,
                schema,
                tensors,
                device=device,
                group=group,
                on_step=on_step,
                on_left_out=left_out.append,
            )
        case _:
            assert_never(request.recipe)
    if group is not None and not group.is_first:
        return {}
    written = _write_update(update, schema, request.out_path)
    return written | evaluated | {"gradients_left_out": sum(left_out)}


def _train_full(
    request: TrainRequest,
    schema: ModelSchema,
    tensors: Mapping[str, NDArray[np.float32]],
    *,
    device: torch.device,
    group: ProcessGroup | None,
    on_step: Callable[[int], None],
    on_left_out: Callable[[int], None],
) -> NDArray[np.float32]:
    # torchvision: seconds and memory that the head recipe does without.
    from matl_common.vision.heads import load_network
    from matl_participant.training.full import FullTraining, train_full

    return train_full(
        load_network(request.data.backbone, schema, tensors),
        _pinned_records(request),
        training=FullTraining(
            steps=request.steps,
            learning_rate=request.learning_rate,
            noise_multiplier=request.noise_multiplier,
            max_grad_norm=request.max_grad_norm,
            sample_rate=request.sample_rate,
            declared_patients=request.declared_patients,
            image_size=request.data.image_size,
            physical_batch=request.resources.physical_batch,
        ),
        device=device,
        on_bad_image=request.data.on_bad_image,
        group=group,
        on_step=on_step,
        on_left_out=on_left_out,
    )


def _evaluated(request: TrainRequest, head: LinearHead, found: FeatureSet) -> Message:
    if request.evaluation_noise_multiplier is None:
        return {}
    return {
        "correct": noised_correct(
            head,
            found.features,
            found.labels,
            noise_multiplier=request.evaluation_noise_multiplier,
            images_per_patient=request.images_per_patient,
            noise=request.noise,
        )
    }


def _write_update(update: NDArray[np.float32], schema: ModelSchema, path: Path) -> Message:
    if update.size != schema.update_elements or not np.isfinite(update).all():
        raise IntegrityError(
            "training gave no finite update of the model's shape; lower the learning rate"
        )
    digest = write_atomically(path, [update.astype("<f4").tobytes()])
    return {"update": str(path), "sha256": digest, "bytes": schema.update_bytes}


def _labels(data: ImageSource) -> Labels:
    return read_labels(data.data_dir, data.labels_csv, on_bad_image=data.on_bad_image)


def _features(
    labels: Labels,
    data: ImageSource,
    resources: Resources,
    device: torch.device,
    report: ReportProgress | None,
) -> FeatureSet:
    backbone = load_backbone(
        data.backbone, weights_file=data.weights_file, weights_digest=data.weights_digest
    )
    return cached_features(
        labels,
        backbone,
        cache=_cache(data),
        views=first_views(data.views),
        image_size=data.image_size,
        on_bad_image=data.on_bad_image,
        decoders=resources.workers,
        device=device,
        progress=_PercentReport(report) if report else None,
    )


def _pinned_features(request: TrainRequest, device: torch.device) -> FeatureSet:
    """The features of the data set the request names, from the cache when they are there."""
    data = request.data
    if data.weights_digest is not None:
        key = cache_key(
            dataset=request.dataset_digest,
            backbone=data.backbone,
            weights=data.weights_digest,
            views=data.views,
            image_size=data.image_size,
        )
        found = _cache(data).load(key)
        if found is not None:
            return found
    found = _features(_labels(data), data, request.resources, device, report=None)
    _check_dataset(found.dataset, request.dataset_digest)
    return found


def _pinned_records(request: TrainRequest) -> tuple[Record, ...]:
    usable, _ = _decodable(_labels(request.data), request.data, report=None)
    _check_dataset(dataset_digest(usable), request.dataset_digest)
    return usable


def _check_dataset(found: Digest, expected: Digest) -> None:
    if found != expected:
        raise DatasetChangedError(
            "the images or labels changed since the data set was prepared; restore them, or "
            "prepare again and open a new budget"
        )


def _decodable(
    labels: Labels, data: ImageSource, report: ReportProgress | None
) -> tuple[tuple[Record, ...], tuple[SkippedRow, ...]]:
    usable: list[Record] = []
    skipped = list(labels.skipped)
    tell = _PercentReport(report) if report else None
    for number, record in enumerate(labels.records, start=1):
        try:
            load_image(record.path, image_size=data.image_size)
            usable.append(record)
        except BadImageError as error:
            skipped.append(SkippedRow(record.row, RowDefect.CORRUPT))
            if data.on_bad_image is OnBadImage.FAIL:
                raise bad_row(skipped[-1]) from error
        if tell:
            tell(number, len(labels.records))
    skipped.sort(key=lambda row: row.row)
    return tuple(usable), tuple(skipped)


class _PercentReport:
    """Reports whole percents, each once: a daemon's log is no place for numbers of images."""

    def __init__(self, report: ReportProgress) -> None:
        self._report = report
        self._last = -1

    def __call__(self, done: int, total: int) -> None:
        percent = 100 * done // total
        if percent != self._last:
            self._last = percent
            self._report({"percent": percent})


def _cache(data: ImageSource) -> FeatureCache:
    assert data.cache_dir is not None  # parse_request requires it for ``head``
    return FeatureCache(data.cache_dir, max_bytes=data.cache_max_bytes)


if __name__ == "__main__":
    serve(handle)
