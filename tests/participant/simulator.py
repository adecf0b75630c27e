"""A coordinator for the participant's tests: the real contract, over real mutual TLS.

It keeps its state in memory and implements ``FederationService`` for real, so a test
can stop it, start it on the same port, and cut a stream in the middle. It aggregates
nothing: a round "released" here takes the base model the test gives it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from matl_common import signing
from matl_common.attestation.binding import Binding, tls_spki
from matl_common.attestation.simulated import Simulation
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.development import (
    DevelopmentFederation,
    Enrolment,
    create_development_keys,
)
from matl_common.identity.held_keys import load_p256_key
from matl_common.identity.keys import load_private_key, parse_public_key
from matl_common.identity.node_folder import NodeFolder
from matl_common.identity.tls import peer_certificate, server_credentials, server_options
from matl_common.ids import Digest, FederationId, NodeId, RoundId, digest_of
from matl_common.privacy.budget import calibrate_noise
from matl_common.protocol import (
    PayloadType,
    PrivacyTerms,
    Receipt,
    Recipe,
    RoundStart,
    Standing,
    StudyPlan,
    TrainingPlan,
    UpdateManifest,
)
from matl_common.signing import Signer
from matl_common.tensors import (
    TensorSpec,
    chunk_lengths,
    parse_schema,
    safetensors_header,
)
from matl_common.tlog.merkle import leaf_hash, merkle_root
from matl_common.wire import federation_pb2 as pb
from matl_common.wire.audit_pb2_grpc import add_AuditServiceServicer_to_server
from matl_common.wire.documents import (
    envelope_from_wire,
    envelope_to_wire,
    format_receipt,
    format_round_start,
    format_study_plan,
    parse_update_manifest,
    standing_to_wire,
    to_unix_ms,
)
from matl_common.wire.federation_pb2_grpc import (
    FederationServiceServicer,
    add_FederationServiceServicer_to_server,
)
from tests.participant.log_simulator import SimulatedLog

FEDERATION = FederationId("dr-study")
COORDINATOR = NodeId("coordinator")
HOSPITAL, STRANGER = NodeId("hospital_a"), NodeId("hospital_z")
SPIFFE = SpiffeId(FEDERATION, Role.COORDINATOR, COORDINATOR)
STEPS_PER_ROUND, ROUNDS = 10, 5
# Two chunks and a half of trainable values, so that an upload can be cut in the middle.
SCHEMA = parse_schema(
    [TensorSpec("head.weight", (5, 131072)), TensorSpec("scale", (8,), trainable=False)]
)
TERMS = PrivacyTerms(
    unit="patient",
    adjacency="add-or-remove-one",
    target_epsilon=1.0,
    target_delta=1e-5,
    noise_multiplier=calibrate_noise(1.0, 1e-5, steps=STEPS_PER_ROUND * ROUNDS),
    max_grad_norm=1.0,
    sample_rate=1.0,
    max_steps=STEPS_PER_ROUND * ROUNDS,
)
TRAINING = TrainingPlan(
    recipe=Recipe.HEAD,
    backbone="efficientnet_lite0",
    backbone_digest=None,
    image_size=224,
    views=2,
    steps_per_round=STEPS_PER_ROUND,
    learning_rate=0.5,
    batch_size=64,
)
PLAN = StudyPlan(FEDERATION, "study-1", SCHEMA, TRAINING, TERMS)
BLOCK_BYTES = 1 << 18


def model_bytes(fill: int = 0) -> bytes:
    """A model of ``SCHEMA``, one per ``fill``."""
    header = safetensors_header(SCHEMA)
    return header + bytes([fill]) * (SCHEMA.file_bytes - len(header))


def create_keys(folder: Path) -> dict[NodeId, NodeFolder]:
    """Keys of a federation of two participants, the second of which is a stranger."""
    wanted = DevelopmentFederation(
        federation=FEDERATION,
        coordinator=COORDINATOR,
        participants={HOSPITAL: Enrolment(patients=100), STRANGER: Enrolment(patients=1)},
    )
    return dict(create_development_keys(folder, wanted, now=datetime.now(UTC)))


@dataclass
class Upload:
    """What has arrived of one update."""

    manifest: UpdateManifest
    chunk_hashes: tuple[bytes, ...]
    chunks: list[bytes] = field(default_factory=list)
    admitted: bool = False


@dataclass
class Faults:
    """What goes wrong, each as often as it says."""

    cut_pull_after_bytes: list[int] = field(default_factory=list)
    cut_push_after_chunks: list[int] = field(default_factory=list)
    damage_pull: int = 0
    empty_pull: bool = False
    abort: list[grpc.StatusCode] = field(default_factory=list)
    delay_admission: int = 0
    sign_with_other_key: bool = False
    wrong_receipt: bool = False
    answer_other_update: bool = False
    offer_old_rounds: bool = False
    answer_delay_seconds: float = 0.0


class SimulatedCoordinator(FederationServiceServicer):
    """One coordinator; ``start`` and ``stop`` may follow each other any number of times."""

    def __init__(
        self,
        keys: dict[NodeId, NodeFolder],
        plan: StudyPlan = PLAN,
        *,
        log: SimulatedLog | None = None,
    ) -> None:
        """Serve ``log`` as well, and have it take in every update, where there is one."""
        self.keys = keys
        self.log = log
        self.plan = plan
        self.faults = Faults()
        self.models: dict[Digest, bytes] = {}
        self.round_start: RoundStart | None = None
        self.study_complete = False
        self.uploads: dict[Digest, Upload] = {}
        self.receipts: list[Receipt] = []
        self.received_chunks: list[int] = []
        self.pull_offsets: list[int] = []
        self.hellos = 0
        self.simulation: Simulation | None = None
        """Attests, SIMULATED, where there is one."""
        self.mode = ""
        self.config_digest = digest_of(b"configuration")
        self.nonces: list[bytes] = []
        self.host = "localhost"
        self.port = 0
        self._changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self._signer = load_p256_key(keys[COORDINATOR].signing_key)
        self._other = load_p256_key(keys[STRANGER].signing_key)
        self._participant_keys = {
            node: load_private_key(keys[node].signing_key).public_key()
            for node in (HOSPITAL, STRANGER)
        }

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    async def start(self) -> None:
        self._server = grpc.aio.server(options=server_options())
        add_FederationServiceServicer_to_server(self, self._server)
        if self.log is not None:
            add_AuditServiceServicer_to_server(self.log, self._server)
        self.port = self._server.add_secure_port(
            self.address, server_credentials(self.keys[COORDINATOR].tls)
        )
        await self._server.start()

    async def stop(self) -> None:
        if self._server:
            await self._server.stop(grace=0)
            self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def open_round(
        self,
        number: int,
        *,
        fill: int = 0,
        seconds: float = 60.0,
        nonce: int | None = None,
        model: bytes | None = None,
    ) -> RoundStart:
        model = model or model_bytes(fill)
        digest = digest_of(model)
        self.models[digest] = model
        now = datetime.now(UTC)
        self.round_start = RoundStart(
            federation_id=self.plan.federation_id,
            study_id=self.plan.study_id,
            round_id=RoundId(number),
            nonce=bytes([number if nonce is None else nonce]) * 32,
            plan_digest=digest_of(format_study_plan(self.plan)),
            base_model=digest,
            base_model_bytes=len(model),
            opened_at=now,
            deadline=now + timedelta(seconds=seconds),
        )
        self._changed.set()
        return self.round_start

    def complete(self) -> None:
        self.study_complete = True
        self._changed.set()

    async def Hello(  # noqa: N802 - gRPC names
        self, request: pb.HelloRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.HelloResponse:
        await self._admit_caller(context)
        self.hellos += 1
        receipts = [each for each in self.receipts if each.study_id == self.plan.study_id]
        last = self._signed(PayloadType.RECEIPT, format_receipt(receipts[-1])) if receipts else None
        return pb.HelloResponse(
            version="0.1.0",
            federation_id=self.plan.federation_id,
            study_plan=self._signed(PayloadType.STUDY_PLAN, format_study_plan(self.plan)),
            answered_at_unix_ms=to_unix_ms(datetime.now(UTC)),
            last_receipt=last,
            mode=self.mode,
        )

    async def Attest(  # noqa: N802 - gRPC names
        self, request: pb.AttestRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.AttestResponse:
        await self._admit_caller(context)
        self.nonces.append(request.nonce)
        if self.simulation is None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not attested")
        chain = self.keys[COORDINATOR].tls.certificate_chain.read_bytes()
        leaf = x509.load_pem_x509_certificates(chain)[0]
        binding = Binding(
            tls_spki(leaf), request.nonce, self.plan.federation_id, self.config_digest
        )
        evidence = self.simulation.evidence(binding.report_data)
        return pb.AttestResponse(
            evidence=pb.Evidence(
                technology=evidence.technology.value,
                report=evidence.report,
                endorsements=evidence.endorsements,
            ),
            tls_certificates=chain,
            config_digest=self.config_digest,
        )

    async def AwaitRound(  # noqa: N802 - gRPC names
        self, request: pb.AwaitRoundRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.AwaitRoundResponse:
        await self._admit_caller(context)
        try:
            async with asyncio.timeout(request.wait_seconds):
                while not (self._offers(request.have_round) or self.study_complete):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        answer = pb.AwaitRoundResponse(
            standing=standing_to_wire(Standing(0.9, "trusted", 1, "agrees with its peers")),
            study_complete=self.study_complete,
        )
        if self._offers(request.have_round) and self.round_start:
            payload = format_round_start(self.round_start)
            answer.round_start.CopyFrom(self._signed(PayloadType.ROUND_START, payload))
        return answer

    def _offers(self, have_round: int) -> bool:
        if self.faults.offer_old_rounds:
            return self.round_start is not None
        return self.round_start is not None and self.round_start.round_id > have_round

    async def PullModel(  # noqa: N802 - gRPC names
        self, request: pb.PullModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.ModelBlock]:
        await self._admit_caller(context)
        self.pull_offsets.append(request.offset)
        cut = self.faults.cut_pull_after_bytes
        limit = cut.pop(0) if cut else None
        model = self.models.get(Digest(request.digest))
        if model is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        if self.faults.damage_pull:
            self.faults.damage_pull -= 1
            model = bytes(byte ^ 1 for byte in model)
        while self.faults.empty_pull:
            yield pb.ModelBlock(offset=request.offset)
        sent = 0
        for offset in range(request.offset, len(model), BLOCK_BYTES):
            if limit is not None and sent >= limit:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            yield pb.ModelBlock(offset=offset, data=model[offset : offset + BLOCK_BYTES])
            sent += BLOCK_BYTES

    async def OpenUpdate(  # noqa: N802 - gRPC names
        self, request: pb.OpenUpdateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.UpdateStatus:
        node = await self._admit_caller(context)
        envelope = envelope_from_wire(request.manifest)
        payload = signing.verify(envelope, self._participant_keys[node], PayloadType.UPDATE)
        manifest, digest = parse_update_manifest(payload), digest_of(payload)
        hashes = tuple(
            request.chunk_hashes[at : at + 32] for at in range(0, len(request.chunk_hashes), 32)
        )
        assert merkle_root(hashes) == manifest.chunk_root
        assert len(hashes) == len(chunk_lengths(manifest.byte_count))
        if digest not in self.uploads:
            start = self.round_start
            if start is None or (start.round_id, start.nonce) != (
                manifest.round_id,
                manifest.nonce,
            ):
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the round is over")
            if any(each.manifest.round_id == manifest.round_id for each in self.uploads.values()):
                await context.abort(grpc.StatusCode.ALREADY_EXISTS, "another update came before")
            self.uploads[digest] = Upload(manifest, hashes)
        elif self.uploads[digest].admitted is False:
            self._admit(self.uploads[digest])
        return self._status(digest, node)

    async def PushChunks(  # noqa: N802 - gRPC names
        self,
        request_iterator: AsyncIterator[pb.PushChunksRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> pb.UpdateStatus:
        node = await self._admit_caller(context)
        cut = self.faults.cut_push_after_chunks
        limit = cut.pop(0) if cut else None
        first = await anext(request_iterator)
        digest = Digest(first.update_digest)
        upload = self.uploads[digest]
        received = 0
        async for message in request_iterator:
            if limit is not None and received >= limit:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            chunk = message.chunk
            assert chunk.index == len(upload.chunks)
            assert leaf_hash(chunk.data) == upload.chunk_hashes[chunk.index]
            upload.chunks.append(chunk.data)
            self.received_chunks.append(chunk.index)
            received += 1
        self._admit(upload)
        return self._status(digest, node)

    def _admit(self, upload: Upload) -> None:
        if len(upload.chunks) < len(upload.chunk_hashes):
            return
        if self.faults.delay_admission:
            self.faults.delay_admission -= 1
            return
        upload.admitted = True

    def _status(self, digest: Digest, node: NodeId) -> pb.UpdateStatus:
        upload = self.uploads[digest]
        status = pb.UpdateStatus(
            update_digest=digest,
            durable_chunks=len(upload.chunks),
            total_chunks=len(upload.chunk_hashes),
        )
        if self.faults.answer_other_update:
            status.update_digest = digest_of(b"another update")
        if upload.admitted:
            place = (len(self.receipts), digest_of(b"leaf"))
            if self.log is not None:
                place = self.log.admit(node, upload.manifest.round_id, digest)
            receipt = Receipt(
                federation_id=self.plan.federation_id,
                study_id=self.plan.study_id,
                round_id=upload.manifest.round_id,
                node_id=STRANGER if self.faults.wrong_receipt else node,
                update_digest=digest,
                log_index=place[0],
                log_leaf_hash=place[1],
                admitted_at=datetime.now(UTC),
            )
            self.receipts.append(receipt)
            status.receipt.CopyFrom(self._signed(PayloadType.RECEIPT, format_receipt(receipt)))
        return status

    def _signed(self, payload_type: PayloadType, payload: bytes) -> pb.Envelope:
        signer: Signer = self._other if self.faults.sign_with_other_key else self._signer
        return envelope_to_wire(signing.sign(payload_type, payload, signer))

    async def _admit_caller(self, context: grpc.aio.ServicerContext[Any, Any]) -> NodeId:
        node = peer_certificate(context).node_id
        await asyncio.sleep(self.faults.answer_delay_seconds)
        if self.faults.abort:
            await context.abort(self.faults.abort.pop(0), "as the test wants")
        if node != HOSPITAL:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not enrolled")
        return node


def coordinator_key(keys: dict[NodeId, NodeFolder]) -> EllipticCurvePublicKey:
    """The key that verifies the coordinator's documents."""
    return parse_public_key(keys[HOSPITAL].coordinator_signing_key.read_bytes())
