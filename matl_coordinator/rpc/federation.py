"""``FederationService``: thin, parse → use case → format."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from matl_common.errors import InvalidInputError
from matl_common.ids import parse_digest
from matl_common.version import check_compatible
from matl_common.wire import federation_pb2 as pb
from matl_common.wire import federation_pb2_grpc as pb_grpc
from matl_common.wire.chunks import Numbered
from matl_common.wire.documents import (
    envelope_from_wire,
    envelope_to_wire,
    standing_to_wire,
    to_unix_ms,
)
from matl_coordinator.ports import Meter, UpdateRecord
from matl_coordinator.rpc.blocks import ModelBlocks, block_end, check_offset
from matl_coordinator.rpc.guard import caller
from matl_coordinator.rpc.pushing import take_all
from matl_coordinator.rpc.turns import Turns
from matl_coordinator.service.attesting import Attesting, NotAttestedError
from matl_coordinator.service.intake import Intake, Progress
from matl_coordinator.service.invitations import Invitations
from matl_coordinator.service.reception import Reception

MAX_WAIT_SECONDS = 60.0

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class FederationServicer(pb_grpc.FederationServiceServicer):
    """What hospitals call. ``guard`` has authenticated every caller."""

    def __init__(
        self,
        *,
        invitations: Invitations,
        intake: Intake,
        attesting: Attesting | None,
        mode_name: Callable[[], str],
        meter: Meter,
        version: str,
        federation_id: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._invitations = invitations
        self._intake = intake
        self._attesting = attesting
        self._mode_name = mode_name
        self._meter = meter
        self._version = version
        self._federation_id = federation_id
        self._clock = clock
        self._blocks = ModelBlocks()
        self._receiving = Turns()

    async def Hello(self, request: pb.HelloRequest, context: Context) -> pb.HelloResponse:
        check_compatible(self._version, request.version)
        plan = await self._invitations.study_plan()
        receipt = await self._intake.last_receipt(caller())
        return pb.HelloResponse(
            version=self._version,
            federation_id=self._federation_id,
            study_plan=envelope_to_wire(plan),
            answered_at_unix_ms=to_unix_ms(self._clock()),
            last_receipt=None if receipt is None else envelope_to_wire(receipt),
            mode=self._mode_name(),
        )

    async def Attest(self, request: pb.AttestRequest, context: Context) -> pb.AttestResponse:
        if self._attesting is None:
            raise NotAttestedError("this coordinator is not attested (MODE2)")
        shown = await self._attesting.show(caller().node_id, request.nonce)
        return pb.AttestResponse(
            evidence=pb.Evidence(
                technology=shown.evidence.technology.value,
                report=shown.evidence.report,
                endorsements=shown.evidence.endorsements,
            ),
            tls_certificates=shown.tls_certificates,
            config_digest=shown.config_digest,
        )

    async def AwaitRound(
        self, request: pb.AwaitRoundRequest, context: Context
    ) -> pb.AwaitRoundResponse:
        offer = await self._invitations.await_round(
            caller(),
            have_round=request.have_round,
            wait_seconds=min(float(request.wait_seconds), MAX_WAIT_SECONDS),
        )
        start = offer.round_start
        return pb.AwaitRoundResponse(
            round_start=None if start is None else envelope_to_wire(start),
            standing=standing_to_wire(offer.standing),
            study_complete=offer.study_complete,
        )

    async def PullModel(  # type: ignore[override] # messages as they go out: see wire.chunks
        self, request: pb.PullModelRequest, context: Context
    ) -> AsyncIterator[bytes]:
        path = self._invitations.model_path(parse_digest(request.digest))
        offset, size = request.offset, await asyncio.to_thread(check_offset, path, request.offset)
        with self._blocks.in_use() as stream:
            while offset < size:
                await stream.reach(path, offset)
                yield await self._blocks.at(path, offset)
                end = min(size, block_end(offset))
                self._meter.bytes_sent(end - offset)
                offset = end

    async def OpenUpdate(self, request: pb.OpenUpdateRequest, context: Context) -> pb.UpdateStatus:
        progress = await self._intake.open_update(
            caller(), envelope_from_wire(request.manifest), request.chunk_hashes
        )
        return status_to_wire(progress)

    async def PushChunks(  # type: ignore[override] # messages parsed by wire.chunks
        self, requests: AsyncIterator[Numbered | str | None], context: Context
    ) -> pb.UpdateStatus:
        first = await anext(requests, None)
        if not isinstance(first, str):
            raise InvalidInputError("the first message of a push must name the update")
        reception = await self._intake.receive(caller(), parse_digest(first))
        try:
            await self._take_all(requests, reception)
        except BaseException:
            await self._intake.let_go(reception)
            raise
        if reception.is_complete:
            return status_to_wire(await self._intake.complete(caller(), reception))
        return status_to_wire(await self._intake.pause(reception))

    async def _take_all(
        self, requests: AsyncIterator[Numbered | str | None], reception: Reception[UpdateRecord]
    ) -> None:
        await take_all(
            requests,
            take=partial(self._intake.take, reception),
            turns=self._receiving,
            on_bytes=self._meter.bytes_received,
        )
        await self._intake.settle(reception)


def status_to_wire(progress: Progress) -> pb.UpdateStatus:
    """How an update stands."""
    receipt = progress.receipt
    return pb.UpdateStatus(
        update_digest=progress.update_digest,
        durable_chunks=progress.durable_chunks,
        total_chunks=progress.total_chunks,
        receipt=None if receipt is None else envelope_to_wire(receipt),
    )
