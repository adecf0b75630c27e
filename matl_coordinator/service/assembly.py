"""Puts the use cases together over a set of ports.

The daemon gives it the real ones, a test any that pass the contract suite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from matl_common.identity.allowlist import AllowedNode, Allowlist
from matl_common.identity.certificates import Role
from matl_common.ids import NodeId
from matl_common.protocol import StudyPlan
from matl_common.signing import Signer
from matl_common.version import __version__
from matl_coordinator.config import Config
from matl_coordinator.core.robust.registry import make_rule
from matl_coordinator.ports import Meter, ModelStore, Scorer, Spool, Store
from matl_coordinator.service.conductor import Conductor, Settings
from matl_coordinator.service.intake import Intake
from matl_coordinator.service.invitations import Invitations
from matl_coordinator.service.judging import Judge
from matl_coordinator.service.operations import Operations
from matl_coordinator.service.overview import Overview
from matl_coordinator.service.presence import Presence
from matl_coordinator.service.register import Register


@dataclass(frozen=True, slots=True)
class Outside:
    """Everything the use cases need from outside."""

    store: Store
    spool: Spool
    models: ModelStore
    scorer: Scorer
    signer: Signer
    meter: Meter
    clock: Callable[[], datetime]
    entropy: Callable[[int], bytes]
    tick_seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class UseCases:
    """What the servicers call, and the conductor that the daemon runs."""

    invitations: Invitations
    intake: Intake
    operations: Operations
    overview: Overview
    conductor: Conductor


def assemble(
    config: Config, *, plan: StudyPlan, register: Register, allowlist: Allowlist, outside: Outside
) -> UseCases:
    """Wire the use cases of one coordinator."""
    enrolled = {
        node_id: node for node_id, node in allowlist.nodes.items() if node.role is Role.PARTICIPANT
    }
    presence = Presence(
        within=timedelta(seconds=config.rounds.present_seconds), clock=outside.clock
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
    intake = Intake(
        register=register,
        spool=outside.spool,
        signer=outside.signer,
        plan=plan,
        presence=presence,
        meter=outside.meter,
        clock=outside.clock,
    )
    conductor = Conductor(
        register=register,
        spool=outside.spool,
        models=outside.models,
        scorer=outside.scorer,
        judge=_judge(config, plan, enrolled, outside),
        presence=presence,
        meter=outside.meter,
        settings=_settings(config, len(enrolled), outside.tick_seconds),
        clock=outside.clock,
        entropy=outside.entropy,
    )
    operations = Operations(
        register=register,
        store=outside.store,
        enrolled=frozenset(enrolled),
        start_round=conductor.start_round,
        clock=outside.clock,
    )
    overview = Overview(
        version=__version__,
        plan=plan,
        rounds_planned=config.study.rounds,
        store=outside.store,
        presence=presence,
        upload_fraction=intake.upload_fraction,
        waiting=conductor.waiting,
    )
    return UseCases(invitations, intake, operations, overview, conductor)


def _judge(
    config: Config, plan: StudyPlan, enrolled: Mapping[NodeId, AllowedNode], outside: Outside
) -> Judge:
    return Judge(
        plan=plan,
        spool=outside.spool,
        models=outside.models,
        scorer=outside.scorer,
        enrolled=enrolled,
        rule=make_rule(config.rounds.rule, config.rounds.rule_parameters),
        byzantine=config.rounds.byzantine,
        threads=config.worker.aggregation_threads,
    )


def _settings(config: Config, enrolled: int, tick_seconds: float) -> Settings:
    return Settings(
        schedule=config.rounds.opening,
        rules=replace(
            config.rounds.rules,
            # A round that has all of them waits for nobody else.
            maximum_participants=max(1, min(config.rounds.maximum_participants, enrolled)),
        ),
        rounds_planned=config.study.rounds,
        keep_spooled=config.rounds.keep_spooled,
        worker_attempts=config.worker.attempts,
        tick_seconds=tick_seconds,
        retry_seconds=tick_seconds,
    )
