"""Asks a coordinator for evidence of its machine; judges nothing.

With ``client`` and ``log_client``, the modules of the participant that see protobuf and gRPC.
"""

from dataclasses import dataclass

import grpc

from matl_common.attestation.evidence import Evidence, parse_evidence
from matl_common.errors import InvalidInputError
from matl_common.ids import Digest, parse_digest
from matl_common.wire import federation_pb2 as pb
from matl_common.wire.federation_pb2_grpc import FederationServiceStub
from matl_participant.client import one_try

MAX_TLS_CERTIFICATES_BYTES = 64 << 10
CALL_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Statement:
    """What a coordinator says of itself. Nothing vouches for any of it yet."""

    evidence: Evidence
    tls_certificates: bytes
    """PEM, the server's own first."""
    config_digest: Digest


async def ask_for_evidence(channel: grpc.aio.Channel, nonce: bytes) -> Statement:
    """Ask, with a nonce that nobody else knew.

    Raises:
        CallError: no answer, or a refusal.
        InvalidInputError: the answer is malformed.
    """
    call = FederationServiceStub(channel).Attest(
        pb.AttestRequest(nonce=nonce), timeout=CALL_SECONDS
    )
    answer = await one_try(call)
    if len(answer.tls_certificates) > MAX_TLS_CERTIFICATES_BYTES:
        raise InvalidInputError("the coordinator's TLS certificates are too long")
    evidence = parse_evidence(
        answer.evidence.technology, answer.evidence.report, answer.evidence.endorsements
    )
    return Statement(evidence, answer.tls_certificates, parse_digest(answer.config_digest))
