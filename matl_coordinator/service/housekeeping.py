"""Old models leave the disk by policy: ``limits.keep_models``. Their proofs and rows stay.

What training, a replay or a publication may still need is kept whatever the policy. Nothing here
decides what a round does, and no file is touched that no ended round has named.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from matl_common.errors import MatlError
from matl_common.ids import Digest, RoundId
from matl_coordinator.core.rounds import Phase, Round
from matl_coordinator.ports import Meter, ModelStore, State, Store
from matl_coordinator.service.entries import Fact, entry
from matl_coordinator.service.register import Decision, Register

PAGE = 200
_BESIDE_SPOOLED = 2
"""A replay of the oldest spooled round needs its base model, and that model's own."""

log = structlog.get_logger(__name__)


class PublishedModels(Protocol):
    """The models in the folder of releases. Blocking."""

    def newest_round(self) -> int:
        """The newest round whose model is published; 0 before the first."""
        ...

    def put_away(self, round_id: RoundId) -> None:
        """Remove a round's model and leave its proof; it may be gone already."""
        ...


@dataclass(frozen=True, slots=True)
class Policy:
    """How many released rounds' models stay; ``None`` for all."""

    keep_models: int | None
    keep_spooled: int

    @property
    def rounds_kept(self) -> int | None:
        """Counted from the newest round, those included that something may still need."""
        if self.keep_models is None:
            return None
        return max(self.keep_models, self.keep_spooled + _BESIDE_SPOOLED)


class Housekeeping:
    """Puts away what the policy does not keep. Runs on the register's event loop."""

    def __init__(
        self,
        *,
        register: Register,
        store: Store,
        models: ModelStore,
        published: PublishedModels,
        policy: Policy,
        meter: Meter,
        measure: Callable[[], Mapping[str, int]],
        clock: Callable[[], datetime],
        tick_seconds: float,
    ) -> None:
        """``measure`` says how many bytes are on disk, by kind."""
        self._register = register
        self._store = store
        self._models = models
        self._published = published
        self._policy = policy
        self._meter = meter
        self._measure = measure
        self._clock = clock
        self._tick_seconds = tick_seconds
        # The last round whose models were looked at, and the one after which that was done.
        self._done = RoundId(0)
        self._seen: tuple[int, int] | None = None

    async def run(self) -> None:
        """Tidy whenever a round has ended or was published, until cancelled."""
        while True:
            try:
                await self.tidy()
            except (MatlError, OSError) as error:
                log.error("housekeeping_failed", reason=str(error))
            await asyncio.sleep(self._tick_seconds)

    async def tidy(self) -> list[Digest]:
        """Put away what is due; returns the models that were.

        Raises:
            StoreError: the store did not answer or confirm.
            OSError: a file could not be removed; what is left is tried again.
        """
        state = await self._register.state()
        published = await asyncio.to_thread(self._published.newest_round)
        newest = 0 if state.round is None else state.round.round_id
        if self._seen == (newest, published):
            return []
        gone = await self._put_away(state, published=published)
        for kind, size in (await asyncio.to_thread(self._measure)).items():
            self._meter.disk_used(kind, size)
        self._seen = (newest, published)
        return gone

    async def _put_away(self, state: State, *, published: int) -> list[Digest]:
        kept = self._policy.rounds_kept
        if kept is None or state.round is None:
            return []
        old, recent = await asyncio.to_thread(self._split, kept, published)
        if not old:
            return []
        needed = {digest for rnd in recent for digest in _models_of(rnd)}
        if state.latest_model is not None:
            needed |= {state.latest_model.digest, state.latest_model.base}
        named = {digest for rnd in old for digest in _models_of(rnd)}
        gone = [each for each in sorted(named - needed) if self._models.has(each)]
        if gone:
            await self._record(gone, first=old[0].round_id, last=old[-1].round_id)
            await asyncio.to_thread(self._remove, gone, [rnd.round_id for rnd in old])
        self._done = old[-1].round_id
        return gone

    def _split(self, kept: int, published: int) -> tuple[list[Round], list[Round]]:
        """Rounds that are looked at now for what they leave behind, and all later ones.

        Only what is published is old: what a quorum has not cosigned yet, it may tomorrow.
        """
        found = [*_all_after(self._store, self._done)]
        released = [rnd.round_id for rnd in found if rnd.phase is Phase.RELEASED]
        last = min(released[-kept - 1], published) if len(released) > kept else 0
        return (
            [rnd for rnd in found if rnd.round_id <= last],
            [rnd for rnd in found if rnd.round_id > last],
        )

    async def _record(self, gone: list[Digest], *, first: int, last: int) -> None:
        digests: list[Fact] = list(gone)
        size = sum(self._models.path(each).stat().st_size for each in gone)
        written = entry(
            "models_put_away",
            at=self._clock(),
            first_round=first,
            last_round=last,
            models=digests,
            byte_count=size,
            keep_models=self._policy.keep_models,
        )
        # First: on record twice, after a crash, is better than gone and not on record.
        await self._register.decide(lambda _: Decision(None, (), (written,)))
        self._meter.models_put_away(size)
        log.info("models_put_away", models=len(gone), bytes=size, last_round=last)

    def _remove(self, gone: list[Digest], rounds: list[RoundId]) -> None:
        for round_id in rounds:
            self._published.put_away(round_id)
        for digest in gone:
            self._models.remove(digest)


def _models_of(rnd: Round) -> Iterable[Digest]:
    average = None if rnd.average is None else rnd.average.model
    return (each for each in (rnd.base_model, rnd.candidate, average) if each is not None)


def _all_after(store: Store, after: RoundId) -> Iterable[Round]:
    while page := store.rounds(after=after, limit=PAGE):
        yield from page
        after = page[-1].round_id
