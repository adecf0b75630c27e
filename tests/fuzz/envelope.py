"""DSSE envelopes as JSON."""

from __future__ import annotations

from matl_common.protocol import PayloadType
from matl_common.signing import encode_envelope, parse_envelope, sign
from matl_common.wire.documents import format_update_manifest
from tests.fuzz.samples import MANIFEST, SIGNER
from tests.fuzz.target import Target


def _run(data: bytes) -> None:
    envelope = parse_envelope(data)
    assert parse_envelope(encode_envelope(envelope)) == envelope


TARGET = Target(
    run=_run,
    seeds=[
        encode_envelope(sign(PayloadType.UPDATE, format_update_manifest(MANIFEST), SIGNER)),
        encode_envelope(sign(PayloadType.RECEIPT, b"", SIGNER)),
    ],
)
