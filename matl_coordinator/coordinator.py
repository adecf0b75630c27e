"""One running coordinator: every part made, started in order, and ended in reverse.

Start-up is recovery: the state is read from the store, and the first step of the
conductor goes on where the last process stopped, however it stopped.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import structlog

from matl_common.clock import utc_now
from matl_common.durable import make_state_folder, owned_folder, remove_leftovers
from matl_common.errors import ConfigurationError
from matl_common.identity.allowlist import Allowlist
from matl_common.identity.wrapping import KeyEncryptionKey
from matl_common.ids import NodeId
from matl_common.protocol import StudyPlan
from matl_common.version import __version__
from matl_common.worker import WorkerLimits, WorkerProcess
from matl_coordinator.aggregation import LocalExecutor, RayExecutor
from matl_coordinator.aggregation.sharing import SharedStore
from matl_coordinator.attesters.choice import make_attester
from matl_coordinator.config import Config
from matl_coordinator.core.robust.compiled import compiled_loops
from matl_coordinator.last_backup import last_completed
from matl_coordinator.log_identity import configured_policy
from matl_coordinator.metrics import Metrics
from matl_coordinator.named_material import Held, wrapping_key_of
from matl_coordinator.ports import ForeignRow, LendingSpool, StoreError
from matl_coordinator.preflight import (
    check_hospitals,
    enrolled_participants,
    noise_warnings,
    rule_warnings,
)
from matl_coordinator.protection import Protection, protection_of
from matl_coordinator.restore import refuse_unfinished
from matl_coordinator.rpc.handshakes import watched_handshakes
from matl_coordinator.rpc.renewal import CertificateFiles
from matl_coordinator.rpc.server import GuardedServer, build_server
from matl_coordinator.rpc.waiting import WaitingServer
from matl_coordinator.scoring.client import WorkerScorer
from matl_coordinator.service.assembly import Outside, UseCases, assemble
from matl_coordinator.service.attesting import (
    Machine,
    Subject,
    attest_itself,
    verdict_facts,
)
from matl_coordinator.service.checkpoints import Checkpoints
from matl_coordinator.service.enrolment import EnrolmentFile, log_allowlist
from matl_coordinator.service.entries import Fact, entry
from matl_coordinator.service.founding import found_or_resume
from matl_coordinator.service.housekeeping import Housekeeping, Policy
from matl_coordinator.service.publication import Publication
from matl_coordinator.service.readings import Readings
from matl_coordinator.service.register import Decision, Register
from matl_coordinator.service.vitals import VitalSigns
from matl_coordinator.service.watch import Watch
from matl_coordinator.standby import Leadership
from matl_coordinator.start_record import log_schema, show_standing, started_facts
from matl_coordinator.store.anchor import FileAnchor, log_anchor
from matl_coordinator.store.copying import folder_bytes
from matl_coordinator.store.files import FencedFiles, LocalFiles
from matl_coordinator.store.histories import FileHistories
from matl_coordinator.store.lock import LeaderLock
from matl_coordinator.store.migrate import head, upgrade_apart
from matl_coordinator.store.models import FileModelStore
from matl_coordinator.store.releases import ReleaseFolder
from matl_coordinator.store.shared import SharedSpool
from matl_coordinator.store.spool import DiskSpool
from matl_coordinator.store.sql import SqlStore

HOUSEKEEPING_SECONDS = 5.0
"""How often it is looked whether a round has left something to put away."""
SUM_UP_SECONDS = 30.0
"""How often it is looked whether there are refusals or reads to sum up in the log."""

log = structlog.get_logger(__name__)
T = TypeVar("T")


class StoppedError(Exception):
    """The daemon was told to stop; not a failure."""


class Coordinator:
    """All parts of one running coordinator. ``run`` returns when told to stop."""

    def __init__(self, config: Config) -> None:
        """Read keys and allow-list; nothing is opened yet.

        Raises:
            ConfigurationError, InvalidInputError: a file is missing or does not fit.
            TokenError: a key's token cannot be reached.
        """
        self._config = config
        self._metrics = Metrics()
        self._stop = asyncio.Event()
        # Where this daemon leads only while no other one does.
        self._leadership: Leadership | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._files = LocalFiles()
        # Called on SIGHUP.
        self._readers: list[Callable[[], None]] = []
        self._held = Held.read(config)
        self._executor = _executor_of(config)
        self._shared = _shared_store_of(config)

    def stop(self) -> None:
        """Drain and return from ``run``."""
        self._stop.set()

    def read_again(self) -> None:
        """Look at the files that may change while the daemon runs."""
        for read_now in self._readers:
            read_now()

    async def run(self) -> None:
        """Serve until stopped; where another daemon leads, once that one does no more.

        Raises:
            MatlError: the coordinator cannot go on; nothing durable is lost.
        """
        config = self._config
        async with AsyncExitStack() as stack:
            stack.callback(self._metrics.close)
            self._serve_metrics()
            end_waiting = await self._may_lead(stack)
            refuse_unfinished(config.state_dir)
            await asyncio.to_thread(upgrade_apart, config.database_url)
            machine = await self._attest_itself()
            wrapping_key = await asyncio.to_thread(wrapping_key_of, config)
            store = await asyncio.to_thread(self._store, wrapping_key)
            stack.callback(store.close)
            for weakness in await asyncio.to_thread(store.weaknesses):
                log.warning("log_weaker", reason=weakness)
            checkpoints = self._checkpoints(store)
            await checkpoints.resume()
            register = Register(store, on_commit=self._metrics.committed)
            watch = Watch(register=register, meter=self._metrics, clock=utc_now)
            loop = asyncio.get_running_loop()
            stack.enter_context(
                watched_handshakes(
                    lambda reason: loop.call_soon_threadsafe(watch.handshake_refused, reason)
                )
            )
            models = await asyncio.to_thread(
                FileModelStore.open, config.state_dir / "models", files=self._files
            )
            scorer = self._scorer(models)
            stack.push_async_callback(scorer.close)
            log.info("coordinator_starting", version=__version__, node=config.node_id)
            self._held.show()
            plan = await self._unless_stopped(
                found_or_resume(
                    config=config,
                    register=register,
                    models=models,
                    scorer=scorer,
                    signer=self._held.signer,
                    clock=utc_now,
                    check=self._check_noise,
                )
            )
            protection = self._protection(plan, machine)
            if config.rounds.aggregator.coordinatewise:
                # Now rather than in the first round; the connections of hospitals can wait.
                await asyncio.to_thread(compiled_loops)
            stack.push_async_callback(asyncio.to_thread, self._executor.close)
            outside = Outside(
                store=store,
                spool=await asyncio.to_thread(self._spool),
                executor=self._executor,
                shared=self._shared,
                histories=FileHistories.open_folder(
                    config.state_dir / "histories", files=self._files
                ),
                models=models,
                scorer=scorer,
                signer=self._held.signer,
                meter=self._metrics,
                clock=utc_now,
                entropy=secrets.token_bytes,
            )
            use_cases = assemble(
                config,
                plan=plan,
                register=register,
                roster=self._held.roster,
                outside=outside,
                checkpoints=checkpoints,
                protection=lambda: self._protection_now(plan, machine),
            )
            publication = Publication(
                register=register,
                store=store,
                models=models,
                checkpoints=checkpoints,
                releases=ReleaseFolder.open_folder(config.state_dir / "released"),
                clock=utc_now,
                tick_seconds=outside.tick_seconds,
            )
            server = build_server(
                config,
                identity=self._held.tls,
                use_cases=use_cases,
                roster=self._held.roster,
                watch=watch,
                meter=self._metrics,
                clock=utc_now,
                attesting=machine and machine.attesting(register, clock=utc_now),
            )
            await log_allowlist(register, self._held.allowlist, clock=utc_now)
            await self._note_start(register, protection, wrapping_key, machine)
            stack.push_async_callback(self._note_stop, register)
            stack.push_async_callback(_settle, watch, use_cases.readings, is_over=True)
            stack.push_async_callback(
                _cancelled, asyncio.create_task(_sum_up(watch, use_cases.readings))
            )
            stack.push_async_callback(register.settle)
            stack.push_async_callback(use_cases.intake.close)
            for work in (
                publication,
                self._housekeeping(register, store, models),
                self._vitals(register, store, use_cases, outside),
            ):
                stack.push_async_callback(_cancelled, asyncio.create_task(work.run()))
            self._follow_files(stack, plan=plan, register=register, checkpoints=checkpoints)
            stack.push_async_exit(partial(self._end, server))
            await end_waiting()
            port = await server.start(config.listen.address)
            state = await register.state()
            self._metrics.leads(state.epoch)
            await show_standing(self._metrics, state, store)
            log.info(
                "coordinator_ready",
                node=config.node_id,
                port=port,
                study=plan.study_id,
                rounds_released=state.rounds_released,
                rounds_planned=config.study.rounds,
                round=None if state.round is None else state.round.round_id,
                phase=None if state.round is None else state.round.phase.value,
                reign=state.epoch,
            )
            await self._unless_stopped(use_cases.conductor.run())

    async def _may_lead(self, stack: AsyncExitStack) -> Callable[[], Awaitable[None]]:
        """Return once this daemon may lead, with what ends its answers that it waits.

        Raises:
            FolderInUseError: another daemon has the folder, and neither is to stand by.
            StoppedError: told to stop.
        """
        config, standby = self._config, self._config.standby
        if standby is None:
            stack.enter_context(owned_folder(config.state_dir))
            remove_leftovers(config.state_dir)
            return _nothing
        lock = LeaderLock(
            config.database_url, name=standby.name, lease_seconds=standby.lease_seconds
        )
        self._leadership = leadership = Leadership(
            lock, poll_seconds=standby.poll_seconds, lease_seconds=standby.lease_seconds
        )
        stack.push_async_callback(leadership.close)
        self._files = FencedFiles(leadership.is_ours)
        waiting = WaitingServer(self._held.tls, meter=self._metrics, clock=utc_now)
        await waiting.start(config.listen.address)
        stack.push_async_callback(waiting.stop)
        await self._unless_stopped(leadership.win())
        log.info("coordinator_leads", name=standby.name)
        make_state_folder(config.state_dir)
        # A daemon that led before and writes still does so for nothing, and finds out.
        remove_leftovers(config.state_dir)
        # Once more: it may have waited for months.
        self._held = Held.read(config)
        self._keeping = asyncio.create_task(leadership.keep())
        stack.push_async_callback(_ended, self._keeping)
        return waiting.stop

    async def _end(
        self,
        server: GuardedServer,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let calls finish, but not where another daemon waits for their callers."""
        leads = not isinstance(error, StoreError)
        grace_seconds = self._config.limits.drain_seconds if leads else 0.0
        log.info("coordinator_draining", seconds_at_most=grace_seconds)
        await server.stop(grace_seconds=grace_seconds)

    def _housekeeping(
        self, register: Register, store: SqlStore, models: FileModelStore
    ) -> Housekeeping:
        config = self._config
        return Housekeeping(
            register=register,
            store=store,
            models=models,
            published=ReleaseFolder.open_folder(config.state_dir / "released"),
            policy=Policy(config.limits.keep_models, config.rounds.keep_spooled),
            meter=self._metrics,
            measure=partial(_disk_use, config.state_dir),
            clock=utc_now,
            tick_seconds=HOUSEKEEPING_SECONDS,
        )

    def _vitals(
        self, register: Register, store: SqlStore, use_cases: UseCases, outside: Outside
    ) -> VitalSigns:
        return VitalSigns(
            register=register,
            overview=use_cases.overview,
            checkpoints=use_cases.checkpoints,
            watched=store,
            spool=outside.spool,
            enrolled=lambda: self._held.roster.participants,
            backed_up=partial(last_completed, self._config.state_dir),
            meter=self._metrics,
            clock=utc_now,
        )

    def _store(self, wrapping_key: KeyEncryptionKey) -> SqlStore:
        store = SqlStore.connect(
            self._config.database_url,
            log_origin=self._held.log.key.name,
            log_key=wrapping_key,
            report=self._foreign_row_found,
        )
        if self._leadership is not None:
            self._leadership.go_by(store.log_head)
        return store

    def _spool(self) -> LendingSpool:
        spool = DiskSpool.open_folder(
            self._config.state_dir / "spool",
            quota_bytes=self._config.limits.spool_bytes,
            files=self._files,
        )
        spool.drop_leftovers()
        return spool if self._shared is None else SharedSpool(spool, self._shared)

    def _foreign_row_found(self, row: ForeignRow) -> None:
        self._metrics.foreign_row_found(row.table)
        log.critical(
            "log_row_of_somebody_else",
            table=row.table,
            row=row.key,
            reason=f"{row.reason}; it is passed over. Somebody else can write to the database: "
            "change the password that the coordinator connects with",
        )

    def _checkpoints(self, store: SqlStore) -> Checkpoints:
        return Checkpoints(
            store=store,
            anchor=log_anchor(self._config.state_dir, daemon=self._config.daemon),
            log=self._held.log,
            policy=self._held.witnesses,
            clock=utc_now,
            report=self._foreign_row_found,
        )

    async def _attest_itself(self) -> Machine | None:
        """Judge this machine by the coordinator's own policy, before anything else is done.

        Raises:
            ConfigurationError: it is configured as attested, and is not.
        """
        config = self._config
        if config.attestation is None or self._held.policy is None:
            return None
        subject = Subject(config.federation.id, config.digest, lambda: self._held.tls.chain)
        attester = make_attester(config.attestation, now=utc_now())
        verdict = await attest_itself(attester, subject, self._held.policy, now=utc_now())
        tell = log.warning if verdict.simulated else log.info
        tell(
            "coordinator_attested_SIMULATED" if verdict.simulated else "coordinator_attested",
            verdict=str(verdict),
            config_digest=config.digest,
            policy=verdict.policy_digest,
        )
        return Machine(attester, subject, verdict)

    def _check_noise(self, plan: StudyPlan) -> None:
        noise_warnings(self._config, plan, self._held.allowlist)

    def _protection(self, plan: StudyPlan, machine: Machine | None) -> Protection:
        """What this coordinator may claim, said once at start."""
        protection = self._protection_now(plan, machine)
        log.info(
            "protection", mode=protection.mode_name, rule=protection.rule, claim=protection.claim
        )
        for warning in protection.warnings:
            log.warning("protection_weaker", reason=warning)
        return protection

    def _protection_now(self, plan: StudyPlan, machine: Machine | None) -> Protection:
        allowlist = self._held.roster.on_record
        try:
            warnings = noise_warnings(self._config, plan, allowlist)
        except ConfigurationError as error:
            # Possible after a removal only; the study is paused for it.
            warnings = (str(error),)
        return protection_of(
            self._config,
            enrolled=enrolled_participants(allowlist),
            warnings=(*warnings, *rule_warnings(self._config, allowlist)),
            attested=machine and machine.verdict,
        )

    def _check_study(self, plan: StudyPlan, allowlist: Allowlist) -> None:
        """Refuse a list that this coordinator would not start with."""
        check_hospitals(self._config, allowlist)
        noise_warnings(self._config, plan, allowlist)

    def _follow_files(
        self,
        stack: AsyncExitStack,
        *,
        plan: StudyPlan,
        register: Register,
        checkpoints: Checkpoints,
    ) -> None:
        """Follow the allow-list and the TLS files until the stack is left."""

        def follow() -> None:
            allowlist = self._held.roster.on_record
            checkpoints.go_by(configured_policy(self._config, allowlist, self._held.log))
            self._metrics.enrolment_changed(enrolled_participants(allowlist))

        follow()
        self._held.roster.follow(follow)
        enrolment = EnrolmentFile(
            path=self._config.federation.allowlist,
            roster=self._held.roster,
            register=register,
            meter=self._metrics,
            check=partial(self._check_study, plan),
            clock=utc_now,
        )
        certificates = CertificateFiles(
            identity=self._held.tls,
            meter=self._metrics,
            note=lambda event, facts: self._note(register, event, **facts),
            clock=utc_now,
        )
        for each in (enrolment, certificates):
            self._readers.append(each.read_now)
            stack.push_async_callback(_cancelled, asyncio.create_task(each.run()))

    def _scorer(self, models: FileModelStore) -> WorkerScorer:
        settings = self._config.worker
        worker = WorkerProcess(
            (sys.executable, "-m", "matl_coordinator.scoring.worker"),
            limits=WorkerLimits(
                idle_seconds=settings.keep_warm_seconds, memory_bytes=settings.memory_bytes
            ),
        )
        return WorkerScorer(worker, config=self._config, model_path=models.path)

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work, or leave it when told to stop, or when another daemon may lead.

        Raises:
            StoppedError: told to stop.
            LeadershipLostError: another daemon may lead.
        """
        working = asyncio.create_task(work)
        stopping = asyncio.create_task(self._stop.wait())
        ends = {working, stopping, *filter(None, [self._keeping])}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if working.done():
            return working.result()
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
        if self._keeping is not None and self._keeping.done():
            self._keeping.result()
        raise StoppedError("told to stop")

    def _serve_metrics(self) -> None:
        if not self._config.listen.metrics:
            return
        self._metrics.watch_disk(
            self._config.state_dir, spool_quota_bytes=self._config.limits.spool_bytes
        )
        self._metrics.serve(self._config.listen.metrics)

    async def _note_start(
        self,
        register: Register,
        protection: Protection,
        wrapping_key: KeyEncryptionKey,
        machine: Machine | None,
    ) -> None:
        """Log by which schema and which terms every later entry was made."""
        state_dir, node = self._config.state_dir, NodeId(self._config.node_id)
        schema = FileAnchor(state_dir / "log-schema.txt", holds="the logged schema")
        await log_schema(register, schema, head(), node=node, clock=utc_now)
        await self._note(
            register,
            "coordinator_started",
            **started_facts(self._config, protection, self._held.witnesses),
            config_digest=self._config.digest,
            attestation=None if machine is None else verdict_facts(machine.verdict),
            log_encryption_key=wrapping_key.name,
            log_encryption_key_holder=wrapping_key.holder,
            tls_key_holder=self._held.tls.holder,
            signing_key_holder=self._held.signer.holder,
            log_key_holder=self._held.log.signer.holder,
        )

    async def _note_stop(self, register: Register) -> None:
        """Log the end; a store that fails does not hinder it."""
        with suppress(StoreError):
            await self._note(register, "coordinator_stopped")

    async def _note(self, register: Register, event: str, **facts: Fact) -> None:
        """Log an event of the daemon itself."""
        node = NodeId(self._config.node_id)
        written = entry(event, at=utc_now(), **{"node": node, **facts})

        def decide(_: object) -> Decision[None]:
            return Decision(None, (), (written,))

        await register.decide(decide)


async def _nothing() -> None:
    pass


async def _ended(task: asyncio.Task[None]) -> None:
    """Whatever it came to."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _executor_of(config: Config) -> LocalExecutor | RayExecutor:
    local = LocalExecutor(config.worker.aggregation_threads)
    if config.aggregation.executor == "local":
        return local
    return RayExecutor(
        address=config.aggregation.ray_address,
        workers=config.aggregation.ray_workers,
        local=local,
        stall_seconds=config.aggregation.stall_seconds,
    )


def _shared_store_of(config: Config) -> SharedStore | None:
    place, names = config.aggregation.place, config.federation
    if place is None:
        return None
    return SharedStore(place, federation=names.id, study=names.study)


def _disk_use(state_dir: Path) -> dict[str, int]:
    """Bytes by kind; ``released`` holds the same files as ``models`` until those are put away."""
    return {kind: folder_bytes(state_dir / kind) for kind in ("models", "released", "spool")}


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _sum_up(watch: Watch, readings: Readings) -> None:
    while True:
        await asyncio.sleep(SUM_UP_SECONDS)
        await _settle(watch, readings)


async def _settle(watch: Watch, readings: Readings, *, is_over: bool = False) -> None:
    await watch.settle(is_over=is_over)
    await readings.settle(is_over=is_over)
