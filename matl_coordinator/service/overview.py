"""Facts about the study that operators see and no decision rests on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from matl_common.ids import NodeId
from matl_common.privacy.charges import epsilon_of, fraction_of_plan
from matl_common.protocol import PrivacyTerms, Recipe, StudyPlan
from matl_coordinator.ports import State, Store
from matl_coordinator.protection import Protection
from matl_coordinator.service.presence import Presence

_PAGE_ROUNDS = 100


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
    leader: str
    """Which of several daemons this is."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What the admitted updates of a hospital have cost its patients.

    The hospital's own ledger is the truth: it also counts attempts that never arrived.
    """

    epsilon: float | None
    """``None`` for the ``full`` recipe, which is accounted for at the hospital alone."""
    budget_fraction: float
    rounds_left: int


class Overview:
    """Reads what others own; owns nothing."""

    def __init__(
        self,
        *,
        version: str,
        plan: StudyPlan,
        rounds_planned: int,
        protection: Callable[[], Protection],
        store: Store,
        presence: Presence,
        upload_fraction: Callable[[NodeId], float],
        waiting: Callable[[State, datetime], tuple[str, datetime | None]],
        leader: str = "",
    ) -> None:
        self._version = version
        self._leader = leader
        self._plan = plan
        self.rounds_planned = rounds_planned
        self._protection = protection
        self._store = store
        self._presence = presence
        self._waiting = waiting
        self.upload_fraction = upload_fraction
        self.last_seen = presence.last_seen

    @property
    def privacy(self) -> PrivacyTerms:
        """What the study promises."""
        return self._plan.privacy

    @property
    def mode_name(self) -> str:
        """As ``Protection`` names it."""
        return self._protection().mode_name

    def facts(self, state: State, now: datetime) -> Facts:
        waiting_for, next_round_at = self._waiting(state, now)
        return Facts(
            version=self._version,
            federation_id=self._plan.federation_id,
            study_id=self._plan.study_id,
            study_complete=state.rounds_released >= self.rounds_planned,
            rounds_planned=self.rounds_planned,
            average_from=self._plan.average_from,
            present=len(self._presence.present()),
            waiting_for=waiting_for,
            next_round_at=next_round_at,
            protection=self._protection(),
            leader=self._leader,
        )

    async def declared(self) -> Callable[[NodeId], Declared]:
        """What each hospital has spent, as its admitted updates declared it."""
        counts = await asyncio.to_thread(self._store.admitted_counts)
        evaluations = await asyncio.to_thread(self._evaluation_counts)
        return lambda node_id: self._declared(counts.get(node_id, 0), evaluations.get(node_id, 0))

    def _evaluation_counts(self) -> Mapping[NodeId, int]:
        """How many evaluations came with the admitted updates of each hospital."""
        counts: Counter[NodeId] = Counter()
        after = 0
        while self._plan.privacy.evaluation is not None:
            page = self._store.rounds(after=after, limit=_PAGE_ROUNDS)
            if not page:
                break
            after = page[-1].round_id
            counts.update(
                each.node_id for rnd in page for each in rnd.admitted if each.evaluation is not None
            )
        return counts

    def _declared(self, updates: int, evaluations: int) -> Declared:
        terms, per_round = self._plan.privacy, self._plan.training.steps_per_round
        steps = updates * per_round
        return Declared(
            epsilon=self._epsilon(steps, evaluations),
            budget_fraction=fraction_of_plan(terms, steps=steps, evaluations=evaluations),
            rounds_left=max(0, terms.max_steps - steps) // per_round,
        )

    def _epsilon(self, steps: int, evaluations: int) -> float | None:
        terms = self._plan.privacy
        # Sampled steps take dp-accounting, which this process never loads.
        if steps and terms.noise_multiplier and self._plan.training.recipe is not Recipe.HEAD:
            return None
        return epsilon_of(terms, steps=steps, evaluations=evaluations)
