"""A coordinator inside this process: the daemon's use cases, without its network.

Admission, trust, robust rules, log and models are the daemon's own, on SQLite in a folder, and
a folder that exists is gone on from. Nobody listens; the hospitals are in this process too
(``hospital.py``). Runs on a thread of its own, because a notebook has an event loop already.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from pydantic import ValidationError
from typing_extensions import Buffer

from matl.sdk.keys import Keys
from matl.sdk.terms import FEDERATION, Terms, coordinator_table, planned
from matl_common.clock import utc_now
from matl_common.durable import FolderInUseError, owned_folder
from matl_common.errors import ConfigurationError, MatlError
from matl_common.identity.allowlist import AllowedNode
from matl_common.identity.wrapping import create_key_file, load_key_file
from matl_common.ids import FederationId, NodeId
from matl_common.logs import configure_logs
from matl_common.protocol import StudyPlan
from matl_common.signing import Envelope, Signer
from matl_common.tensors import ModelSchema, store_model
from matl_common.tlog.checkpoint import log_key
from matl_common.tlog.entry import Entry
from matl_common.tlog.names import log_origin
from matl_common.validation import problems_in
from matl_coordinator.config import Config
from matl_coordinator.core.rounds import NodeExcluded, Phase, Round, advance
from matl_coordinator.metrics import Metrics
from matl_coordinator.ports import ModelRecord, PutRound, Scorer, State
from matl_coordinator.protection import Protection, protection_of
from matl_coordinator.roster import Roster
from matl_coordinator.service.assembly import Outside, UseCases, assemble
from matl_coordinator.service.checkpoints import Checkpoints, LogSigner, witness_policy
from matl_coordinator.service.enrolment import log_allowlist
from matl_coordinator.service.entries import round_entries
from matl_coordinator.service.founding import StudyMismatchError, found, plan_of
from matl_coordinator.service.intake import RefusedError
from matl_coordinator.service.invitations import RoundOffer
from matl_coordinator.service.register import Decision, Register, applied
from matl_coordinator.store.anchor import FileAnchor
from matl_coordinator.store.histories import FileHistories
from matl_coordinator.store.models import FileModelStore
from matl_coordinator.store.spool import DiskSpool
from matl_coordinator.store.sql import SqlStore

TICK_SECONDS: Final = 0.01
_T = TypeVar("_T")


class StudyCompleteError(MatlError):
    """Every round of the study has been released."""


class RoundHeldError(MatlError):
    """No model could be made of a round's updates; the last one stands, and the study waits."""


class TooFewUpdatesError(MatlError):
    """The round has not the updates that it takes."""


class EmbeddedCoordinator:
    """One study's coordinator in a folder that it holds until ``close``.

    Every method blocks, from whatever thread it is called.
    """

    def __init__(
        self,
        folder: Path,
        terms: Terms,
        *,
        keys: Keys,
        schema: ModelSchema,
        first_model: Callable[[], Iterable[Buffer]],
        scorer: Callable[[FileModelStore], Scorer],
    ) -> None:
        """Begin the study, or go on with the one that the folder holds.

        Args:
            folder: the coordinator's state, made where it is missing.
            terms: what is fixed about the study.
            keys: of everybody.
            schema: of its model.
            first_model: the values of all its tensors in the schema's order; asked for once.
            scorer: judges models on the holdout set; made with the folder's models.

        Raises:
            ConfigurationError: the folder is in use, or the terms cannot be.
            StudyMismatchError: it holds another study, or one with other terms.
            StoreError: the database does not answer.
        """
        if not structlog.is_configured():
            # A notebook wants results, and a daemon's log beside them only where it matters.
            configure_logs("console", level=logging.ERROR)
        self._stack = ExitStack()
        try:
            self._own(folder)
            self._loop = self._stack.enter_context(_running_loop())
            self._run(
                self._open(folder, terms, keys, schema, first_model=first_model, scorer=scorer)
            )
        except BaseException:
            self._stack.close()
            raise

    def _own(self, folder: Path) -> None:
        try:
            self._stack.enter_context(owned_folder(folder))
        except FolderInUseError as error:
            raise FolderInUseError(
                f"{folder.parent} is in use: close() the client that has it, which in a notebook "
                "may be the one of an earlier cell, or give this one a folder= of its own"
            ) from error

    async def _open(
        self,
        folder: Path,
        terms: Terms,
        keys: Keys,
        schema: ModelSchema,
        *,
        first_model: Callable[[], Iterable[Buffer]],
        scorer: Callable[[FileModelStore], Scorer],
    ) -> None:
        try:
            config = Config.model_validate(coordinator_table(terms, folder))
        except ValidationError as error:
            problems = problems_in(error, whole="study")
            raise ConfigurationError(f"an embedded study cannot be so: {problems}") from None
        self._allowlist = keys.enrolled(terms.hospitals)
        origin = log_origin(FederationId(FEDERATION))
        wrapping = folder / "log-encryption.key"
        if not wrapping.exists():
            create_key_file(wrapping)
        self.store = SqlStore.connect(
            config.database_url, log_origin=origin, log_key=load_key_file(wrapping)
        )
        self._stack.callback(self.store.close)
        self._register = Register(self.store)
        self.models = FileModelStore.open(folder / "models")
        self.signer: Signer = keys.coordinator
        self.plan = await self._founded(terms, schema, first_model)
        judge = scorer(self.models)
        verifier = log_key(origin, keys.log.public_key)
        checkpoints = Checkpoints(
            store=self.store,
            anchor=FileAnchor(folder / "log-checkpoint.txt"),
            log=LogSigner(verifier, keys.log),
            policy=witness_policy(self._allowlist, verifier, f=terms.byzantine),
            clock=utc_now,
        )
        await checkpoints.resume()
        self._use_cases: UseCases = assemble(
            config,
            plan=self.plan,
            register=self._register,
            roster=Roster(self._allowlist),
            outside=Outside(
                store=self.store,
                spool=DiskSpool.open_folder(folder / "spool"),
                histories=FileHistories.open_folder(folder / "histories"),
                models=self.models,
                scorer=judge,
                signer=keys.coordinator,
                meter=Metrics(),
                clock=utc_now,
                entropy=secrets.token_bytes,
                tick_seconds=TICK_SECONDS,
            ),
            checkpoints=checkpoints,
        )
        self._terms = terms
        self.protection: Protection = protection_of(config, enrolled=len(terms.hospitals))
        await log_allowlist(self._register, self._allowlist, clock=utc_now)

    async def _founded(
        self, terms: Terms, schema: ModelSchema, first_model: Callable[[], Iterable[Buffer]]
    ) -> StudyPlan:
        wanted = planned(terms, schema)
        state = await self._register.state()
        if state.study is None:
            incoming = self.models.incoming
            digest = store_model(incoming, schema, first_model())
            self.models.adopt(incoming / f"{digest}.safetensors")
            model = ModelRecord(digest, schema.file_bytes, 0, utc_now())
            await found(wanted, model, register=self._register, signer=self.signer)
            state = await self._register.state()
        assert state.study is not None, "the study has just been founded"
        plan = plan_of(state.study, self.signer)
        if plan != wanted:
            raise StudyMismatchError(
                f"the folder holds study {plan.study_id!r}, which began with other terms or with "
                "another model; give MATLClient the arguments it began with, or another folder=, "
                "whose ledgers do not know of this one: add the ε of both yourself"
            )
        return plan

    @property
    def coordinator_key(self) -> EllipticCurvePublicKey:
        """What plans, rounds and receipts are verified with."""
        return self.signer.public_key

    def allowed(self, node: NodeId) -> AllowedNode:
        """An enrolled hospital."""
        return self._allowlist.nodes[node]

    def state(self) -> State:
        """The study as its database has confirmed it."""
        return self._run(self._register.state())

    def study_plan(self) -> Envelope:
        """The signed plan."""
        return self._run(self._use_cases.invitations.study_plan())

    def rounds(self) -> tuple[Round, ...]:
        """Every round so far, oldest first."""
        return self._run(self._rounds())

    async def _rounds(self) -> tuple[Round, ...]:
        listed: list[Round] = []
        while page := await self._use_cases.operations.rounds(
            after=listed[-1].round_id if listed else 0, limit=100
        ):
            listed += page
        return tuple(listed)

    def resume(self, reason: str) -> None:
        """Open rounds again after one was held; ``reason`` is logged.

        Raises:
            OperationError: the study is not paused.
        """
        self._run(self._use_cases.operations.resume(NodeId("researcher"), reason))

    def invite(self, node: NodeId) -> RoundOffer:
        """The round that a hospital is to work on; opens one where none is open.

        Raises:
            StudyCompleteError: there is no further round.
            RoundHeldError: the study is paused.
        """
        return self._run(self._invite(node))

    async def _invite(self, node: NodeId) -> RoundOffer:
        invitations, conductor = self._use_cases.invitations, self._use_cases.conductor
        while True:
            offer = await invitations.await_round(
                self.allowed(node), have_round=0, wait_seconds=0.0
            )
            state = await self._register.state()
            if offer.study_complete:
                raise StudyCompleteError(
                    f"all {self._terms.rounds} rounds of study {self._terms.study!r} are over; "
                    "begin another in another folder=, whose ledgers do not know of this one, so "
                    "that you add its ε yourself; or say more rounds= at the beginning"
                )
            if state.round is not None and state.round.phase is Phase.COLLECTING:
                return offer
            if state.study is not None and state.study.paused:
                raise RoundHeldError(f"the study is paused: {state.study.pause_reason}{_REMEDY}")
            await conductor.step(state)

    def send(
        self, node: NodeId, envelope: Envelope, hashes: bytes, chunks: Iterable[bytes]
    ) -> Envelope | str:
        """Declare an update and hand its chunks over; returns the receipt, or why it was refused.

        Raises:
            StoreError, SpoolError: a disk or database failed; the same call may succeed later.
        """
        return self._run(self._send(node, envelope, hashes, chunks))

    async def _send(
        self, node: NodeId, envelope: Envelope, hashes: bytes, chunks: Iterable[bytes]
    ) -> Envelope | str:
        intake, allowed = self._use_cases.intake, self.allowed(node)
        try:
            progress = await intake.open_update(allowed, envelope, hashes)
            if progress.receipt is None:
                reception = await intake.receive(allowed, progress.update_digest)
                for index, chunk in enumerate(chunks):
                    if index >= progress.durable_chunks:
                        await reception.take(index, chunk)
                progress = await intake.complete(allowed, reception)
        except RefusedError as error:
            return str(error)
        assert progress.receipt is not None, "a complete update was decided on"
        return progress.receipt

    def finish_round(self) -> Round:
        """Score, aggregate and release what came; returns the round.

        Raises:
            TooFewUpdatesError: nothing was submitted since the last round, or less than the
                quorum.
            RoundHeldError: the core made no model of it.
        """
        return self._run(self._finish())

    async def _finish(self) -> Round:
        state = await self._register.state()
        rnd = state.round
        if rnd is None or rnd.phase.is_final:
            raise TooFewUpdatesError("no round is open; submit an update of every hospital first")
        if len(rnd.admitted) < rnd.rules.quorum:
            refused = ", ".join(f"{each.node_id} ({each.reason})" for each in rnd.excluded)
            raise TooFewUpdatesError(
                f"round {rnd.round_id} has {len(rnd.admitted)} admitted updates and takes "
                f"{rnd.rules.quorum}; submit more" + (f". Refused: {refused}" if refused else "")
            )
        number = rnd.round_id
        if rnd.phase is Phase.COLLECTING:
            state, _ = await self._register.decide(_without_missing)
        while rnd is None or not rnd.phase.is_final:
            await self._use_cases.conductor.step(state)
            state = await self._register.state()
            rnd = state.round
        assert rnd.round_id == number, "the next round opens when a hospital asks for it"
        if rnd.phase is not Phase.RELEASED:
            raise RoundHeldError(f"round {number}: {rnd.abort_reason}{_REMEDY}")
        return rnd

    def close(self) -> None:
        """Let go of the folder; doing it again changes nothing."""
        self._stack.close()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


_REMEDY = ". What it cost stays spent. Look why, then call resume(reason) on the client"


def _without_missing(state: State) -> Decision[State]:
    """Wait no more for hospitals that submitted nothing."""
    rnd, at = state.round, utc_now()
    assert rnd is not None, "a round is open"
    entries: list[Entry] = []
    for node in sorted(rnd.pending_nodes):
        missing = NodeExcluded(node, "late: nothing was submitted before the round was closed")
        rnd = advance(rnd, missing)
        entries += round_entries(rnd, missing, at=at, node=node, reason=missing.reason)
    return Decision(applied(state, (PutRound(rnd),), None), (PutRound(rnd),), tuple(entries))


@contextmanager
def _running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop on a thread, for as long as the block lasts."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="matl-embedded", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
