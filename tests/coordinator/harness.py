"""A coordinator's use cases with scripted hospitals, in one process.

Everything durable is real (SQLite, disk). The scorer is a stand-in that judges by
a quadratic loss; the hospitals send the same updates in every run, so that two runs
can be compared by the digests of their models.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from numpy.typing import NDArray
from prometheus_client import generate_latest

from matl_common.clock import utc_now
from matl_common.identity.allowlist import AllowedNode, Allowlist, load_allowlist
from matl_common.identity.certificates import Role
from matl_common.identity.development import (
    DevelopmentFederation,
    Enrolment,
    create_development_keys,
)
from matl_common.identity.held_keys import Ed25519Key, load_ed25519_key, load_p256_key
from matl_common.identity.node_folder import NodeFolder
from matl_common.ids import Digest, FederationId, NodeId, digest_of
from matl_common.protocol import (
    PayloadType,
    PrivacySpend,
    RoundStart,
    StudyPlan,
    UpdateManifest,
)
from matl_common.signing import Envelope, Signer, sign
from matl_common.tensors import (
    CHUNK_BYTES,
    MODEL_SUFFIX,
    TensorSpec,
    parse_schema,
    read_model,
    store_model,
)
from matl_common.tlog.checkpoint import log_key
from matl_common.tlog.entry import parse_entry
from matl_common.tlog.merkle import leaf_hash, merkle_root
from matl_common.tlog.names import log_origin
from matl_common.wire.documents import format_update_manifest, parse_round_start
from matl_coordinator.aggregation.sharing import SharedStore
from matl_coordinator.config import Config
from matl_coordinator.core.robust.root import RootRow
from matl_coordinator.core.rounds import Evaluation
from matl_coordinator.metrics import Metrics
from matl_coordinator.ports import (
    BeyondRow,
    ForeignRow,
    HoldoutFacts,
    HoldoutReport,
    InitialModel,
    RootGradient,
    State,
    Store,
)
from matl_coordinator.roster import Roster
from matl_coordinator.scoring.path import common_step
from matl_coordinator.service.assembly import Outside, UseCases, assemble
from matl_coordinator.service.checkpoints import Checkpoints, LogSigner, witness_policy
from matl_coordinator.service.enrolment import log_allowlist
from matl_coordinator.service.founding import found_or_resume
from matl_coordinator.service.intake import Progress
from matl_coordinator.service.register import Register
from matl_coordinator.store.anchor import FileAnchor
from matl_coordinator.store.histories import FileHistories
from matl_coordinator.store.models import FileModelStore
from matl_coordinator.store.shared import SharedSpool
from matl_coordinator.store.spool import DEFAULT_QUOTA_BYTES, DiskSpool
from matl_coordinator.store.sql import SqlStore
from tests.logs import LOG

FEDERATION = FederationId("dr-study")
COORDINATOR = NodeId("coordinator")
OPERATOR = NodeId("operator")
SIZES = {"hospital_a": 1000, "hospital_b": 500, "hospital_c": 300}
NODES = tuple(NodeId(name) for name in SIZES)
TICK_SECONDS = 0.01
# Two chunks and a half, so that an upload can stop in the middle.
SCHEMA = parse_schema(
    [
        TensorSpec("public.scale", (8,), trainable=False),
        TensorSpec("head.weight", (5, 131_072)),
    ]
)
ELEMENTS = SCHEMA.update_elements
TARGET = np.random.default_rng(1).normal(0.0, 1.0, ELEMENTS) / np.sqrt(ELEMENTS)


@dataclass(frozen=True)
class Site:
    """One coordinator's folder: keys, configuration, and all that outlives a process."""

    folder: Path
    config: Config
    allowlist: Allowlist
    nodes: Mapping[NodeId, NodeFolder]

    def signer(self, node_id: NodeId) -> Signer:
        return load_p256_key(self.nodes[node_id].signing_key)

    def coordinator_key(self) -> EllipticCurvePublicKey:
        return load_p256_key(self.config.identity.signing_key).public_key

    @property
    def hospitals(self) -> tuple[NodeId, ...]:
        """Every enrolled participant."""
        return tuple(
            sorted(n for n, each in self.allowlist.nodes.items() if each.role is Role.PARTICIPANT)
        )

    def allowed(self, node_id: NodeId) -> AllowedNode:
        return self.allowlist.nodes[node_id]

    def read_again(self) -> Site:
        """The same site after its allow-list was changed."""
        return replace(self, allowlist=load_allowlist(self.config.federation.allowlist))

    def checkpoints(
        self,
        store: Store,
        *,
        clock: Callable[[], datetime] = utc_now,
        report: Callable[[ForeignRow], None] = lambda _: None,
    ) -> Checkpoints:
        held = self.log_signer()
        key = log_key(log_origin(self.allowlist.federation), held.public_key)
        return Checkpoints(
            store=store,
            anchor=FileAnchor(self.config.state_dir / "log-checkpoint.txt"),
            log=LogSigner(key, held),
            policy=witness_policy(self.allowlist, key, f=self.config.rounds.byzantine),
            clock=clock,
            report=report,
        )

    def log_signer(self) -> Ed25519Key:
        return load_ed25519_key(self.config.identity.log_key)

    def connect_store(self) -> Store:
        return SqlStore.connect(
            self.config.database_url,
            log_origin=log_origin(self.allowlist.federation),
            log_key=LOG["log_key"],
        )


def make_site(
    folder: Path,
    *,
    sizes: Mapping[str, int] = SIZES,
    study: Mapping[str, object] | None = None,
    trust: Mapping[str, object] | None = None,
    has_holdout: bool = True,
    **rounds: object,
) -> Site:
    """Keys and configuration of a federation, of three hospitals unless told otherwise."""
    wanted = DevelopmentFederation(
        federation=FEDERATION,
        coordinator=COORDINATOR,
        participants={NodeId(name): Enrolment(size) for name, size in sizes.items()},
        operators=(OPERATOR,),
    )
    nodes = create_development_keys(folder / "keys", wanted, now=utc_now())
    mine = nodes[COORDINATOR]
    (folder / "state").mkdir()
    table = {
        "state_dir": str(folder / "state"),
        "federation": {
            "id": str(FEDERATION),
            "study": "dr-2026",
            "node_id": str(COORDINATOR),
            "allowlist": str(mine.allowlist),
        },
        "listen": {"address": "127.0.0.1:0", "metrics": ""},
        "identity": {
            "tls_key": str(mine.tls.private_key),
            "tls_certificate": str(mine.tls.certificate_chain),
            "participant_authority": str(mine.tls.trusted_authority),
            "signing_key": str(mine.signing_key),
            "log_key": str(mine.log_key),
        },
        "study": {
            "rounds": 2,
            "steps_per_round": 1,
            "learning_rate": 1.0,
            "epsilon": float("inf"),
            "send_after_seconds": 0.0,
            "public_images": str(folder),
            **(study or {}),
        },
        "rounds": {"interval_seconds": 0.0, "collect_seconds": 60.0, "quorum": 2, **rounds},
        "trust": dict(trust or {}),
        "limits": {"idle_seconds": 5.0},
    }
    if has_holdout:
        table["holdout"] = {"images": str(folder)}
    config = Config.model_validate(table, context={"folder": folder})
    return Site(folder, config, load_allowlist(mine.allowlist), nodes)


@dataclass
class QuadraticScorer:
    """A ``ports.Scorer`` whose loss is half the squared distance to ``TARGET``."""

    models: FileModelStore
    has_holdout: bool = True
    fail_next: list[Exception] = field(default_factory=list)
    go_on: asyncio.Event | None = None
    """Scoring waits for it."""
    rooted: set[Digest] = field(default_factory=set)
    bears: list[float] = field(default_factory=list)
    """How much of the next candidates the holdout set bears; all of any after those."""
    tried: list[Path] = field(default_factory=list)
    """Candidates it was asked about."""
    beyond: NDArray[np.float64] | None = None
    """What its own training does beyond its gradients."""
    build: asyncio.Event | None = None
    """Aggregating by a rule that looks at the root set waits for it."""

    async def initial_model(self, folder: Path) -> InitialModel:
        blocks = (bytes(spec.byte_count) for spec in SCHEMA.tensors)
        digest = store_model(folder, SCHEMA, blocks)
        return InitialModel(folder / f"{digest}{MODEL_SUFFIX}", None)

    async def prepare(self) -> HoldoutFacts:
        self._fail()
        return HoldoutFacts(images=500, skipped=0, per_class=(100,) * 5)

    async def root(self, base_model: Digest, *, folder: Path) -> tuple[RootGradient, ...]:
        self._fail()
        # First for the record while a round is scored, then for the rule.
        if base_model in self.rooted and self.build is not None:
            await self.build.wait()
        self.rooted.add(base_model)
        base = weights_of(self.models.path(base_model))
        return self._rows("root", folder, base)

    async def report(
        self,
        base_model: Digest,
        updates: Mapping[NodeId, Path],
        *,
        weights: Mapping[NodeId, float],
        folder: Path,
    ) -> HoldoutReport:
        self._fail()
        if self.go_on is not None:
            await self.go_on.wait()
        base = weights_of(self.models.path(base_model))
        step = common_step(
            lambda node: np.fromfile(updates[node], dtype="<f4"), {n: weights[n] for n in updates}
        )
        halfway = base if step is None else base + step / 2.0
        improvement = {
            node: loss(base) - loss(base + np.fromfile(path, dtype="<f4"))
            for node, path in updates.items()
        }
        # The loss is quadratic: the mean of both ends' gradients is the one halfway.
        path = self._rows("path", folder, halfway)
        return HoldoutReport(path, self._beyond(folder), improvement, reach=1.0)

    def _beyond(self, folder: Path) -> BeyondRow | None:
        if self.beyond is None:
            return None
        data = self.beyond.astype("<f4").tobytes()
        path = folder / "beyond-gradients.f32"
        path.write_bytes(data)
        return BeyondRow(path, digest_of(data))

    async def reach(self, base_model: Digest, candidate: Path) -> float:
        self._fail()
        assert self.models.has(base_model)
        self.tried.append(candidate)
        return self.bears.pop(0) if self.bears else 1.0

    async def evaluate(self, model: Digest) -> Evaluation:
        self._fail()
        left = loss(weights_of(self.models.path(model)))
        accuracy = float(np.exp(-left))
        return Evaluation(accuracy, accuracy, accuracy, (accuracy,) * 5, 100)

    async def close(self) -> None:
        return None

    def _fail(self) -> None:
        assert self.has_holdout, "asked about a holdout set that there is none of"
        if self.fail_next:
            raise self.fail_next.pop(0)

    @staticmethod
    def _rows(kind: str, folder: Path, weights: NDArray[np.float64]) -> tuple[RootGradient, ...]:
        found = []
        for class_index, fold in product(range(5), range(2)):
            draws = np.random.default_rng([class_index, fold])
            row = TARGET - weights + draws.normal(0.0, 0.1, ELEMENTS) / np.sqrt(ELEMENTS)
            path = folder / f"{kind}-{class_index}-{fold}.f32"
            data = row.astype("<f4").tobytes()
            path.write_bytes(data)
            part = RootRow(path.stem, class_index, fold, 50)
            found.append(RootGradient(part, path, digest_of(data)))
        return tuple(found)


def weights_of(model: Path) -> NDArray[np.float64]:
    _, tensors = read_model(model)
    return np.asarray(tensors["head.weight"], dtype=np.float64).reshape(-1)


def loss(weights: NDArray[np.float64]) -> float:
    return float(((weights - TARGET) ** 2).sum() / 2)


@dataclass
class Running:
    """One lifetime of a coordinator."""

    site: Site
    store: Store
    meter: Metrics
    register: Register
    use_cases: UseCases
    plan: StudyPlan
    models: FileModelStore
    scorer: QuadraticScorer
    roster: Roster


@asynccontextmanager
async def running(
    site: Site,
    store: Store | None = None,
    *,
    spool_bytes: int = DEFAULT_QUOTA_BYTES,
    shared: SharedStore | None = None,
    clock: Callable[[], datetime] = utc_now,
    elapsed: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Running]:
    """Start a coordinator from what is on disk; nothing is tidied up at its end."""
    store = store or site.connect_store()
    register = Register(store)
    models = FileModelStore.open(site.config.state_dir / "models")
    scorer = QuadraticScorer(models, has_holdout=site.config.holdout is not None)
    signer = load_p256_key(site.config.identity.signing_key)
    plan = await found_or_resume(
        config=site.config,
        register=register,
        models=models,
        scorer=scorer,
        signer=signer,
        clock=utc_now,
    )
    meter = Metrics()
    disk = DiskSpool.open_folder(site.config.state_dir / "spool", quota_bytes=spool_bytes)
    outside = Outside(
        store=store,
        spool=disk if shared is None else SharedSpool(disk, shared),
        shared=shared,
        histories=FileHistories.open_folder(site.config.state_dir / "histories"),
        models=models,
        scorer=scorer,
        signer=signer,
        meter=meter,
        clock=clock,
        entropy=secrets.token_bytes,
        elapsed=elapsed,
        tick_seconds=TICK_SECONDS,
    )
    roster = Roster(site.allowlist)
    use_cases = assemble(
        site.config,
        plan=plan,
        register=register,
        roster=roster,
        outside=outside,
        checkpoints=site.checkpoints(store),
    )
    await log_allowlist(register, site.allowlist, clock=utc_now)
    conducting = asyncio.create_task(use_cases.conductor.run())
    try:
        yield Running(site, store, meter, register, use_cases, plan, models, scorer, roster)
        if conducting.done():
            conducting.result()
    finally:
        conducting.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await conducting
        await register.settle()
        await use_cases.intake.close()
        store.close()


@dataclass(frozen=True)
class Sealed:
    """An update as a hospital would send it."""

    envelope: Envelope
    chunks: tuple[bytes, ...]

    @property
    def hashes(self) -> bytes:
        return b"".join(leaf_hash(chunk) for chunk in self.chunks)


def honest_update(node_id: NodeId, start: RoundStart) -> NDArray[np.float64]:
    """A step towards the target, with a disturbance of the hospital's own."""
    seed = hashlib.sha256(f"{node_id} {start.round_id}".encode()).digest()
    draws = np.random.default_rng(list(seed[:8]))
    noise = draws.normal(0.0, 1.0, ELEMENTS) / np.sqrt(ELEMENTS)
    update: NDArray[np.float64] = 0.3 * TARGET + 0.05 * noise
    return update


def seal(
    site: Site,
    node_id: NodeId,
    start: RoundStart,
    plan: StudyPlan,
    update: NDArray[np.float64],
    **changes: object,
) -> Sealed:
    """Sign an update; ``changes`` replace fields of the manifest."""
    data = update.astype("<f4").tobytes()
    chunks = tuple(data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))
    fields: dict[str, object] = {
        "federation_id": start.federation_id,
        "study_id": start.study_id,
        "round_id": start.round_id,
        "nonce": start.nonce,
        "plan_digest": start.plan_digest,
        "base_model": start.base_model,
        "schema_digest": plan.schema.digest,
        "byte_count": len(data),
        "chunk_bytes": CHUNK_BYTES,
        "chunk_root": merkle_root([leaf_hash(chunk) for chunk in chunks]),
        "privacy": PrivacySpend(
            plan.privacy.noise_multiplier,
            plan.privacy.max_grad_norm,
            plan.privacy.sample_rate,
            plan.training.steps_per_round,
            plan.privacy.noise,
        ),
        "expires_at": start.deadline + timedelta(hours=1),
    }
    manifest = UpdateManifest(**{**fields, **changes})  # type: ignore[arg-type]  # tests replace any field
    envelope = sign(PayloadType.UPDATE, format_update_manifest(manifest), site.signer(node_id))
    return Sealed(envelope, chunks)


async def next_round(
    coordinator: Running, node_id: NodeId, *, have_round: int = 0, wait_seconds: float = 1.0
) -> RoundStart | None:
    """The round a hospital is offered, or ``None`` when the study is complete.

    Asked for again after ``wait_seconds``: so long a hospital takes to notice a dead coordinator.
    """
    while True:
        offer = await coordinator.use_cases.invitations.await_round(
            coordinator.site.allowed(node_id), have_round=have_round, wait_seconds=wait_seconds
        )
        if offer.round_start is not None:
            return parse_round_start(offer.round_start.payload)
        if offer.study_complete:
            return None


async def send(
    coordinator: Running, node_id: NodeId, sealed: Sealed, *, chunks: int | None = None
) -> Progress:
    """Declare an update and send its chunks, or only the first few."""
    intake, node = coordinator.use_cases.intake, coordinator.site.allowed(node_id)
    progress = await intake.open_update(node, sealed.envelope, sealed.hashes)
    if progress.receipt is not None:
        return progress
    reception = await intake.receive(node, progress.update_digest)
    last = len(sealed.chunks) if chunks is None else chunks
    for index in range(progress.durable_chunks, last):
        await reception.take(index, sealed.chunks[index])
    await reception.settle()
    if reception.is_complete:
        return await intake.complete(node, reception)
    return await intake.pause(reception)


Make = Callable[[NodeId, RoundStart], NDArray[np.float64]]


async def take_part(coordinator: Running, node_id: NodeId, *, make: Make = honest_update) -> None:
    """Send an update in every round until the study is complete."""
    have_round = 0
    while (start := await next_round(coordinator, node_id, have_round=have_round)) is not None:
        sealed = seal(coordinator.site, node_id, start, coordinator.plan, make(node_id, start))
        await send(coordinator, node_id, sealed)
        have_round = start.round_id


async def play(coordinator: Running, *, make: Mapping[NodeId, Make] | None = None) -> None:
    """Let every hospital take part until the study is complete."""
    await together(
        *(
            take_part(coordinator, node_id, make=(make or {}).get(node_id, honest_update))
            for node_id in coordinator.site.hospitals
        )
    )


async def together(*hospitals: Coroutine[Any, Any, None]) -> None:
    """Run hospitals until all are done, or one fails: then nobody goes on."""
    tasks = [asyncio.create_task(hospital) for hospital in hospitals]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def after_scoring(
    coordinator: Running,
    then: Callable[[HoldoutReport, Mapping[NodeId, float]], Awaitable[HoldoutReport]],
) -> None:
    """Have ``then`` answer for the scorer, given its report and the weights it was asked about."""
    report = coordinator.scorer.report

    async def answered(
        base_model: Digest,
        updates: Mapping[NodeId, Path],
        *,
        weights: Mapping[NodeId, float],
        folder: Path,
    ) -> HoldoutReport:
        return await then(
            await report(base_model, updates, weights=weights, folder=folder), weights
        )

    # The scorer is the harness's stand-in for a worker process.
    coordinator.scorer.report = answered  # type: ignore[method-assign]


async def until_paused(coordinator: Running) -> State:
    state = await coordinator.register.state()
    while state.study is None or not state.study.paused:
        await coordinator.register.wait_for_change(state, seconds=10.0)
        state = await coordinator.register.state()
    return state


async def final_model(coordinator: Running) -> Digest:
    state = await coordinator.register.state()
    assert state.latest_model is not None
    return state.latest_model.digest


def metrics_of(coordinator: Running) -> dict[str, float]:
    """The coordinator's metrics by name, with their labels."""
    lines = generate_latest(coordinator.meter.registry).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def events_of(store: Store) -> list[dict[str, object]]:
    """The log's entries, parsed."""
    return [
        dict(parse_entry(each.data))
        for each in store.log_entries(start=0, limit=10_000)
        if each.data is not None
    ]
