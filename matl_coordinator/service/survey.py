"""The first pass over a round's updates, with the extra rows that trust and rule ask for.

Extra rows are written into the round's scratch folder, never made durable, and written
again whenever they are needed again: they follow from models and the holdout set alone.
Nothing here decides what the geometry means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.ids import Digest, NodeId, RoundId, digest_of, digest_of_file
from matl_common.protocol import StudyPlan
from matl_common.remembered import Remembered
from matl_common.tensors import (
    CHUNK_BYTES,
    ModelSchema,
    hash_chunks,
    read_update,
    safetensors_header,
    update_views,
)
from matl_coordinator.aggregation import Executor, Row, measure, sketch_rows
from matl_coordinator.aggregation import Histories as UpdateHistories
from matl_coordinator.aggregation.sharing import SharedStore
from matl_coordinator.core.compliance import QuietPart, quiet_part
from matl_coordinator.core.judgement import Enrolment
from matl_coordinator.core.robust.dominance import update_signal_bound
from matl_coordinator.core.robust.gram import (
    PREVIOUS_AGGREGATE,
    AggregationError,
    Float64Array,
    Gram,
    Needs,
    PrivacyNoise,
)
from matl_coordinator.core.robust.root import RootRow, update_noise_std
from matl_coordinator.core.rounds import Round
from matl_coordinator.ports import (
    BeyondRow,
    Histories,
    HoldoutReport,
    ModelStore,
    RootGradient,
    SpooledUpdates,
    UpdateRecord,
    UpdateScorer,
)

_FILES_KNOWN: Final = 1024


def classifier_of(schema: ModelSchema) -> tuple[str, str] | None:
    """Weight and bias of the linear layer that a classifier ends in, if these tensors end so."""
    match schema.trainable[-2:]:
        case (weight, bias) if len(weight.shape) == 2 and bias.shape == weight.shape[:1]:
            return weight.name, bias.name
        case _:
            return None


@dataclass(frozen=True, slots=True)
class Judged:
    """That updates are to be judged: coordinates are then also counted between the quantiles of
    the promised noise, and updates scored where there is a holdout set."""

    weights: Mapping[NodeId, float] | None
    """What each counts for in the common step along which it is scored; ``None`` without a
    holdout set."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What the first pass found, and the rows a second one may read."""

    gram: Gram
    quiet: Mapping[NodeId, QuietPart]
    """Of each update, where the recipe has a part without signal."""
    updates: tuple[Row, ...]
    extras: tuple[Row, ...]
    root: tuple[RootGradient, ...]
    """At the base model, for a rule that asks for them."""
    path: tuple[RootGradient, ...]
    """Along the updates' common step, where they were scored."""
    beyond: BeyondRow | None
    """What the holdout set's own training does beyond those."""
    loss_improvement: Mapping[NodeId, float]
    reach: float
    """How much of that step the holdout set bears; 1 where nothing was scored."""


class Surveyor:
    """Reads spooled updates and models; owns nothing but what it knows of unchanged files.

    The files behind a survey's extra rows stay until the scratch folder is cleared, which
    is for the caller to do.
    """

    def __init__(
        self,
        *,
        plan: StudyPlan,
        spool: SpooledUpdates,
        models: ModelStore,
        scorer: UpdateScorer,
        enrolled: Callable[[], Mapping[NodeId, Enrolment]],
        histories: Histories,
        base_model_of: Callable[[RoundId], Digest | None],
        threads: int,
        executor: Executor,
        hashes: Remembered[bytes],
        shared: SharedStore | None = None,
    ) -> None:
        """``hashes`` are those of updates' chunks, as whoever wrote the files knows them.

        ``shared`` is where workers elsewhere read what is measured, if there are any.
        """
        self._plan = plan
        self._spool = spool
        self._models = models
        self._scorer = scorer
        self._enrolled = enrolled
        self._histories = histories
        self._base_model_of = base_model_of
        self._threads = threads
        self._executor = executor
        self._hashes = hashes
        self._shared = shared

    async def survey(
        self,
        rnd: Round,
        updates: Sequence[UpdateRecord],
        *,
        nodes: Collection[NodeId],
        needs: Needs,
        released_in: int,
        judged: Judged | None = None,
    ) -> Survey:
        """Measure the updates of ``nodes`` together with the extra rows in ``needs``.

        Args:
            rnd: a round that was closed.
            updates: what was declared of each update.
            nodes: hospitals admitted to the round.
            needs: what to measure beside inner products.
            released_in: the round that released the base model; 0 for the study's first.
            judged: also measure what a judgement asks for.

        Raises:
            WorkerError: the scoring worker failed.
            IntegrityError: an update or a model on disk is not what it was.
            SharedStoreError: updates cannot be shared with workers for now.
            AggregationError: the updates cannot be compared.
        """
        enrolled = self._enrolled()
        if strangers := sorted(set(nodes) - set(enrolled)):
            raise AggregationError(
                f"{', '.join(strangers)} sent an update and is not enrolled; enrol it again until "
                "the round is over, or let the round fail"
            )
        rows = await asyncio.to_thread(self.rows, rnd, updates, nodes)
        root: tuple[RootGradient, ...] = ()
        report = HoldoutReport((), None, {}, reach=1.0)
        folder = self._spool.scratch(rnd.round_id)
        if needs.root:
            root = await self._scorer.root(rnd.base_model, folder=folder)
        if judged is not None and judged.weights is not None:
            paths = {NodeId(row.name): row.path for row in rows}
            report = await self._scorer.report(
                rnd.base_model, paths, weights=judged.weights, folder=folder
            )
        beyond = () if report.beyond is None else (report.beyond,)
        extras = [Row(each.name, each.path) for each in (*root, *report.path, *beyond)]
        if needs.previous:
            extras.append(await asyncio.to_thread(self._previous, rnd, released_in))
        if self._shared is not None:
            lend = partial(self._shared.lent, round_id=rnd.round_id)
            extras = await asyncio.to_thread(lambda: [lend(each) for each in extras])
        gram = await asyncio.to_thread(
            self._measure,
            rnd,
            rows,
            extras,
            enrolled=enrolled,
            needs=needs,
            count_bins=judged is not None,
        )
        if root:
            rows_of_root = [each.row for each in root]
            training = self._plan.training
            step = training.learning_rate * training.steps_per_round
            gram = replace(gram, reference=reference_in(gram, rows_of_root, step=step))
        quiet = {} if judged is None else await asyncio.to_thread(self._quiet, rows)
        return Survey(
            gram,
            quiet,
            tuple(rows),
            tuple(extras),
            root=root,
            path=report.path,
            beyond=report.beyond,
            loss_improvement=report.loss_improvement,
            reach=report.reach,
        )

    async def reach(self, rnd: Round, candidate: Path) -> float:
        """How much of the change from a round's base model to a candidate the holdout set bears.

        Raises:
            WorkerError: the scoring worker failed.
            IntegrityError: a model on disk is not what it was.
        """
        return await self._scorer.reach(rnd.base_model, candidate)

    def _quiet(self, rows: Sequence[Row]) -> dict[NodeId, QuietPart]:
        """The part of an update's last layer in which honest training leaves only noise."""
        schema = self._plan.schema
        names = classifier_of(schema)
        if names is None or self._plan.privacy.noise_multiplier <= 0.0:
            return {}
        weight, bias = names
        parts = {}
        for row in rows:
            views = update_views(read_update(row.path, schema), schema)
            parts[NodeId(row.name)] = quiet_part(views[weight], views[bias])
        return parts

    def _measure(
        self,
        rnd: Round,
        rows: Sequence[Row],
        extras: Sequence[Row],
        *,
        enrolled: Mapping[NodeId, Enrolment],
        needs: Needs,
        count_bins: bool,
    ) -> Gram:
        std = self._noise(enrolled, [NodeId(row.name) for row in rows])
        gram = measure(
            rows,
            extras,
            elements=self._plan.schema.update_elements,
            executor=self._executor,
            needs=needs,
            noise=std if count_bins else None,
            seed=coordinate_seed(rnd),
        )
        if needs.history:
            gram = replace(gram, history=self._history(rnd, rows).inner_products(gram.nodes))
        if not std:
            return gram
        bound = update_signal_bound(self._plan.training, self._plan.privacy)
        return replace(gram, noise=PrivacyNoise(np.array([std[n] for n in gram.nodes]), bound))

    def _noise(
        self, enrolled: Mapping[NodeId, Enrolment], nodes: Sequence[NodeId]
    ) -> dict[NodeId, float]:
        """Standard deviation of each update's coordinates by the policy; empty without privacy."""
        if self._plan.privacy.noise_multiplier <= 0.0:
            return {}
        return {
            node: update_noise_std(
                self._plan.training, self._plan.privacy, patients=enrolled[node].patients
            )
            for node in nodes
        }

    def rows(
        self, rnd: Round, updates: Sequence[UpdateRecord], nodes: Collection[NodeId]
    ) -> list[Row]:
        """The updates on disk, after a look that they are still what was admitted. Blocking.

        Raises:
            IntegrityError: one is not.
            SharedStoreError: it cannot be shared with workers for now.
        """
        declared = {each.node_id: each.chunk_hashes for each in updates}
        rows = []
        for each in rnd.admitted:
            if each.node_id not in nodes:
                continue
            path = self._spool.path(rnd.round_id, each.node_id)
            if self._hashes.of(path) != declared[each.node_id]:
                raise IntegrityError(
                    f"the spooled update of {each.node_id} is not the one that was admitted; "
                    "look for a failing disk, or for who can write to the state folder"
                )
            row = Row(each.node_id, path)
            if self._shared is not None:
                hashes = declared[each.node_id]
                row = self._shared.shared(row, rnd.round_id, chunk_hashes=hashes)
            rows.append(row)
        return rows

    def _history(self, rnd: Round, rows: Sequence[Row]) -> UpdateHistories:
        """The updates summed over rounds, this one included, kept for the next.

        It follows from the history before and this round's updates, so that doing it again
        after a crash gives the same bytes.
        """
        stored = self._histories.before(rnd.round_id)
        try:
            past = None if stored is None else UpdateHistories.parse(stored)
        except InvalidInputError as error:
            raise IntegrityError(
                "the histories in the state folder are damaged; remove its folder "
                "'histories' to begin them anew"
            ) from error
        seed = coordinate_seed(rnd) if past is None else past.seed
        present = sketch_rows(
            rows, elements=self._plan.schema.update_elements, seed=seed, threads=self._threads
        )
        total = present if past is None else past.plus(present)
        self._histories.put(rnd.round_id, total.encode())
        return total

    def _previous(self, rnd: Round, released_in: int) -> Row:
        """The last aggregate as a row: this round's base model less the one it came from."""
        path = self._spool.scratch(rnd.round_id) / f"{PREVIOUS_AGGREGATE}.f32"
        before = self._base_model_of(RoundId(released_in)) if released_in else None
        if before is None:
            with path.open("wb") as file:
                file.truncate(self._plan.schema.update_bytes)
        else:
            newer = checked_model(self._models, rnd.base_model)
            older = checked_model(self._models, before)
            write_difference(path, newer=newer, older=older, schema=self._plan.schema)
        return Row(PREVIOUS_AGGREGATE, path)


def remembered_hashes() -> Remembered[bytes]:
    """Hashes of spooled updates' chunks, read where nobody who wrote them has told them."""
    return Remembered(lambda path: b"".join(hash_chunks(path)), most=_FILES_KNOWN)


def coordinate_seed(rnd: Round) -> int:
    """Which coordinates a rule samples in a round: fixed only once every update is in.

    No hospital can know it while it still can choose its update, and anybody who has the
    log can compute it.
    """
    admitted = "".join(each.update_digest for each in rnd.admitted)
    return int(digest_of(rnd.nonce + admitted.encode())[:15], 16)


def reference_in(gram: Gram, root: Sequence[RootRow], *, step: float) -> Float64Array:
    """The root gradient as a mixture of the rows: the mean over classes of the mean over folds.

    ``step`` times it, so that it is as long as an update that the coordinator trains itself on
    the root set by the study's plan: rules that scale updates to it go as far as hospitals do.
    """
    names = list(gram.row_names)
    classes = {each.class_index for each in root}
    folds = [each.class_index for each in root]
    reference = np.zeros(len(names))
    for each in root:
        share = 1.0 / (len(classes) * folds.count(each.class_index))
        reference[names.index(each.name)] = step * share
    return reference


def checked_model(models: ModelStore, digest: Digest) -> Path:
    """The file of a model, after a look that it is that model.

    Raises:
        IntegrityError: it is missing or damaged.
    """
    path = models.path(digest)
    if not models.has(digest) or digest_of_file(path) != digest:
        raise IntegrityError(f"the file of model {digest[:12]} is not that model; restore it")
    return path


def write_difference(path: Path, *, newer: Path, older: Path, schema: ModelSchema) -> None:
    """Write the trainable part of ``newer`` less that of ``older``, laid out like an update."""
    with newer.open("rb") as ahead, older.open("rb") as behind, path.open("wb") as file:
        pairs = zip(_trainable(ahead, schema), _trainable(behind, schema), strict=True)
        for new, old in pairs:
            values = np.frombuffer(new, dtype="<f4") - np.frombuffer(old, dtype="<f4")
            file.write(values.astype("<f4", copy=False).tobytes())


def _trainable(model: BinaryIO, schema: ModelSchema) -> Iterator[bytes]:
    model.seek(len(safetensors_header(schema)))
    for spec in schema.tensors:
        if not spec.trainable:
            model.seek(spec.byte_count, 1)
            continue
        for start in range(0, spec.byte_count, CHUNK_BYTES):
            yield model.read(min(CHUNK_BYTES, spec.byte_count - start))
