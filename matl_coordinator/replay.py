"""A round done again from its log entries and the spooled updates: does the same come out?

Reads the coordinator's folders and changes nothing in them, so it may run beside the daemon. Where
the rule looks at the root set, the scoring worker computes that part anew, as for the daemon.
Weights are taken from the log: whether they were due is for the trust rule, whose components are
in the log as well.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matl_common.errors import ConfigurationError, IntegrityError
from matl_common.identity.held_keys import load_p256_key
from matl_common.ids import Digest, NodeId, RoundId, digest_of, digest_of_file
from matl_common.protocol import PayloadType, StudyPlan
from matl_common.signing import verify
from matl_common.tensors import hash_chunks
from matl_common.tlog.merkle import merkle_root
from matl_common.wire.documents import parse_score_receipt, parse_study_plan, parse_update_manifest
from matl_common.worker import WorkerLimits, WorkerProcess
from matl_coordinator.aggregation import LocalExecutor
from matl_coordinator.config import Config
from matl_coordinator.core.judgement import Enrolment
from matl_coordinator.ports import (
    Histories,
    HoldoutReport,
    ModelStore,
    RootGradient,
    Spool,
    SpooledUpdates,
    SpoolError,
    UpdateRecord,
    UpdateScorer,
    UpdateStatus,
)
from matl_coordinator.scoring.client import WorkerScorer
from matl_coordinator.service.judging import Judge
from matl_coordinator.service.receipts import receipt_of, root_digest
from matl_coordinator.service.story import Story, read_story
from matl_coordinator.service.survey import Surveyor, coordinate_seed, remembered_hashes
from matl_coordinator.store.files import LocalFiles
from matl_coordinator.store.histories import FileHistories
from matl_coordinator.store.models import FileModelStore
from matl_coordinator.store.spool import DiskSpool


class ReplayDifferenceError(IntegrityError):
    """What comes out is not what the log says; the message names the first difference."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something that was done again and came out the same."""

    what: str
    found: str


async def replay_round(
    config: Config,
    entries: Iterable[Mapping[str, Any]],
    number: int,
    *,
    on_step: Callable[[Step], None] = lambda _: None,
) -> tuple[Step, ...]:
    """Make a round's model again and compare everything on the way with the log.

    Args:
        config: of the coordinator whose round it is.
        entries: what the log's entries say, from the first one on, decrypted.
        number: the round.
        on_step: told of each step that came out the same.

    Raises:
        ReplayDifferenceError: something came out differently.
        InvalidInputError: the log does not tell enough.
        ConfigurationError: the updates are no longer spooled, or the rule needs the holdout set
            and none is configured.
        AggregationError, WorkerError: it could not be done again.
    """
    story = read_story(entries, number)
    steps: list[Step] = []

    def done(what: str, found: str) -> None:
        steps.append(Step(what, found))
        on_step(steps[-1])

    payload = verify(
        story.plan, load_p256_key(config.identity.signing_key).public_key, PayloadType.STUDY_PLAN
    )
    if digest_of(payload) != story.round.plan_digest:
        raise ReplayDifferenceError("the study plan in the log is not the one it names")
    plan = parse_study_plan(payload)
    done("Study plan", f"signed by the coordinator, {story.round.plan_digest[:12]}")
    spool = DiskSpool.open_folder(config.state_dir / "spool")
    updates = _updates(story, spool)
    done("Updates", f"{len(updates)}, each signed by its hospital and unchanged on disk")
    signed = _check_receipts(story, plan, config)
    if signed:
        done("Scores", f"{signed}, each signed by the coordinator as the log tells it")
    if coordinate_seed(story.round) != story.seed:
        raise ReplayDifferenceError(
            f"the log's coordinate_seed is {story.seed:015x}, and nonce and updates give "
            f"{coordinate_seed(story.round):015x}"
        )
    done("Seed", f"{story.seed:015x}")
    models = FileModelStore(config.state_dir / "models", files=LocalFiles())
    with tempfile.TemporaryDirectory(prefix="matl-replay-") as folder:
        async with _scorer(config, models) as scorer:
            judge = _judge(
                config,
                story,
                plan,
                models=_ScratchModels(models, Path(folder)),
                spool=_ScratchSpool(spool, Path(folder) / "scratch"),
                scorer=scorer,
            )
            built = await judge.build(
                story.round,
                updates=updates,
                released_in=story.released,
                reach=story.round.reach,
            )
    for name, digest in scorer.rows.items():
        if story.root.get(name) != digest:
            raise ReplayDifferenceError(
                f"the root set gives row {name} with SHA-256 {digest[:12]}, and gave "
                f"{story.root.get(name, 'none')[:12]}: its images, labels or the software have "
                "changed since"
            )
    if scorer.rows:
        done("Root set", f"{len(scorer.rows)} rows, as in the log")
    done("Rule", story.aggregator.describe())
    if built.model != story.model:
        raise ReplayDifferenceError(
            f"the updates give model {built.model}, and the log says {story.model}: weights, "
            "reach, rule or model are not those that the log tells of"
        )
    done("Model", built.model)
    return tuple(steps)


def _updates(story: Story, spool: Spool) -> list[UpdateRecord]:
    """The admitted updates, each as its hospital signed it."""
    found = []
    for admitted in story.round.admitted:
        node = admitted.node_id
        envelope = story.manifests.get(node)
        if envelope is None:
            raise ReplayDifferenceError(f"the log has no manifest of the update of {node}")
        payload = verify(envelope, story.enrolled(node).signing_key, PayloadType.UPDATE)
        if digest_of(payload) != admitted.update_digest:
            raise ReplayDifferenceError(f"{node} signed another update than was admitted")
        manifest = parse_update_manifest(payload)
        try:
            hashes = hash_chunks(spool.path(story.round.round_id, node))
        except SpoolError as error:
            raise ConfigurationError(
                f"the update of {node} in round {story.round.round_id} is no longer spooled; "
                "rounds.keep_spooled says how many rounds are kept"
            ) from error
        if merkle_root(hashes) != manifest.chunk_root:
            raise ReplayDifferenceError(
                f"the spooled update of {node} is not the one that it signed"
            )
        found.append(
            UpdateRecord(
                round_id=story.round.round_id,
                node_id=node,
                update_digest=admitted.update_digest,
                manifest=envelope,
                chunk_hashes=b"".join(hashes),
                byte_count=manifest.byte_count,
                status=UpdateStatus.ADMITTED,
                code=None,
                reason="",
                norm=None,
                decided_at=None,
                log_index=None,
                log_leaf_hash=None,
            )
        )
    return found


def _check_receipts(story: Story, plan: StudyPlan, config: Config) -> int:
    """How many scores were signed: every one that the holdout set gave, and as the log tells it.

    Raises:
        ReplayDifferenceError: one is missing, too many, or says something else.
        IntegrityError: the coordinator did not sign it.
    """
    key = load_p256_key(config.identity.signing_key).public_key
    root = root_digest(story.root)
    told = {
        node: receipt_of(
            trust,
            node,
            story.round,
            root=root,
            federation_id=plan.federation_id,
            study_id=plan.study_id,
        )
        for node, trust in story.trust.items()
    }
    wanted = {node: receipt for node, receipt in told.items() if receipt is not None}
    if wanted.keys() != story.receipts.keys():
        unlike = ", ".join(sorted(wanted.keys() ^ story.receipts.keys()))
        raise ReplayDifferenceError(
            f"the log scores hospitals without a signed receipt, or the reverse: {unlike}"
        )
    for node, envelope in story.receipts.items():
        found = parse_score_receipt(verify(envelope, key, PayloadType.SCORE))
        if found != wanted[node]:
            raise ReplayDifferenceError(
                f"the coordinator signed {found} for {node}, and the log tells {wanted[node]}"
            )
    return len(wanted)


def _judge(
    config: Config,
    story: Story,
    plan: StudyPlan,
    *,
    models: ModelStore,
    spool: SpooledUpdates,
    scorer: UpdateScorer,
) -> Judge:
    attested = {
        node_id: Enrolment(node.enrolled_patients, None)
        for node_id, node in story.allowlist.nodes.items()
    }
    executor = LocalExecutor(config.worker.aggregation_threads)
    surveyor = Surveyor(
        hashes=remembered_hashes(),
        plan=plan,
        spool=spool,
        models=models,
        scorer=scorer,
        enrolled=lambda: attested,
        histories=_KeptHistories(
            FileHistories(config.state_dir / "histories", files=LocalFiles()),
            first=min(story.earlier, default=story.round.round_id),
        ),
        base_model_of=story.earlier.get,
        threads=config.worker.aggregation_threads,
        executor=executor,
    )
    return Judge(
        plan=plan,
        surveyor=surveyor,
        spool=spool,
        models=models,
        enrolled=lambda: attested,
        aggregator=story.aggregator,
        policy=config.trust.policy,
        has_root=config.holdout is not None,
        activity=lambda _: {},
        byzantine=story.f,
        executor=executor,
    )


class _RecordingScorer:
    """Asks the worker for the root set's rows, and remembers what they were."""

    def __init__(self, inner: WorkerScorer, *, has_holdout: bool) -> None:
        self._inner = inner
        self._has_holdout = has_holdout
        self.rows: dict[str, Digest] = {}

    async def root(self, base_model: Digest, *, folder: Path) -> tuple[RootGradient, ...]:
        if not self._has_holdout:
            raise ConfigurationError(
                "the round's rule looks at the root set; set holdout.images to the coordinator's"
            )
        rows = await self._inner.root(base_model, folder=folder)
        self.rows = {each.row.name: each.digest for each in rows}
        return rows

    async def report(
        self,
        base_model: Digest,
        updates: Mapping[NodeId, Path],
        *,
        weights: Mapping[NodeId, float],
        folder: Path,
    ) -> HoldoutReport:
        raise AssertionError("a replay takes scores from the log")

    async def reach(self, base_model: Digest, candidate: Path) -> float:
        raise AssertionError("a replay takes from the log how far a round went")


@asynccontextmanager
async def _scorer(config: Config, models: ModelStore) -> AsyncIterator[_RecordingScorer]:
    limits = WorkerLimits(idle_seconds=1.0, memory_bytes=config.worker.memory_bytes)
    command = (sys.executable, "-m", "matl_coordinator.scoring.worker")
    worker = WorkerScorer(
        WorkerProcess(command, limits=limits), config=config, model_path=models.path
    )
    try:
        yield _RecordingScorer(worker, has_holdout=config.holdout is not None)
    finally:
        await worker.close()


class _ScratchModels:
    """The coordinator's models; what is made anew stays in a folder of its own."""

    def __init__(self, inner: ModelStore, folder: Path) -> None:
        self._inner = inner
        self._folder = folder

    @property
    def incoming(self) -> Path:
        return self._folder

    def path(self, digest: Digest) -> Path:
        return self._inner.path(digest)

    def has(self, digest: Digest) -> bool:
        return self._inner.has(digest)

    def adopt(self, source: Path) -> Digest:
        return digest_of_file(source)

    def digests(self) -> Iterable[Digest]:
        return self._inner.digests()

    def remove(self, digest: Digest) -> None:
        pass


class _ScratchSpool:
    """The coordinator's updates, with a scratch folder of its own."""

    def __init__(self, inner: Spool, folder: Path) -> None:
        self._folder = folder
        self.path = inner.path

    def scratch(self, round_id: RoundId) -> Path:
        self._folder.mkdir(exist_ok=True)
        return self._folder

    def clear_scratch(self, round_id: RoundId) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class _KeptHistories:
    """What hospitals sent before, as the coordinator still has it; nothing is added."""

    def __init__(self, inner: Histories, *, first: RoundId) -> None:
        self._inner = inner
        self._first = first

    def before(self, round_id: RoundId) -> bytes | None:
        found = self._inner.before(round_id)
        if found is None and round_id > self._first:
            raise ConfigurationError(
                f"the rule looks at all that hospitals sent before round {round_id}, of which the "
                "coordinator keeps the newest sum only; a replay works for the newest round"
            )
        return found

    def put(self, round_id: RoundId, data: bytes) -> None:
        pass
