"""The scoring worker: ``python -m matl_coordinator.scoring.worker``.

Answers ``prepare``, ``root``, ``score``, ``reach`` and ``evaluate`` requests over the pipe of
``matl_common.worker``. It keeps no state between requests and decides nothing: what
its numbers mean for a hospital is in ``core.trust``.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from matl_common.errors import ConfigurationError, IntegrityError, MatlError
from matl_common.ids import NodeId, digest_of, digest_of_file
from matl_common.protocol import Recipe
from matl_common.tensors import (
    Float32Vector,
    ModelSchema,
    read_model,
    read_schema,
    read_trainable,
    read_update,
)
from matl_common.vision.backbones import load_backbone
from matl_common.vision.dataset import (
    CLASSES,
    Labels,
    OnBadImage,
    RowDefect,
    SkippedRow,
    bad_row,
    read_labels,
)
from matl_common.vision.features import FeatureCache, cached_features
from matl_common.vision.heads import load_network
from matl_common.vision.images import BadImageError, first_views, load_image
from matl_common.vision.linear_head import parse_head
from matl_common.vision.metrics import evaluate
from matl_common.vision.requests import ImageSource
from matl_common.worker import Message, ReportProgress, serve
from matl_coordinator.core.robust.root import BEYOND_ROW
from matl_coordinator.scoring.beyond import beyond_gradients
from matl_coordinator.scoring.initial import write_initial_head, write_initial_network
from matl_coordinator.scoring.judges import Float64Array, HeadJudge, Judge, LabelArray, NetworkJudge
from matl_coordinator.scoring.path import Descent, common_step, descent_along
from matl_coordinator.scoring.reach import try_change, try_step
from matl_coordinator.scoring.requests import (
    EvaluateRequest,
    InitialiseRequest,
    ModelJob,
    PrepareRequest,
    ReachRequest,
    Resources,
    RootRequest,
    ScoreRequest,
    parse_request,
)
from matl_coordinator.scoring.split import Indices, Split, split_holdout

MAX_LOSS = 1e6
"""What an infinite or undefined loss counts as."""


class OutOfMemoryError(MatlError):
    """The device or the process had not enough memory for the job."""


def handle(message: Message, report: ReportProgress) -> Message:
    """Do one job.

    Raises:
        MatlError: with a text for the operator and without patient data.
    """
    request = parse_request(message)
    torch.set_num_threads(request.resources.workers)
    try:
        match request:
            case PrepareRequest():
                return _prepare(request, report)
            case RootRequest():
                return _root(request)
            case ScoreRequest():
                return _score(request, report)
            case ReachRequest():
                return _reach(request)
            case EvaluateRequest():
                return _evaluate(request)
            case InitialiseRequest():
                return _initialise(request, report)
            case _:
                assert_never(request)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(
            "not enough memory; lower physical_batch or image_size, or raise the limit"
        ) from error


def _prepare(request: PrepareRequest, report: ReportProgress) -> Message:
    match request.recipe:
        case Recipe.HEAD:
            _, labels, skipped = _holdout_features(request.holdout, request.resources, report)
        case Recipe.FULL:
            _, labels, skipped = _decoded(request.holdout)
        case _:
            assert_never(request.recipe)
    split = split_holdout(labels, folds=2)
    return {
        "images": len(labels),
        "skipped": skipped,
        "per_class": np.bincount(labels, minlength=CLASSES).tolist(),
        "reference_images": split.reference_images,
        "validation_images": len(split.validation),
    }


def _initialise(request: InitialiseRequest, report: ReportProgress) -> Message:
    match request.recipe:
        case Recipe.HEAD:
            features, labels, _ = _holdout_features(request.public, request.resources, report)
            backbone = load_backbone(
                request.public.backbone,
                weights_file=request.public.weights_file,
                weights_digest=request.public.weights_digest,
            )
            path = write_initial_head(
                features,
                labels,
                dimensions=request.dimensions,
                whitening=request.whitening,
                steps=request.public_steps,
                learning_rate=request.learning_rate,
                folder=request.out_dir,
            )
            return {"path": str(path), "backbone_digest": backbone.weights_digest}
        case Recipe.FULL:
            path = write_initial_network(request.public.backbone, folder=request.out_dir)
            return {"path": str(path), "backbone_digest": None}
        case _:
            assert_never(request.recipe)


def _evaluate(request: EvaluateRequest) -> Message:
    judge, _ = _judge(request)
    found = evaluate(judge.labels, judge.predictions(), classes=CLASSES)
    return {
        "images": found.images,
        "accuracy": found.accuracy,
        "balanced_accuracy": found.balanced_accuracy,
        "quadratic_weighted_kappa": found.quadratic_weighted_kappa,
        # JSON has no NaN: a class the holdout set lacks has no recall.
        "per_class_recall": [None if math.isnan(value) else value for value in found.recall],
    }


def _root(request: RootRequest) -> Message:
    judge, _ = _judge(request)
    split = split_holdout(judge.labels, folds=request.folds)
    return {"rows": _write_rows("root", judge, split, request.out_dir, step=None)}


def _score(request: ScoreRequest, report: ReportProgress) -> Message:
    judge, schema = _judge(request)
    split = split_holdout(judge.labels, folds=request.folds)
    before = _bounded(judge.losses(split.validation))
    nodes: dict[NodeId, Message] = {}
    for node, path in request.updates.items():
        nodes[node] = _node_score(judge, split, before=before, update=path, schema=schema)
        report({"scored": len(nodes), "updates": len(request.updates)})
    step = common_step(lambda node: read_update(request.updates[node], schema), request.weights)
    losses = partial(_losses_after, judge, split)
    reach, step = try_step(step, before=before, losses=losses)
    # What a linear head's gradients do not explain is mostly a hospital's class mix.
    beyond = None
    if isinstance(judge, NetworkJudge):
        beyond = beyond_gradients(
            {
                part: _clipped_over(judge, members, max_grad_norm=request.max_grad_norm)
                for part, members in split.folds.items()
            },
            step,
            steps=request.steps,
            learning_rate=request.learning_rate,
            before=before,
            losses=losses,
        )
    return {
        "nodes": nodes,
        "reach": reach,
        "beyond": None
        if beyond is None
        else _write_row(beyond, request.out_dir / f"{BEYOND_ROW}.f32"),
        "rows": _write_rows("path", judge, split, request.out_dir, step=step),
        "reference_images": split.reference_images,
        "validation_images": len(split.validation),
    }


def _reach(request: ReachRequest) -> Message:
    judge, schema = _judge(request)
    split = split_holdout(judge.labels, folds=request.folds)
    if read_schema(request.candidate) != schema:
        raise IntegrityError("the candidate is of another shape than the model it was made from")
    change = read_trainable(request.candidate) - read_trainable(request.model_path)
    before = _bounded(judge.losses(split.validation))
    return {"reach": try_change(change, before=before, losses=partial(_losses_after, judge, split))}


def _losses_after(judge: Judge, split: Split, update: Float32Vector) -> Float64Array:
    # A hostile update may overflow; its loss then counts as the worst there is.
    with np.errstate(over="ignore", invalid="ignore"):
        return _bounded(judge.losses(split.validation, update=update))


def _node_score(
    judge: Judge, split: Split, *, before: Float64Array, update: Path, schema: ModelSchema
) -> Message:
    after = _losses_after(judge, split, read_update(update, schema))
    improvement = before - after
    mean = float(improvement.mean())
    return {
        "loss_before": float(before.mean()),
        "loss_after": float(after.mean()),
        "loss_improvement": mean,
        "standard_error": float(improvement.std() / math.sqrt(len(improvement))),
        "pogq": 1.0 / (1.0 + math.exp(min(700.0, -10.0 * mean))),
    }


def _bounded(losses: Float64Array) -> Float64Array:
    clipped: Float64Array = np.nan_to_num(losses, nan=MAX_LOSS, posinf=MAX_LOSS)
    return np.minimum(clipped, MAX_LOSS)


def _write_rows(
    kind: str, judge: Judge, split: Split, folder: Path, *, step: Float32Vector | None
) -> list[Message]:
    rows: list[Message] = []
    for (label, fold), members in split.folds.items():
        name = f"{kind}-{label}-{fold}"
        path = folder / f"{name}.f32"
        descent = descent_along(_descent_over(judge, members), step)
        if not np.isfinite(descent).all():
            raise IntegrityError("the base model's gradient on the holdout set is not finite")
        facts = {"name": name, "class_index": label, "fold": fold, "images": len(members)}
        rows.append(facts | _write_row(descent, path))
    return rows


def _write_row(row: Float32Vector, path: Path) -> Message:
    data = row.astype("<f4", copy=False).tobytes()
    # Neither durable nor atomic: after a crash they are computed again.
    path.write_bytes(data)
    return {"path": str(path), "sha256": digest_of(data)}


def _descent_over(judge: Judge, members: Indices) -> Descent:
    return lambda update: judge.descent(members, update=update)


def _clipped_over(judge: NetworkJudge, members: Indices, *, max_grad_norm: float) -> Descent:
    return lambda update: judge.clipped_descent(members, update=update, max_grad_norm=max_grad_norm)


def _judge(request: ModelJob) -> tuple[Judge, ModelSchema]:
    if digest_of_file(request.model_path) != request.model_digest:
        raise IntegrityError("the model file is not the one the request names; restore it")
    schema, tensors = read_model(request.model_path)
    resources = request.resources
    judge: Judge
    match request.recipe:
        case Recipe.HEAD:
            head = parse_head(schema, tensors)
            features, labels, _ = _holdout_features(request.holdout, resources, report=None)
            judge = HeadJudge(head, schema, features=features, labels=labels)
        case Recipe.FULL:
            network = load_network(request.holdout.backbone, schema, tensors)
            squares, labels, _ = _decoded(request.holdout)
            judge = NetworkJudge(
                network,
                schema,
                squares=squares,
                labels=labels,
                device=_device(resources),
                physical_batch=resources.physical_batch,
            )
        case _:
            assert_never(request.recipe)
    return judge, schema


def _holdout_features(
    holdout: ImageSource, resources: Resources, report: ReportProgress | None
) -> tuple[NDArray[np.float32], LabelArray, int]:
    """Features and labels, one row per patient, and the number of rows skipped."""
    if holdout.cache_dir is None:
        raise ConfigurationError("recipe 'head' keeps features on disk; set holdout.cache_dir")
    found = cached_features(
        _labels(holdout),
        load_backbone(
            holdout.backbone,
            weights_file=holdout.weights_file,
            weights_digest=holdout.weights_digest,
        ),
        cache=FeatureCache(holdout.cache_dir, max_bytes=holdout.cache_max_bytes),
        views=first_views(holdout.views),
        image_size=holdout.image_size,
        on_bad_image=holdout.on_bad_image,
        decoders=resources.workers,
        device=_device(resources),
        progress=_progress(report) if report else None,
    )
    return found.features, found.labels, len(found.skipped)


def _progress(report: ReportProgress) -> Callable[[int, int], None]:
    return lambda done, total: report({"percent": 100 * done // total})


def _decoded(holdout: ImageSource) -> tuple[list[Image.Image], LabelArray, int]:
    """Decoded images and labels, one row per image, and the number of rows skipped."""
    labels = _labels(holdout)
    squares: list[Image.Image] = []
    levels: list[int] = []
    for record in labels.records:
        try:
            squares.append(load_image(record.path, image_size=holdout.image_size))
        except BadImageError as error:
            if holdout.on_bad_image is OnBadImage.FAIL:
                raise bad_row(SkippedRow(record.row, RowDefect.CORRUPT)) from error
            continue
        levels.append(record.level)
    skipped = len(labels.skipped) + len(labels.records) - len(squares)
    return squares, np.array(levels, dtype=np.int64), skipped


def _labels(holdout: ImageSource) -> Labels:
    return read_labels(holdout.data_dir, holdout.labels_csv, on_bad_image=holdout.on_bad_image)


def _device(resources: Resources) -> torch.device:
    available = torch.cuda.is_available()
    if resources.device == "cuda" and not available:
        raise ConfigurationError("device 'cuda' is not available on this machine; use 'auto'")
    return torch.device("cuda" if available and resources.device != "cpu" else "cpu")


if __name__ == "__main__":
    serve(handle)
