"""A hospital's key holder who says on the wire what it likes.

Raw messages and one call at a time, so that a test can break any rule of the contract.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import grpc
import numpy as np
from numpy.typing import NDArray

from matl_common.identity.held_keys import load_p256_key
from matl_common.identity.keys import parse_public_key
from matl_common.identity.tls import channel_credentials, channel_options
from matl_common.ids import Digest, NodeId, digest_of
from matl_common.protocol import (
    PayloadType,
    PrivacySpend,
    RoundStart,
    StudyPlan,
    UpdateManifest,
)
from matl_common.signing import Envelope, Signer, sign, verify
from matl_common.tensors import CHUNK_BYTES
from matl_common.tlog.merkle import leaf_hash, merkle_root
from matl_common.wire import federation_pb2 as pb
from matl_common.wire.documents import (
    envelope_from_wire,
    envelope_to_wire,
    format_update_manifest,
    parse_round_start,
    parse_study_plan,
)
from matl_common.wire.federation_pb2_grpc import FederationServiceStub
from tests.system.federation import COORDINATOR_NAME, Federation

CALL_SECONDS = 60.0


@dataclass(frozen=True)
class Sealed:
    """A signed manifest, and the chunks it is about."""

    manifest: UpdateManifest
    envelope: Envelope
    chunks: tuple[bytes, ...]

    @property
    def digest(self) -> Digest:
        return digest_of(self.envelope.payload)

    @property
    def hashes(self) -> bytes:
        return b"".join(map(leaf_hash, self.chunks))


class Voice:
    """Speaks for one enrolled hospital."""

    def __init__(self, federation: Federation, node: NodeId, channel: grpc.Channel) -> None:
        self.node, self.channel = node, channel
        self.stub = FederationServiceStub(channel)
        self.signer: Signer = load_p256_key(federation.keys[node].signing_key)
        self._key = parse_public_key(federation.keys[node].coordinator_signing_key.read_bytes())

    def plan(self) -> tuple[StudyPlan, Digest]:
        answer = self.stub.Hello(pb.HelloRequest(version="0"), timeout=CALL_SECONDS)
        envelope = envelope_from_wire(answer.study_plan)
        payload = verify(envelope, self._key, PayloadType.STUDY_PLAN)
        return parse_study_plan(payload), digest_of(payload)

    def next_round(self, *, have_round: int = 0) -> RoundStart:
        while True:
            request = pb.AwaitRoundRequest(have_round=have_round, wait_seconds=20)
            answer = self.stub.AwaitRound(request, timeout=CALL_SECONDS)
            if answer.HasField("round_start"):
                envelope = envelope_from_wire(answer.round_start)
                return parse_round_start(verify(envelope, self._key, PayloadType.ROUND_START))

    def seal(self, start: RoundStart, update: NDArray[np.float32], **changes: object) -> Sealed:
        """Sign an update; ``changes`` replace fields of the manifest."""
        plan, plan_digest = self.plan()
        data = update.astype("<f4").tobytes()
        chunks = tuple(data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))
        fields: dict[str, object] = {
            "federation_id": start.federation_id,
            "study_id": start.study_id,
            "round_id": start.round_id,
            "nonce": start.nonce,
            "plan_digest": plan_digest,
            "base_model": start.base_model,
            "schema_digest": plan.schema.digest,
            "byte_count": len(data),
            "chunk_bytes": CHUNK_BYTES,
            "chunk_root": merkle_root([leaf_hash(chunk) for chunk in chunks]),
            "privacy": PrivacySpend(
                plan.privacy.noise_multiplier,
                plan.privacy.max_grad_norm,
                plan.privacy.sample_rate,
                plan.training.steps_per_round,
                plan.privacy.noise,
            ),
            "expires_at": start.deadline + timedelta(hours=1),
        }
        manifest = UpdateManifest(**{**fields, **changes})  # type: ignore[arg-type]  # tests replace any field
        payload = format_update_manifest(manifest)
        return Sealed(manifest, sign(PayloadType.UPDATE, payload, self.signer), chunks)

    def open(self, envelope: Envelope, hashes: bytes) -> pb.UpdateStatus:
        request = pb.OpenUpdateRequest(manifest=envelope_to_wire(envelope), chunk_hashes=hashes)
        return self.stub.OpenUpdate(request, timeout=CALL_SECONDS)

    def push(self, digest: str, chunks: Iterable[tuple[int, bytes]]) -> pb.UpdateStatus:
        def messages() -> Iterator[pb.PushChunksRequest]:
            yield pb.PushChunksRequest(update_digest=digest)
            for index, data in chunks:
                yield pb.PushChunksRequest(chunk=pb.Chunk(index=index, data=data))

        return self.stub.PushChunks(messages(), timeout=CALL_SECONDS)

    def send(self, sealed: Sealed) -> pb.UpdateStatus:
        """As an honest hospital would."""
        self.open(sealed.envelope, sealed.hashes)
        return self.push(sealed.digest, enumerate(sealed.chunks))

    def say(self, method: str, payloads: Sequence[bytes], *, streams: bool = False) -> bytes:
        """Send bytes as they are to a method of the service."""
        path = f"/matl.v1.FederationService/{method}"
        if streams:
            stream = self.channel.stream_unary(path, _as_they_are, _as_they_are)
            return bytes(stream(iter(payloads), timeout=CALL_SECONDS))
        unary = self.channel.unary_unary(path, _as_they_are, _as_they_are)
        return bytes(unary(payloads[0], timeout=CALL_SECONDS))


@contextmanager
def voice_of(federation: Federation, node: NodeId) -> Iterator[Voice]:
    """Yield a voice that dials when it first speaks."""
    # Our own side must not be what stops a message that is too long.
    options = [
        (name, -1 if name == "grpc.max_send_message_length" else value)
        for name, value in channel_options(COORDINATOR_NAME)
    ]
    credentials = channel_credentials(federation.keys[node].tls)
    with grpc.secure_channel(federation.address, credentials, options=options) as channel:
        yield Voice(federation, node, channel)


def _as_they_are(data: bytes) -> bytes:
    return data
