"""The training worker: ``python -m matl_participant.training.worker``.

Answers ``prepare`` and ``train`` requests over the pipe of ``matl_common.worker``. It keeps
no state between requests, charges no budget (its daemon did, before asking) and reports
nothing about the data while training: progress is the number of steps done.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from matl_common.vision.dataset import SkippedRow, dataset_digest
from matl_common.vision.features import FeatureSet
from matl_common.vision.linear_head import LinearHead, parse_head
from matl_common.worker import Message, ReportProgress, serve
from matl_participant.training.dataset import decodable, labels_of, pinned_records
from matl_participant.training.devices import bound_threads, choose_device, count_processes
from matl_participant.training.evaluation import noised_correct
from matl_participant.training.extraction import Place, features_of, pinned_features
from matl_participant.training.group import ProcessGroup
from matl_participant.training.head import HeadTraining, train_head
from matl_participant.training.memory import memory_message, peak_memory
from matl_participant.training.phi import look_for_identifiers
from matl_participant.training.processes import Processes
from matl_participant.training.requests import (
    MeetRequest,
    PrepareRequest,
    TrainRequest,
    parse_request,
)

MAX_REPORTED_ROWS = 1000


class OutOfMemoryError(MatlError):
    """The device or the process had not enough memory for the job."""


def handle(message: Message, report: ReportProgress) -> Message:
    """Do one job.

    Raises:
        MatlError: with a text for the operator and without patient data.
    """
    request = parse_request(message)
    resources = request.resources
    place: Place
    count = count_processes(resources.device, asked=resources.processes)
    if count > 1 or resources.nodes is not None:
        # No device is chosen: this process waits for the others, and takes no memory there.
        place = Processes(
            count,
            resources.threads_each(count),
            report,
            nodes=resources.nodes,
            stall_seconds=resources.stall_seconds,
        )
    else:
        place = choose_device(resources.device, memory_bytes=resources.device_memory_bytes)
    bound_threads(resources.workers)
    with explaining_memory():
        match request:
            case PrepareRequest():
                answer = _prepare(request, place, report)
            case TrainRequest(recipe=Recipe.HEAD):
                answer = _train_head(request, place, report)
            case TrainRequest():
                answer = _train_full(request, message, place, report)
            case _:
                assert_never(request)
    device = None if isinstance(place, Processes) else place
    report({"memory": memory_message("worker", peak_memory(device))})
    return answer


@contextmanager
def explaining_memory() -> Iterator[None]:
    """Say what to do about a lack of memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(
            "not enough memory; lower physical_batch or image_size, or raise the limit"
        ) from error


def _prepare(request: PrepareRequest, place: Place, report: ReportProgress) -> Message:
    data = request.data
    labels = labels_of(data)
    # Before features are computed: they would be of data that must not be used.
    phi = look_for_identifiers(labels.records, data.labels_csv, request.phi, report)
    if request.recipe is Recipe.HEAD:
        found = features_of(labels, data, request.resources, place, report)
        return phi | _prepared(found.patients, found.images, found.skipped, found.dataset)
    usable, skipped = decodable(labels, data, report)
    patients, dataset = len({record.patient for record in usable}), dataset_digest(usable)
    if isinstance(place, Processes) and place.nodes is not None:
        # Before anything is charged: a node that is not there would cost a round.
        _see_all_nodes(request, place, dataset)
    return phi | _prepared(patients, len(usable), skipped, dataset)


def _see_all_nodes(request: PrepareRequest, processes: Processes, dataset: Digest) -> None:
    data = request.data
    assert data.cache_dir is not None  # parse_request requires it for several nodes
    asked = MeetRequest(job="meet", data=data, dataset_digest=dataset, resources=request.resources)
    processes.run(asked.model_dump(mode="json"), beside=data.cache_dir)


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


def _train_full(
    request: TrainRequest, message: Message, place: Place, report: ReportProgress
) -> Message:
    if isinstance(place, Processes):
        return place.train(message, out=request.out_path)
    return train_full_round(request, place, report)


def _train_head(request: TrainRequest, place: Place, report: ReportProgress) -> Message:
    schema, tensors = _model(request)
    found = pinned_features(request, place)
    head = parse_head(schema, tensors)
    left_out: list[int] = []
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
        on_step=_step_report(request, report),
        on_left_out=left_out.append,
    )
    # After ``train_head``, which checks that model and features fit together.
    evaluated = _evaluated(request, head, found)
    return _written(update, schema, request.out_path, left_out) | evaluated


def train_full_round(
    request: TrainRequest,
    device: torch.device,
    report: ReportProgress,
    *,
    group: ProcessGroup | None = None,
) -> Message:
    """Train one round of ``full``; write the update, if this is the only or the first process.

    Args:
        request: the same in every process.
        device: of this process.
        report: told the steps done.
        group: the processes that train together; this one alone if not given.

    Returns:
        What was written and left out; nothing from a process that is not the first.
    """
    # torchvision: seconds and memory that the head recipe does without.
    from matl_common.vision.heads import load_network
    from matl_participant.training.full import FullTraining, train_full

    schema, tensors = _model(request)
    left_out: list[int] = []
    update = train_full(
        load_network(request.data.backbone, schema, tensors),
        pinned_records(request.data, request.dataset_digest, group),
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
        on_step=_step_report(request, report),
        on_left_out=left_out.append,
    )
    if group is not None and not group.is_first:
        return {}
    return _written(update, schema, request.out_path, left_out)


def _model(request: TrainRequest) -> tuple[ModelSchema, Mapping[str, NDArray[np.float32]]]:
    if digest_of_file(request.model_path) != request.model_digest:
        raise IntegrityError("the model file is not the one the request names; fetch it again")
    return read_model(request.model_path)


def _step_report(request: TrainRequest, report: ReportProgress) -> Callable[[int], None]:
    return lambda step: report({"step": step, "steps": request.steps})


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


def _written(
    update: NDArray[np.float32], schema: ModelSchema, path: Path, left_out: Sequence[int]
) -> Message:
    if update.size != schema.update_elements or not np.isfinite(update).all():
        raise IntegrityError(
            "training gave no finite update of the model's shape; lower the learning rate"
        )
    digest = write_atomically(path, [update.astype("<f4").tobytes()])
    return {
        "update": str(path),
        "sha256": digest,
        "bytes": schema.update_bytes,
        "gradients_left_out": sum(left_out),
    }


if __name__ == "__main__":
    serve(handle)
