"""The certificates that a host hands to an SEV-SNP guest, from their table to PEM.

"Guest Hypervisor Communication Block Standardization" (AMD 56421), "SNP Extended Guest Request":
entries of a GUID, an offset and a length, ended by an entry of zeros, and the certificates.
"""

from __future__ import annotations

import base64
import struct
import textwrap
from uuid import UUID

from matl_coordinator.ports import AttesterError

_ENTRY = struct.Struct("<16sII")
_VCEK = UUID("63da758d-e664-4564-adc5-f4b93be8accd")
_VLEK = UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
_ASK = UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
_ARK = UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")


def pem_of_table(table: bytes) -> bytes:
    """Leaf, intermediate and root in PEM.

    Raises:
        AttesterError: the host did not hand out all of them.
    """
    found = _entries(table)
    leaf = found.get(_VLEK, found.get(_VCEK))
    if leaf is None or _ASK not in found or _ARK not in found:
        raise AttesterError(
            "the host hands out no certificates for its reports; fetch VCEK, ASK and ARK from "
            "AMD's key distribution service, and name the PEM file in attestation.endorsements"
        )
    return b"".join(map(_pem, (leaf, found[_ASK], found[_ARK])))


def _entries(table: bytes) -> dict[UUID, bytes]:
    found = {}
    for start in range(0, len(table) - _ENTRY.size + 1, _ENTRY.size):
        guid, offset, length = _ENTRY.unpack_from(table, start)
        if not any(guid):
            break
        if offset + length > len(table):
            raise AttesterError("the host's table of certificates is malformed")
        found[UUID(bytes=guid)] = table[offset : offset + length]
    return found


def _pem(certificate: bytes) -> bytes:
    """In PEM; some hosts hand out PEM already."""
    if certificate.startswith(b"-----BEGIN"):
        return certificate.rstrip(b"\0").rstrip() + b"\n"
    body = "\n".join(textwrap.wrap(base64.b64encode(certificate).decode(), 64))
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n".encode()
