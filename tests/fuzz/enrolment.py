"""Enrolment requests and answers, which travel by hand."""

from __future__ import annotations

from contextlib import suppress

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from matl_common.errors import MatlError
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.enrolling import Keys, make_request, parse_answer, parse_request
from matl_common.identity.keys import generate_private_key
from matl_common.ids import FederationId, NodeId
from matl_common.tlog.cosignature import witness_key
from matl_common.tlog.names import witness_name
from tests.fuzz.target import Target
from tests.signers import SoftwareSigner

HOSPITAL = SpiffeId(FederationId("dr-study"), Role.PARTICIPANT, NodeId("hospital_b"))
WITNESS = Ed25519PrivateKey.from_private_bytes(bytes(32))


def _request() -> bytes:
    name = witness_name(HOSPITAL.federation, HOSPITAL.node_id)
    signing = SoftwareSigner(generate_private_key())
    witness = witness_key(name, WITNESS.public_key()), WITNESS
    return make_request(HOSPITAL, Keys(generate_private_key(), signing, witness))


def _run(data: bytes) -> None:
    with suppress(MatlError):
        parse_answer(data)
    parse_request(data)


TARGET = Target(run=_run, seeds=[_request()])
