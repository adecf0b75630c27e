"""What a coordinator tells when it starts.

On record: its terms, and the version of its tables. To its meter: what stood before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime

from matl_common.ids import NodeId, RoundId
from matl_common.tlog.policy import Policy
from matl_common.version import __version__
from matl_coordinator.config import Config
from matl_coordinator.ports import Meter, State, Store
from matl_coordinator.protection import Protection
from matl_coordinator.service.checkpoints import Anchor
from matl_coordinator.service.entries import Fact, entry
from matl_coordinator.service.register import Decision, Register

_LONGEST_VERSION = 32


def started_facts(config: Config, protection: Protection, policy: Policy) -> dict[str, Fact]:
    """What every later entry was decided by."""
    trust_policy: dict[str, Fact] = asdict(config.trust.policy)
    return {
        "version": __version__,
        "leader": config.daemon or None,
        "mode": protection.mode_name,
        "rule": protection.rule,
        "claim": protection.claim,
        "warnings": list(protection.warnings),
        "byzantine": config.rounds.byzantine,
        "quorum": config.rounds.quorum,
        "witnesses": len(policy.witnesses),
        "witness_quorum": policy.groups[-1].threshold if policy.groups else 0,
        "retention_years": config.log.retention_years,
        "compliance": config.log.compliance.value,
        "trust_policy": trust_policy,
    }


async def log_schema(
    register: Register,
    logged: Anchor,
    version: str,
    *,
    node: NodeId,
    clock: Callable[[], datetime],
) -> None:
    """Log that the database was brought to another version since this coordinator last said so.

    Whoever migrates may not append to the log, so the next start does it. A kill in between
    logs it once more.

    Args:
        register: where to.
        logged: the version that was logged last; none at the very first start.
        version: of the tables now.
        node: this coordinator.
        clock: the time.

    Raises:
        StoreError: the store did not confirm.
    """
    before = await asyncio.to_thread(logged.read)
    if before == version.encode():
        return
    told = None if before is None else before.decode(errors="replace")[:_LONGEST_VERSION]
    written = entry("database_migrated", at=clock(), node=node, schema=version, before=told)
    await register.decide(lambda _: Decision(None, (), (written,)))
    await asyncio.to_thread(logged.write, version.encode())


async def show_standing(meter: Meter, state: State, store: Store) -> None:
    """Show the hospitals' trust and how good the newest model is, as before this start.

    Raises:
        StoreError: the store did not answer.
    """
    if state.round is not None:
        meter.trust_changed(state.trust, state.round)
    if (model := state.latest_model) is not None:
        released = await asyncio.to_thread(store.round, RoundId(model.round_id))
        if released is not None and released.evaluation is not None:
            meter.model_evaluated(released.evaluation)
