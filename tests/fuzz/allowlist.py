"""The operator's allow-list."""

from __future__ import annotations

from matl_common.identity.allowlist import (
    AllowedNode,
    encode_allowlist,
    enrol,
    parse_allowlist,
)
from matl_common.identity.certificates import Role
from matl_common.ids import FederationId, NodeId, digest_of
from tests.fuzz.samples import SIGNER
from tests.fuzz.target import Target

_ALLOWLIST = enrol(
    FederationId("dr-study"),
    [
        AllowedNode(
            node_id=NodeId("hospital_b"),
            role=Role.PARTICIPANT,
            pins=frozenset({digest_of(b"tls")}),
            signing_key=SIGNER.public_key,
            enrolled_patients=5000,
            label_histogram=(2500, 700, 1100, 400, 300),
        )
    ],
)


def _run(data: bytes) -> None:
    allowlist = parse_allowlist(data)
    again = parse_allowlist(encode_allowlist(allowlist))
    assert again.nodes.keys() == allowlist.nodes.keys()


TARGET = Target(run=_run, seeds=[encode_allowlist(_ALLOWLIST)])
