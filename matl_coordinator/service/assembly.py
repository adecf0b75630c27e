"""Puts the use cases together over a set of ports.

The daemon gives it the real ones, a test any that pass the contract suite.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from matl_common.ids import Digest, NodeId, RoundId
from matl_common.protocol import StudyPlan
from matl_common.remembered import Remembered
from matl_common.signing import Signer
from matl_common.version import __version__
from matl_coordinator.aggregation import Executor, LocalExecutor
from matl_coordinator.aggregation.sharing import SharedStore
from matl_coordinator.config import Config
from matl_coordinator.core.composite import Activity
from matl_coordinator.core.judgement import Enrolment
from matl_coordinator.core.rounds import Round, RoundRules
from matl_coordinator.ports import Histories, LendingSpool, Meter, ModelStore, Scorer, Store
from matl_coordinator.protection import Protection, protection_of
from matl_coordinator.roster import Roster
from matl_coordinator.service.activity import activities
from matl_coordinator.service.audit import Audit
from matl_coordinator.service.checkpoints import Checkpoints
from matl_coordinator.service.conductor import Conductor, Settings
from matl_coordinator.service.intake import Intake
from matl_coordinator.service.invitations import Invitations
from matl_coordinator.service.judging import Judge
from matl_coordinator.service.operations import Operations
from matl_coordinator.service.overview import Overview
from matl_coordinator.service.presence import Presence
from matl_coordinator.service.readings import Readings
from matl_coordinator.service.receipts import score_receipts
from matl_coordinator.service.register import Register
from matl_coordinator.service.survey import Surveyor, remembered_hashes

_TRIAL = b"matl: can rounds be signed?"


@dataclass(frozen=True, slots=True)
class Outside:
    """Everything the use cases need from outside."""

    store: Store
    spool: LendingSpool
    histories: Histories
    models: ModelStore
    scorer: Scorer
    signer: Signer
    meter: Meter
    clock: Callable[[], datetime]
    entropy: Callable[[int], bytes]
    executor: Executor | None = None
    """Does passes over updates; threads of this process, where it is ``None``."""
    shared: SharedStore | None = None
    """Where workers of the executor read rows, if not on this machine's disk."""
    elapsed: Callable[[], float] = time.monotonic
    """Seconds, by a clock that nobody sets."""
    tick_seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class UseCases:
    """What the servicers call, and the conductor that the daemon runs."""

    invitations: Invitations
    intake: Intake
    operations: Operations
    overview: Overview
    conductor: Conductor
    audit: Audit
    readings: Readings
    checkpoints: Checkpoints
    judge: Judge
    """What the conductor judges rounds with."""


def assemble(
    config: Config,
    *,
    plan: StudyPlan,
    register: Register,
    roster: Roster,
    outside: Outside,
    checkpoints: Checkpoints,
    protection: Callable[[], Protection] | None = None,
) -> UseCases:
    """Wire the use cases of one coordinator; ``protection`` is what operators are told."""
    presence = Presence(
        within=timedelta(seconds=config.rounds.present_seconds),
        enrolled=lambda: roster.participants,
        clock=outside.clock,
    )
    invitations = Invitations(
        register=register,
        models=outside.models,
        signer=outside.signer,
        plan=plan,
        rounds_planned=config.study.rounds,
        presence=presence,
        clock=outside.clock,
    )
    hashes = remembered_hashes()
    intake = Intake(
        register=register,
        store=outside.store,
        spool=outside.spool,
        signer=outside.signer,
        plan=plan,
        presence=presence,
        meter=outside.meter,
        clock=outside.clock,
        hashes=hashes,
    )
    judge = _judge(config, plan, roster, outside, hashes)
    conductor = Conductor(
        register=register,
        spool=outside.spool,
        models=outside.models,
        scorer=outside.scorer,
        judge=judge,
        certify=partial(
            score_receipts,
            federation_id=plan.federation_id,
            study_id=plan.study_id,
            signer=outside.signer,
        ),
        try_signing=partial(outside.signer.sign, _TRIAL),
        presence=presence,
        roster=roster,
        rules=partial(_rules, config, roster),
        meter=outside.meter,
        settings=_settings(config, plan, outside.tick_seconds),
        clock=outside.clock,
        entropy=outside.entropy,
        elapsed=outside.elapsed,
    )
    operations = Operations(
        register=register,
        store=outside.store,
        enrolled=lambda: roster.participants,
        start_round=conductor.start_round,
        clock=outside.clock,
    )
    overview = Overview(
        version=__version__,
        plan=plan,
        rounds_planned=config.study.rounds,
        protection=protection or (lambda: protection_of(config, enrolled=len(roster.participants))),
        store=outside.store,
        presence=presence,
        upload_fraction=intake.upload_fraction,
        waiting=conductor.waiting,
        leader=config.daemon,
    )
    return UseCases(
        invitations=invitations,
        intake=intake,
        operations=operations,
        overview=overview,
        conductor=conductor,
        audit=Audit(outside.store),
        readings=Readings(register=register, clock=outside.clock),
        checkpoints=checkpoints,
        judge=judge,
    )


def _judge(
    config: Config,
    plan: StudyPlan,
    roster: Roster,
    outside: Outside,
    hashes: Remembered[bytes],
) -> Judge:
    def attested() -> Mapping[NodeId, Enrolment]:
        return {
            node_id: Enrolment(node.enrolled_patients, _shares(node.label_histogram))
            for node_id, node in roster.participants.items()
        }

    executor = outside.executor or LocalExecutor(config.worker.aggregation_threads)
    surveyor = Surveyor(
        hashes=hashes,
        plan=plan,
        spool=outside.spool,
        models=outside.models,
        scorer=outside.scorer,
        enrolled=attested,
        histories=outside.histories,
        base_model_of=partial(_base_model_of, outside.store),
        threads=config.worker.aggregation_threads,
        executor=executor,
        shared=outside.shared,
    )
    return Judge(
        plan=plan,
        surveyor=surveyor,
        spool=outside.spool,
        models=outside.models,
        enrolled=attested,
        aggregator=config.rounds.aggregator,
        policy=config.trust.policy,
        has_root=config.holdout is not None,
        activity=_activity(config, outside),
        byzantine=config.rounds.byzantine,
        executor=executor,
    )


def _base_model_of(store: Store, round_id: RoundId) -> Digest | None:
    rnd = store.round(round_id)
    return None if rnd is None else rnd.base_model


def _activity(config: Config, outside: Outside) -> Callable[[Round], Mapping[NodeId, Activity]]:
    """When hospitals send, where trust follows the score of MATL's paper; else nobody asks."""
    if config.trust.composite != "matl-paper":
        return lambda _: {}
    return lambda rnd: activities(outside.store, rnd)


def _shares(histogram: tuple[int, ...] | None) -> tuple[float, ...] | None:
    if histogram is None or sum(histogram) == 0:
        return None
    return tuple(count / sum(histogram) for count in histogram)


def _rules(config: Config, roster: Roster) -> RoundRules:
    # A round that has all of them waits for nobody else.
    most = min(config.rounds.maximum_participants, len(roster.participants))
    return replace(config.rounds.rules, maximum_participants=max(1, most))


def _settings(config: Config, plan: StudyPlan, tick_seconds: float) -> Settings:
    return Settings(
        schedule=config.rounds.opening,
        rounds_planned=config.study.rounds,
        keep_spooled=config.rounds.keep_spooled,
        worker_attempts=config.worker.attempts,
        average_from=plan.average_from,
        has_holdout=config.holdout is not None,
        cartel_alarm_share=config.trust.cartel_alarm_share,
        tick_seconds=tick_seconds,
        retry_seconds=tick_seconds,
    )
