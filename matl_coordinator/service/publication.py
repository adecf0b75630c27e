"""Models leave the coordinator once a quorum of hospitals has witnessed their release.

Training goes on meanwhile: the next round needs a round's model, not its publication. What is
published can be checked by anyone, offline: the model, the log's entry that names it, the proof
that the entry is in a checkpoint with the hospitals' cosignatures, and the keys to check it by.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import structlog

from matl_common.errors import MatlError
from matl_common.ids import RoundId, parse_digest
from matl_common.tlog.disclosure import Disclosure, encode_disclosure
from matl_common.tlog.entry import parse_entry
from matl_common.tlog.leaf import parse_leaf
from matl_common.tlog.merkle import inclusion_proof
from matl_common.tlog.policy import NO_QUORUM, encode_policy
from matl_common.tlog.proof import TlogProof, encode_proof
from matl_coordinator.ports import LoggedEntry, ModelStore, Store
from matl_coordinator.service.checkpoints import Checkpoints, Witnessed
from matl_coordinator.service.entries import Fact, entry
from matl_coordinator.service.register import Decision, Register
from matl_coordinator.service.tree import over_tree

RELEASE_EVENT = "model_released"
PAGE = 200

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Release:
    """Everything that is published of a model."""

    round_id: RoundId
    index: int
    """Of the log's entry that names the model."""
    model: Path
    entry: bytes
    """JSON: leaf, salt and what was said."""
    proof: bytes
    """C2SP tlog-proof."""
    policy: bytes
    """C2SP tlog-policy."""


class Releases(Protocol):
    """Where published models are put. Blocking."""

    def newest_index(self) -> int:
        """Index of the entry of the newest release; -1 before the first."""
        ...

    def put(self, release: Release) -> None:
        """Publish, all of it or nothing, durably; doing it again changes nothing."""
        ...


class Publication:
    """Publishes what has been witnessed. Runs on the register's event loop."""

    def __init__(
        self,
        *,
        register: Register,
        store: Store,
        models: ModelStore,
        checkpoints: Checkpoints,
        releases: Releases,
        clock: Callable[[], datetime],
        tick_seconds: float,
    ) -> None:
        self._register = register
        self._store = store
        self._models = models
        self._checkpoints = checkpoints
        self._releases = releases
        self._clock = clock
        self._tick_seconds = tick_seconds
        # First entry that has not been looked at; None before the folder was.
        self._next: int | None = None

    async def run(self) -> None:
        """Publish what is witnessed, until cancelled, and then what was witnessed by then.

        A failure is told, and tried again. The last hospital to leave may have made the quorum
        just before the coordinator is stopped.
        """
        looking = asyncio.create_task(self._look())
        try:
            while True:
                await asyncio.shield(looking)
                await asyncio.sleep(self._tick_seconds)
                looking = asyncio.create_task(self._look())
        finally:
            # One after the other: both would write the same folder.
            await looking
            await self._look()

    async def _look(self) -> None:
        try:
            await self.publish_due()
        except MatlError as error:
            log.error("publication_failed", reason=str(error))

    async def publish_due(self) -> list[RoundId]:
        """Publish every model whose release a quorum has witnessed by now.

        Raises:
            StoreError: the store cannot be read, or the folder not be written.
            IntegrityError: an entry or a model is not what it was.
        """
        if self._next is None:
            self._next = await asyncio.to_thread(self._releases.newest_index) + 1
        witnessed = await self._witnessed()
        published: list[RoundId] = []
        while witnessed is not None and self._next < witnessed.size:
            first, limit = self._next, min(PAGE, witnessed.size - self._next)
            page = await asyncio.to_thread(self._store.log_entries, start=first, limit=limit)
            for each in page:
                if each.damage is not None:
                    # Nothing that this coordinator released; the store has reported it.
                    continue
                if parse_leaf(each.leaf).event == RELEASE_EVENT and each.data is not None:
                    published.append(await self._publish(each, each.data, witnessed))
                    self._next = each.index + 1
            self._next = first + limit
        return published

    async def _witnessed(self) -> Witnessed | None:
        """The newest checkpoint that vouches; where nobody witnesses, one signed just now.

        Often not the latest: the witness who makes a quorum may ask for the next at once, and the
        others may have left by then.
        """
        if self._checkpoints.policy.quorum == NO_QUORUM:
            if self._register.log_size <= (self._next or 0):
                return None
            return await self._checkpoints.newest()
        return await self._checkpoints.witnessed()

    async def _publish(self, logged: LoggedEntry, data: bytes, witnessed: Witnessed) -> RoundId:
        facts = parse_entry(data)
        digest = parse_digest(str(facts["model"]))
        round_id = RoundId(int(str(facts["round"])))
        path = await over_tree(
            self._store, lambda read: inclusion_proof(logged.index, witnessed.size, read)
        )
        proof = TlogProof(logged.index, tuple(path), witnessed.note)
        release = Release(
            round_id=round_id,
            index=logged.index,
            model=self._models.path(digest),
            entry=encode_disclosure(Disclosure(logged.leaf, logged.salt or b"", data)),
            proof=encode_proof(proof),
            policy=encode_policy(self._checkpoints.policy),
        )
        cosigners: list[Fact] = list(sorted(witnessed.cosigners))  # noqa: C413 - list is invariant
        written = entry(
            "model_published",
            at=self._clock(),
            round=round_id,
            model=digest,
            entry=logged.index,
            checkpoint=witnessed.size,
            cosigners=cosigners,
        )
        # First: on record twice, after a crash, is better than published and not on record.
        await self._register.decide(lambda _: Decision(None, (), (written,)))
        await asyncio.to_thread(self._releases.put, release)
        log.info(
            "model_published",
            round=round_id,
            model=digest[:12],
            cosigners=len(witnessed.cosigners),
        )
        return round_id
