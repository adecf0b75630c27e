"""Facts about the study that operators see and no decision rests on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from matl_common.ids import NodeId
from matl_common.privacy.budget import full_batch_epsilon
from matl_common.privacy.mechanisms import full_batch_event
from matl_common.protocol import Recipe, StudyPlan
from matl_coordinator.ports import State, Store
from matl_coordinator.protection import Protection
from matl_coordinator.service.presence import Presence


@dataclass(frozen=True, slots=True)
class Facts:
    """The study at one moment."""

    version: str
    federation_id: str
    study_id: str
    study_complete: bool
    rounds_planned: int
    average_from: int
    """As in the study plan."""
    present: int
    waiting_for: str
    next_round_at: datetime | None
    protection: Protection


class Overview:
    """Reads what others own; owns nothing."""

    def __init__(
        self,
        *,
        version: str,
        plan: StudyPlan,
        rounds_planned: int,
        protection: Protection,
        store: Store,
        presence: Presence,
        upload_fraction: Callable[[NodeId], float],
        waiting: Callable[[State, datetime], tuple[str, datetime | None]],
    ) -> None:
        self._version = version
        self._plan = plan
        self._rounds_planned = rounds_planned
        self._protection = protection
        self._store = store
        self._presence = presence
        self._waiting = waiting
        self.upload_fraction = upload_fraction
        self.last_seen = presence.last_seen

    @property
    def epsilon_budget(self) -> float:
        return self._plan.privacy.target_epsilon

    def facts(self, state: State, now: datetime) -> Facts:
        waiting_for, next_round_at = self._waiting(state, now)
        return Facts(
            version=self._version,
            federation_id=self._plan.federation_id,
            study_id=self._plan.study_id,
            study_complete=state.rounds_released >= self._rounds_planned,
            rounds_planned=self._rounds_planned,
            average_from=self._plan.average_from,
            present=len(self._presence.present()),
            waiting_for=waiting_for,
            next_round_at=next_round_at,
            protection=self._protection,
        )

    async def epsilon_declared(self) -> dict[NodeId, float]:
        """ε by hospital, as its admitted updates declared it.

        The hospital's own ledger is the truth: it also counts attempts that never
        arrived. Only known for ``head``; the ``full`` recipe is accounted for there.
        """
        if self._plan.training.recipe is not Recipe.HEAD or not self._plan.privacy.noise_multiplier:
            return {}
        counts = await asyncio.to_thread(self._store.admitted_counts)
        steps, terms = self._plan.training.steps_per_round, self._plan.privacy
        spent = {
            node_id: full_batch_event(terms.noise, terms.noise_multiplier, count * steps)
            for node_id, count in counts.items()
        }
        return {
            node_id: full_batch_epsilon([event], terms.target_delta)
            for node_id, event in spent.items()
        }
