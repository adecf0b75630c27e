"""The participant's end of ``FederationService``: typed, verified, one try a call.

Every method makes one attempt within a deadline and leaves behind what makes the next
attempt shorter: a partial model file, durable chunks at the coordinator. When to try
again is decided by the caller. What the coordinator signs is verified here before
anybody else sees it; what is not signed (standing, liveness) can at worst waste time.

With ``log_client`` and ``attestation_client``, the only module of the participant that makes
the contract's calls.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TypeVar

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from matl_common import signing
from matl_common.clock import utc_now
from matl_common.durable import fsync_directory
from matl_common.errors import IntegrityError, MatlError
from matl_common.ids import Digest, NodeId, digest_of, digest_of_file
from matl_common.protocol import (
    PayloadType,
    Receipt,
    RoundStart,
    Standing,
    StudyPlan,
    UpdateManifest,
)
from matl_common.remembered import Remembered
from matl_common.signing import Envelope, Signer
from matl_common.tensors import MODEL_SUFFIX, chunk_lengths, hash_chunks, iter_update_chunks
from matl_common.tlog.merkle import merkle_root
from matl_common.version import IncompatibleVersionError, check_compatible
from matl_common.wire import federation_pb2 as pb
from matl_common.wire.chunks import format_push, parse_block, transfer_seconds
from matl_common.wire.documents import (
    envelope_from_wire,
    envelope_to_wire,
    format_update_manifest,
    from_unix_ms,
    parse_receipt,
    parse_round_start,
    parse_study_plan,
    parse_update_manifest,
    standing_from_wire,
    to_unix_ms,
)
from matl_common.wire.federation_pb2_grpc import FederationServiceStub
from matl_participant.arriving import ArrivingFile

PARTIAL_SUFFIX = ".part"
CHUNKS_AT_ONCE = 4
"""That a thread reads of an update while those before are sent."""
_SERVICE = pb.DESCRIPTOR.services_by_name["FederationService"].full_name
PULL_MODEL = f"/{_SERVICE}/PullModel"
PUSH_CHUNKS = f"/{_SERVICE}/PushChunks"
_FINAL_CODES = frozenset(
    {
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
    }
)
_IDENTITY_CODES = frozenset({grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED})
_Answer = TypeVar("_Answer")


class CallError(MatlError):
    """A call to the coordinator did not succeed."""

    def __init__(self, message: str, *, code: str) -> None:
        """Keep the gRPC status code's name, for logs and metrics."""
        super().__init__(message)
        self.code = code


class UnavailableError(CallError):
    """The connection, the coordinator or time was lacking: the same call may succeed later."""


class RefusedError(CallError):
    """The coordinator understood and refused: the same call will be refused again."""


class NotAllowedError(CallError):
    """The coordinator does not accept this node's identity, until its operator does."""


class UpdateDamagedError(IntegrityError):
    """The sealed update's file is not what was sealed."""


class UntrustedCoordinatorError(IntegrityError):
    """Something the coordinator sent is not signed by it, or is not about this study."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Bounds on calls, in seconds."""

    call_seconds: float = 30.0

    def transfer_seconds(self, byte_count: int) -> float:
        """Deadline for moving this many bytes."""
        return self.call_seconds + transfer_seconds(byte_count)


@dataclass(frozen=True, slots=True)
class SignedPlan:
    """A study plan whose signature holds."""

    plan: StudyPlan
    digest: Digest
    """SHA-256 of the exact payload; what every later document refers to."""
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Welcome:
    """The coordinator's answer to ``hello``."""

    version: str
    signed_plan: SignedPlan
    clock_ahead: timedelta
    """How far the coordinator's clock is ahead of ours, give or take the call's duration."""
    last_receipt: Receipt | None = None
    """Of the newest update that the coordinator has of ours."""
    mode: str = ""
    """The federation's, in the coordinator's own word; empty from a build that does not say."""


@dataclass(frozen=True, slots=True)
class RoundOffer:
    """The coordinator's answer to ``await_round``."""

    round_start: RoundStart | None
    standing: Standing | None
    study_complete: bool


@dataclass(frozen=True, slots=True)
class SealedUpdate:
    """A signed manifest and the file it is about."""

    manifest: UpdateManifest
    digest: Digest
    """SHA-256 of the manifest's payload: the update's name."""
    envelope: Envelope
    file: Path


@dataclass(frozen=True, slots=True)
class UploadResult:
    """How an upload ended."""

    receipt: Receipt | None
    """``None``: everything is there, and the coordinator has not admitted it yet."""
    envelope: Envelope | None
    sent_bytes: int


def seal_manifest(manifest: UpdateManifest, file: Path, signer: Signer) -> SealedUpdate:
    """Sign a manifest; its payload's digest is the update's name from here on."""
    payload = format_update_manifest(manifest)
    envelope = signing.sign(PayloadType.UPDATE, payload, signer)
    return SealedUpdate(manifest, digest_of(payload), envelope, file)


def read_sealed(
    envelope: Envelope, file: Path, public_key: ec.EllipticCurvePublicKey
) -> SealedUpdate:
    """Take up an update sealed earlier with our own key.

    Raises:
        IntegrityError: the manifest is not signed by this key.
        InvalidInputError: it is not a manifest.
    """
    payload = signing.verify(envelope, public_key, PayloadType.UPDATE)
    return SealedUpdate(parse_update_manifest(payload), digest_of(payload), envelope, file)


class FileHashes:
    """Hashes of this hospital's files, each taken once until the file changes."""

    def __init__(self) -> None:
        """Know nothing yet."""
        # The present round's file, and the one before while it is let go.
        models = Remembered(digest_of_file, most=2)
        self.of_model, self.take_model = models.of, models.take
        self.of_update = Remembered(hash_chunks, most=2).of


class FederationClient:
    """Speaks to one coordinator as one node."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        node_id: NodeId,
        federation_id: str,
        coordinator_key: ec.EllipticCurvePublicKey,
        timeouts: Timeouts | None = None,
    ) -> None:
        """Use a channel that somebody else opens and closes.

        Args:
            channel: such as a ``connection.RenewingChannel``.
            node_id: our own name, which receipts must bear.
            federation_id: the only federation whose documents are accepted.
            coordinator_key: verifies them.
            timeouts: bounds on every call.
        """
        self._stub = FederationServiceStub(channel)
        # Megabytes go through these two, as messages that are written and read in place.
        self._pull_blocks: grpc.aio.UnaryStreamMultiCallable[pb.PullModelRequest, bytes] = (
            channel.unary_stream(
                PULL_MODEL, request_serializer=pb.PullModelRequest.SerializeToString
            )
        )
        self._push_chunks: grpc.aio.StreamUnaryMultiCallable[bytes, pb.UpdateStatus] = (
            channel.stream_unary(PUSH_CHUNKS, response_deserializer=pb.UpdateStatus.FromString)
        )
        self._node_id = node_id
        self._federation_id = federation_id
        self._key = coordinator_key
        self._timeouts = timeouts or Timeouts()
        self.hashes = FileHashes()

    async def hello(self, *, version: str, device: str) -> Welcome:
        """Introduce ourselves and receive the signed study plan.

        Raises:
            CallError: no answer, or a refusal.
            UntrustedCoordinatorError: the plan, or our newest receipt, is not signed by the
                coordinator, or belongs to another federation.
            InvalidInputError: one of them is malformed.
        """
        sent_at = utc_now()
        request = pb.HelloRequest(
            version=version, device=device, sent_at_unix_ms=to_unix_ms(sent_at)
        )
        answer = await one_try(self._stub.Hello(request, timeout=self._timeouts.call_seconds))
        try:
            # An older coordinator may not look at ours.
            check_compatible(version, answer.version)
        except IncompatibleVersionError as error:
            code = grpc.StatusCode.FAILED_PRECONDITION.name
            raise RefusedError(
                f"the coordinator is of another version: {error}", code=code
            ) from error
        plan = self._verified_plan(envelope_from_wire(answer.study_plan))
        ahead = from_unix_ms(answer.answered_at_unix_ms) - sent_at
        receipt = None
        if answer.HasField("last_receipt"):
            receipt = self._verified_receipt(envelope_from_wire(answer.last_receipt), plan.plan)
        return Welcome(answer.version[:100], plan, ahead, receipt, answer.mode[:100])

    async def await_round(
        self, signed_plan: SignedPlan, *, have_round: int, wait_seconds: int
    ) -> RoundOffer:
        """Wait for a round after ``have_round``, at most ``wait_seconds``.

        Raises:
            CallError: no answer, or a refusal.
            UntrustedCoordinatorError: the round start is not signed by the coordinator, or
                belongs to another study, plan or model.
            InvalidInputError: it is malformed.
        """
        request = pb.AwaitRoundRequest(have_round=have_round, wait_seconds=wait_seconds)
        deadline = wait_seconds + self._timeouts.call_seconds
        answer = await one_try(self._stub.AwaitRound(request, timeout=deadline))
        start = standing = None
        if answer.HasField("round_start"):
            envelope = envelope_from_wire(answer.round_start)
            start = self._verified_round(envelope, signed_plan, have_round=have_round)
        if answer.HasField("standing"):
            standing = standing_from_wire(answer.standing)
        return RoundOffer(start, standing, answer.study_complete)

    async def pull_model(self, digest: Digest, *, total_bytes: int, folder: Path) -> Path:
        """Fetch a model into ``<folder>/<digest>.safetensors``, going on where a try ended.

        Raises:
            CallError: the stream broke; what arrived is kept.
            UntrustedCoordinatorError: the bytes are not the model; they are deleted.
        """
        final = folder / f"{digest}{MODEL_SUFFIX}"
        partial = folder / f"{digest}{PARTIAL_SUFFIX}"
        offset = partial.stat().st_size if partial.exists() else 0
        if offset < total_bytes:
            offset = await self._append_blocks(digest, partial, offset, total_bytes)
        sound = (
            offset == total_bytes
            and await asyncio.to_thread(self.hashes.of_model, partial) == digest
        )
        if not sound and offset < total_bytes:
            raise UnavailableError("the model's stream ended early", code="DATA_LOSS")
        if not sound:
            partial.unlink()
            raise UntrustedCoordinatorError(
                f"what the coordinator sent is not model {digest}; it will be fetched anew"
            )
        await asyncio.to_thread(_publish, partial, final)
        return final

    async def _append_blocks(
        self, digest: Digest, partial: Path, offset: int, total_bytes: int
    ) -> int:
        """Append to a partial model file what the stream brings; return its new size.

        The digest of a file that is whole then is known.
        """
        call = self._pull_blocks(
            pb.PullModelRequest(digest=digest, offset=offset),
            timeout=self._timeouts.transfer_seconds(total_bytes - offset),
        )
        try:
            async with ArrivingFile.open(partial) as file:
                async for message in call:
                    block = parse_block(message)
                    end = offset + len(block.data)
                    # An empty block would be followed by another for as long as the call may take.
                    if block.number != offset or not offset < end <= total_bytes:
                        break
                    await file.add(block.data)
                    offset = end
                if offset == total_bytes:
                    self.hashes.take_model(partial, await file.digest())
        except grpc.aio.AioRpcError as error:
            raise _classified(error) from error
        finally:
            call.cancel()
        return offset

    async def open_update(self, sealed: SealedUpdate) -> tuple[int, UploadResult]:
        """Declare an update; returns the chunks durable at the coordinator, and its receipt.

        Raises:
            CallError: no answer, or the update is refused.
            UntrustedCoordinatorError: the answer is about something else.
            UpdateDamagedError: the file is not what was sealed.
        """
        hashes = await asyncio.to_thread(self.hashes.of_update, sealed.file)
        if merkle_root(hashes) != sealed.manifest.chunk_root:
            raise UpdateDamagedError("the sealed update is damaged on disk; it will be given up")
        request = pb.OpenUpdateRequest(
            manifest=envelope_to_wire(sealed.envelope), chunk_hashes=b"".join(hashes)
        )
        timeout = self._timeouts.call_seconds
        status = await one_try(self._stub.OpenUpdate(request, timeout=timeout))
        return status.durable_chunks, self._upload_result(status, sealed, sent_bytes=0)

    async def upload(self, sealed: SealedUpdate) -> UploadResult:
        """Send what the coordinator lacks of an update. Sent again, it costs nothing.

        Raises:
            CallError: the stream broke, or the update is refused.
            UntrustedCoordinatorError: the receipt is not signed by the coordinator, or is
                for another update.
        """
        durable, opened = await self.open_update(sealed)
        lengths = chunk_lengths(sealed.manifest.byte_count)
        if opened.receipt is not None or durable >= len(lengths):
            return opened
        missing = sum(lengths[durable:])
        call = self._push_chunks(
            _push_requests(sealed, first_chunk=durable),
            timeout=self._timeouts.transfer_seconds(missing),
        )
        status = await one_try(call)
        return self._upload_result(status, sealed, sent_bytes=missing)

    def _verified_plan(self, envelope: Envelope) -> SignedPlan:
        payload = self._verified(envelope, PayloadType.STUDY_PLAN)
        plan = parse_study_plan(payload)
        if plan.federation_id != self._federation_id:
            raise UntrustedCoordinatorError(
                f"the coordinator's plan is for federation {plan.federation_id!r}; this "
                f"participant is configured for {self._federation_id!r}"
            )
        return SignedPlan(plan, digest_of(payload), envelope)

    def _verified_round(
        self, envelope: Envelope, signed_plan: SignedPlan, *, have_round: int
    ) -> RoundStart:
        start = parse_round_start(self._verified(envelope, PayloadType.ROUND_START))
        plan = signed_plan.plan
        expected = (plan.federation_id, plan.study_id, signed_plan.digest, plan.schema.file_bytes)
        found = (start.federation_id, start.study_id, start.plan_digest, start.base_model_bytes)
        if found != expected:
            raise UntrustedCoordinatorError(
                f"round {start.round_id} does not belong to study {plan.study_id!r} as planned"
            )
        if start.round_id <= have_round or start.deadline <= start.opened_at:
            raise UntrustedCoordinatorError(
                f"round {start.round_id} was offered after round {have_round}, or ends before it "
                "begins"
            )
        return start

    def _verified_receipt(self, envelope: Envelope, plan: StudyPlan) -> Receipt:
        receipt = parse_receipt(self._verified(envelope, PayloadType.RECEIPT))
        ours = (plan.federation_id, plan.study_id, self._node_id)
        if (receipt.federation_id, receipt.study_id, receipt.node_id) != ours:
            raise UntrustedCoordinatorError(
                f"the coordinator's receipt is for {receipt.node_id!r} in study "
                f"{receipt.study_id!r}, which is not ours"
            )
        return receipt

    def _upload_result(
        self, status: pb.UpdateStatus, sealed: SealedUpdate, *, sent_bytes: int
    ) -> UploadResult:
        if status.update_digest != sealed.digest:
            raise UntrustedCoordinatorError("the coordinator answered about another update")
        if not status.HasField("receipt"):
            return UploadResult(None, None, sent_bytes)
        envelope = envelope_from_wire(status.receipt)
        receipt = parse_receipt(self._verified(envelope, PayloadType.RECEIPT))
        manifest = sealed.manifest
        expected = (manifest.federation_id, manifest.study_id, manifest.round_id)
        found = (receipt.federation_id, receipt.study_id, receipt.round_id)
        if (*found, receipt.node_id, receipt.update_digest) != (
            *expected,
            self._node_id,
            sealed.digest,
        ):
            raise UntrustedCoordinatorError(
                f"the coordinator's receipt is for {receipt.node_id!r}, round {receipt.round_id}, "
                "and another update than ours"
            )
        return UploadResult(receipt, envelope, sent_bytes)

    def _verified(self, envelope: Envelope, payload_type: PayloadType) -> bytes:
        try:
            return signing.verify(envelope, self._key, payload_type)
        except IntegrityError as error:
            raise UntrustedCoordinatorError(
                f"{error}; compare the coordinator's signing key in the configuration with the one "
                "its operator publishes"
            ) from error


async def _push_requests(sealed: SealedUpdate, *, first_chunk: int) -> AsyncIterator[bytes]:
    yield pb.PushChunksRequest(update_digest=sealed.digest).SerializeToString()
    messages = _chunk_messages(sealed.file, first_chunk)
    coming = asyncio.ensure_future(asyncio.to_thread(_next_few, messages))
    try:
        while few := await coming:
            # Read while these are sent.
            coming = asyncio.ensure_future(asyncio.to_thread(_next_few, messages))
            for message in few:
                yield message
    finally:
        coming.cancel()


def _chunk_messages(file: Path, first_chunk: int) -> Iterator[bytes]:
    for index, chunk in enumerate(iter_update_chunks(file, first_chunk=first_chunk), first_chunk):
        yield format_push(index, chunk)


def _next_few(messages: Iterator[bytes]) -> list[bytes]:
    return list(islice(messages, CHUNKS_AT_ONCE))


def _publish(partial: Path, final: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.rename(final)
    fsync_directory(final.parent)


async def one_try(call: Awaitable[_Answer]) -> _Answer:
    """Await a call; raises CallError of the kind that its status means."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise _classified(error) from error


def _classified(error: grpc.aio.AioRpcError) -> CallError:
    code = error.code()
    # The text is the coordinator's; it is bounded here and never believed.
    details = (error.details() or "no reason given")[:300]
    if code in _IDENTITY_CODES:
        return NotAllowedError(
            f"the coordinator does not accept this node ({details}); where it says expired or not "
            "yet valid, compare both clocks (matl doctor), then renew the certificate (matl pki "
            "request); else ask its operator to enrol the certificate's public key, with new keys "
            "if it was revoked (matl pki request --replace-keys)",
            code=code.name,
        )
    if code in _FINAL_CODES:
        return RefusedError(f"the coordinator refused: {details}", code=code.name)
    return UnavailableError(f"the coordinator cannot be reached: {details}", code=code.name)
