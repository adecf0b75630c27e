"""The daemon's side of the scoring worker: values in, one JSON request, values out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from matl_common.configuration import labels_beside
from matl_common.errors import ConfigurationError
from matl_common.ids import Digest, NodeId, parse_digest
from matl_common.worker import Message, WorkerCrashedError, WorkerProcess
from matl_coordinator.config import Config
from matl_coordinator.core.robust.root import RootRow
from matl_coordinator.core.rounds import Evaluation
from matl_coordinator.ports import (
    BeyondRow,
    HoldoutFacts,
    HoldoutReport,
    InitialModel,
    RootGradient,
)

FOLDS = 4

Finite = Annotated[float, Field(allow_inf_nan=False)]
Reach = Annotated[float, Field(gt=0.0, le=1.0)]


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _EvaluateAnswer(_Answer):
    images: int
    accuracy: Finite
    balanced_accuracy: Finite
    quadratic_weighted_kappa: Finite
    per_class_recall: list[Finite | None]


class _PrepareAnswer(_Answer):
    images: int
    skipped: int
    per_class: list[int]


class _NodeAnswer(_Answer):
    loss_improvement: Finite


class _RowAnswer(_Answer):
    name: str
    path: str
    class_index: int
    fold: int
    images: int
    sha256: str


class _RowsAnswer(_Answer):
    rows: list[_RowAnswer]

    def gradients(self) -> tuple[RootGradient, ...]:
        return tuple(
            RootGradient(
                RootRow(each.name, each.class_index, each.fold, each.images),
                Path(each.path),
                parse_digest(each.sha256),
            )
            for each in self.rows
        )


class _BeyondAnswer(_Answer):
    path: str
    sha256: str

    def row(self) -> BeyondRow:
        return BeyondRow(Path(self.path), parse_digest(self.sha256))


class _ScoreAnswer(_RowsAnswer):
    nodes: dict[str, _NodeAnswer]
    beyond: _BeyondAnswer | None
    reach: Reach


class _ReachAnswer(_Answer):
    reach: Reach


class _InitialiseAnswer(_Answer):
    path: str
    backbone_digest: str | None


AnswerT = TypeVar("AnswerT", bound=_Answer)


class WorkerScorer:
    """A ``ports.Scorer`` that asks a ``matl_coordinator.scoring.worker`` process."""

    def __init__(
        self, worker: WorkerProcess, *, config: Config, model_path: Callable[[Digest], Path]
    ) -> None:
        self._worker = worker
        self._config = config
        self._model_path = model_path

    async def initial_model(self, folder: Path) -> InitialModel:
        study = self._config.study
        request: Message = {
            "job": "initialise",
            "recipe": study.recipe.value,
            "out_dir": str(folder),
            "dimensions": study.dimensions,
            "whitening": study.whitening,
            "public_steps": study.public_steps,
            "learning_rate": study.learning_rate,
            # The full recipe looks at no image: its first model comes from the network's name.
            "public": self._images(study.public_images or self._config.state_dir),
            "resources": self._resources(),
        }
        if study.public_labels is not None:
            request["public"]["labels_csv"] = str(study.public_labels)
        answer = _parse(_InitialiseAnswer, await self._run(request))
        weights = answer.backbone_digest
        return InitialModel(Path(answer.path), None if weights is None else parse_digest(weights))

    async def prepare(self) -> HoldoutFacts:
        request: Message = {
            "job": "prepare",
            "recipe": self._config.study.recipe.value,
            "holdout": self._holdout(),
            "resources": self._resources(),
        }
        answer = _parse(_PrepareAnswer, await self._run(request))
        return HoldoutFacts(answer.images, answer.skipped, tuple(answer.per_class))

    async def root(self, base_model: Digest, *, folder: Path) -> tuple[RootGradient, ...]:
        rows = {"out_dir": str(folder), "folds": FOLDS}
        request = self._on_holdout("root", base_model) | rows
        return _parse(_RowsAnswer, await self._run(request)).gradients()

    async def report(
        self,
        base_model: Digest,
        updates: Mapping[NodeId, Path],
        *,
        weights: Mapping[NodeId, float],
        folder: Path,
    ) -> HoldoutReport:
        request = self._on_holdout("score", base_model) | {
            "updates": {node: str(path) for node, path in sorted(updates.items())},
            "weights": {node: weights[node] for node in sorted(updates)},
            "out_dir": str(folder),
            "folds": FOLDS,
            "steps": self._config.study.steps_per_round,
            "learning_rate": self._config.study.learning_rate,
            "max_grad_norm": self._config.study.max_grad_norm,
        }
        answer = _parse(_ScoreAnswer, await self._run(request))
        if answer.nodes.keys() != updates.keys():
            raise WorkerCrashedError("the scoring worker answered for other updates than asked")
        return HoldoutReport(
            path=answer.gradients(),
            beyond=None if answer.beyond is None else answer.beyond.row(),
            loss_improvement={
                node: answer.nodes[node].loss_improvement for node in sorted(updates)
            },
            reach=answer.reach,
        )

    async def reach(self, base_model: Digest, candidate: Path) -> float:
        request = self._on_holdout("reach", base_model) | {
            "candidate": str(candidate),
            "folds": FOLDS,
        }
        return _parse(_ReachAnswer, await self._run(request)).reach

    async def evaluate(self, model: Digest) -> Evaluation:
        answer = _parse(_EvaluateAnswer, await self._run(self._on_holdout("evaluate", model)))
        return Evaluation(
            accuracy=answer.accuracy,
            balanced_accuracy=answer.balanced_accuracy,
            quadratic_weighted_kappa=answer.quadratic_weighted_kappa,
            per_class_recall=tuple(answer.per_class_recall),
            images=answer.images,
        )

    async def close(self) -> None:
        await self._worker.close()

    async def _run(self, request: Message) -> Message:
        return await self._worker.run(request, timeout_seconds=self._config.worker.timeout_seconds)

    def _on_holdout(self, job: str, model: Digest) -> Message:
        return {
            "job": job,
            "recipe": self._config.study.recipe.value,
            "holdout": self._holdout(),
            "model_path": str(self._model_path(model)),
            "model_digest": model,
            "resources": self._resources(),
        }

    def _holdout(self) -> Message:
        wanted = self._config.holdout
        if wanted is None:
            raise ConfigurationError("there is no holdout set to score on; set holdout.images")
        holdout = self._images(wanted.images)
        if wanted.labels is not None:
            holdout["labels_csv"] = str(wanted.labels)
        return holdout

    def _images(self, folder: Path) -> dict[str, Any]:
        study = self._config.study
        source: dict[str, Any] = {
            "data_dir": str(folder),
            "labels_csv": str(labels_beside(folder)),
            "image_size": study.image_size,
            "backbone": study.backbone,
            "views": study.views,
            "cache_dir": str(self._config.state_dir / "features"),
        }
        if study.weights_file is not None:
            source["weights_file"] = str(study.weights_file)
        return source

    def _resources(self) -> Message:
        return {"device": self._config.worker.device}


def _parse(kind: type[AnswerT], message: Message) -> AnswerT:
    try:
        return kind.model_validate(message)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        raise WorkerCrashedError(f"the scoring worker's answer is malformed: {fields}") from None
