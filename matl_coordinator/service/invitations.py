"""What a hospital asks before it trains: the plan, the round, the model.

Every method is given the enrolled node that the connection was authenticated as; no
identity is taken from a message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from matl_common.errors import MatlError
from matl_common.identity.allowlist import AllowedNode
from matl_common.ids import Digest, NodeId
from matl_common.protocol import PayloadType, RoundStart, Standing, StudyPlan
from matl_common.signing import Envelope, Signer, sign
from matl_common.wire.documents import format_round_start
from matl_coordinator.core.rounds import NodeJoined, Phase, advance
from matl_coordinator.core.trust_record import initial_record
from matl_coordinator.ports import ModelStore, PutRound, State
from matl_coordinator.service.entries import entry
from matl_coordinator.service.presence import Presence
from matl_coordinator.service.register import Decision, Register


class UnknownModelError(MatlError):
    """No model of this digest is kept here."""


@dataclass(frozen=True, slots=True)
class RoundOffer:
    """What a waiting hospital learns."""

    round_start: Envelope | None
    standing: Standing
    study_complete: bool


class Invitations:
    """Hands out plan, rounds and models. Runs on the register's event loop."""

    def __init__(
        self,
        *,
        register: Register,
        models: ModelStore,
        signer: Signer,
        plan: StudyPlan,
        rounds_planned: int,
        presence: Presence,
        clock: Callable[[], datetime],
    ) -> None:
        self._register = register
        self._models = models
        self._signer = signer
        self._plan = plan
        self._rounds_planned = rounds_planned
        self._presence = presence
        self._clock = clock
        self._may_wait = True

    def end_waits(self) -> None:
        """Answer everybody who waits for a round now, and whoever asks from now on."""
        self._may_wait = False
        self._register.wake()

    async def study_plan(self) -> Envelope:
        """The signed plan."""
        state = await self._register.state()
        if state.study is None:
            raise MatlError("the study has no plan yet")
        return state.study.plan

    async def await_round(
        self, node: AllowedNode, *, have_round: int, wait_seconds: float
    ) -> RoundOffer:
        """The round the node should work on, or none after ``wait_seconds`` or ``end_waits``.

        Asking makes a hospital present: it is ready for a round.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + wait_seconds
        while True:
            self._presence.saw(node.node_id)
            state = await self._register.state()
            if self._has_room_for(node.node_id, state):
                state = await self._join(node)
            offer = await self._offer(node.node_id, state, have_round)
            left = give_up_at - loop.time() if self._may_wait else 0.0
            if offer.round_start is not None or offer.study_complete or left <= 0:
                return offer
            await self._register.wait_for_change(state, seconds=left)

    async def _offer(self, node_id: NodeId, state: State, have_round: int) -> RoundOffer:
        rnd, start = state.round, None
        is_collecting = rnd is not None and rnd.phase is Phase.COLLECTING
        if rnd is not None and is_collecting and rnd.round_id > have_round:
            start = await self._round_start(state) if node_id in rnd.pending_nodes else None
        return RoundOffer(
            round_start=start,
            standing=standing_of(node_id, state),
            study_complete=state.rounds_released >= self._rounds_planned,
        )

    async def _round_start(self, state: State) -> Envelope:
        rnd = state.round
        assert rnd is not None
        assert rnd.opened_at is not None
        assert rnd.deadline is not None
        start = RoundStart(
            federation_id=self._plan.federation_id,
            study_id=self._plan.study_id,
            round_id=rnd.round_id,
            nonce=rnd.nonce,
            plan_digest=rnd.plan_digest,
            base_model=rnd.base_model,
            base_model_bytes=self._plan.schema.file_bytes,
            opened_at=rnd.opened_at,
            deadline=rnd.deadline,
        )
        # A token may take its time.
        return await asyncio.to_thread(
            sign, PayloadType.ROUND_START, format_round_start(start), self._signer
        )

    def _has_room_for(self, node_id: NodeId, state: State) -> bool:
        rnd = state.round
        return (
            rnd is not None
            and rnd.phase is Phase.COLLECTING
            and node_id not in rnd.invited
            and len(rnd.invited) < rnd.rules.maximum_participants
        )

    async def _join(self, node: AllowedNode) -> State:
        def decide(state: State) -> Decision[None]:
            if not self._has_room_for(node.node_id, state) or state.round is None:
                return Decision(None)
            rnd = advance(state.round, NodeJoined(node.node_id))
            joined = entry("node_joined", at=self._clock(), round=rnd.round_id, node=node.node_id)
            return Decision(None, (PutRound(rnd),), (joined,))

        await self._register.decide(decide)
        return await self._register.state()

    def model_path(self, digest: Digest) -> Path:
        """The file of a model, for the stream that sends it.

        Raises:
            UnknownModelError: it is not kept here.
        """
        if not self._models.has(digest):
            raise UnknownModelError(f"no model {digest} is kept here; ask for the round's base")
        return self._models.path(digest)


def standing_of(node_id: NodeId, state: State) -> Standing:
    """How the coordinator sees a hospital."""
    found = (record for record in state.trust if record.node_id == node_id)
    record = next(found, None) or initial_record(node_id)
    return Standing(record.trust, record.state.value, record.as_of_round, record.reason)
