"""Proofs that are verified offline."""

from __future__ import annotations

from matl_common.tlog.policy import encode_policy, parse_policy, threshold_policy
from matl_common.tlog.proof import TlogProof, encode_proof, parse_proof, verify_proof
from tests.fuzz.note import KEY, LEAF, NOTE, WITNESS
from tests.fuzz.target import Target

POLICY = threshold_policy([KEY], {"b": WITNESS}, threshold=1)


def _run(data: bytes) -> None:
    # Policies travel beside proofs.
    if data.startswith((b"log ", b"group ", b"witness ", b"quorum ")):
        policy = parse_policy(data)
        assert parse_policy(encode_policy(policy)) == policy
        return
    proof = parse_proof(data)
    assert parse_proof(encode_proof(proof)) == proof
    verify_proof(proof, LEAF, POLICY)


TARGET = Target(
    run=_run,
    seeds=[
        encode_proof(TlogProof(0, (), NOTE)),
        encode_policy(POLICY),
    ],
)
