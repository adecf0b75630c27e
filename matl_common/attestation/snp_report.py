"""The attestation report of AMD SEV-SNP, taken apart.

SEV Secure Nested Paging Firmware ABI Specification (AMD 56860), tables "ATTESTATION_REPORT",
"GUEST_POLICY", "TCB_VERSION" and "Format for an ECDSA P-384 signature". Layout of Milan and
Genoa; Turin counts its firmware versions differently. Nothing here is believed yet: ``snp``
verifies the signature.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from matl_common.attestation.policy import Tcb
from matl_common.errors import InvalidInputError

REPORT_BYTES = 1184
SIGNED_BYTES = 0x2A0
VERSIONS = range(2, 6)

_ECDSA_P384_SHA384 = 1
_SCALAR_BYTES = 72
_POLICY_SMT, _POLICY_ONE, _POLICY_MIGRATION, _POLICY_DEBUG = 16, 17, 18, 19


class SigningKey(IntEnum):
    """Which of the platform's keys signed (KEY_INFO, bits 4:2)."""

    VCEK = 0
    """Of the chip."""
    VLEK = 1
    """Lent to a cloud provider for its chips."""


@dataclass(frozen=True, slots=True)
class SnpReport:
    """The fields that decide, with the signature over all."""

    version: int
    vmpl: int
    is_debuggable: bool
    allows_smt: bool
    allows_migration: bool
    signing_key: SigningKey
    report_data: bytes
    measurement: str
    """Launch measurement, SHA-384 in hexadecimal."""
    reported_tcb: Tcb
    """What the signing key is derived from."""
    committed_tcb: Tcb
    """What the firmware cannot be rolled back below."""
    launch_tcb: Tcb
    chip_id: bytes
    signed: bytes
    signature_r: int
    signature_s: int


def parse_snp_report(data: bytes) -> SnpReport:
    """Take a report apart.

    Raises:
        InvalidInputError: another length, version or signature algorithm; a field that must be
            zero or one is not.
    """
    if len(data) != REPORT_BYTES:
        raise InvalidInputError(f"an SEV-SNP report has {REPORT_BYTES} bytes, this {len(data)}")
    version, policy = struct.unpack_from("<I4xQ", data)
    vmpl, algorithm = struct.unpack_from("<II", data, 0x30)
    (key_info,) = struct.unpack_from("<I", data, 0x48)
    if version not in VERSIONS:
        raise InvalidInputError(
            f"the SEV-SNP report has version {version}; known are "
            f"{VERSIONS.start} to {VERSIONS.stop - 1}"
        )
    if algorithm != _ECDSA_P384_SHA384:
        raise InvalidInputError(f"the SEV-SNP report is signed by algorithm {algorithm}, not 1")
    if not policy >> _POLICY_ONE & 1:
        raise InvalidInputError("the SEV-SNP report's guest policy is malformed")
    r, s = _signature(data[SIGNED_BYTES:])
    return SnpReport(
        version=version,
        vmpl=vmpl,
        is_debuggable=bool(policy >> _POLICY_DEBUG & 1),
        allows_smt=bool(policy >> _POLICY_SMT & 1),
        allows_migration=bool(policy >> _POLICY_MIGRATION & 1),
        signing_key=_signing_key(key_info),
        report_data=data[0x50:0x90],
        measurement=data[0x90:0xC0].hex(),
        reported_tcb=_tcb(data[0x180:0x188]),
        committed_tcb=_tcb(data[0x1E0:0x1E8]),
        launch_tcb=_tcb(data[0x1F0:0x1F8]),
        chip_id=data[0x1A0:0x1E0],
        signed=data[:SIGNED_BYTES],
        signature_r=r,
        signature_s=s,
    )


def _signing_key(key_info: int) -> SigningKey:
    try:
        return SigningKey(key_info >> 2 & 7)
    except ValueError as error:
        raise InvalidInputError("no key of the platform signed the SEV-SNP report") from error


def _tcb(data: bytes) -> Tcb:
    if any(data[2:6]):
        raise InvalidInputError(
            "the SEV-SNP report's TCB version is not laid out as Milan's and Genoa's"
        )
    return Tcb(bootloader=data[0], tee=data[1], snp=data[6], microcode=data[7])


def _signature(data: bytes) -> tuple[int, int]:
    """r and s; little-endian, unlike everywhere else that ECDSA is used."""
    if any(data[2 * _SCALAR_BYTES :]):
        raise InvalidInputError("the SEV-SNP report goes on after its signature")
    return (
        int.from_bytes(data[:_SCALAR_BYTES], "little"),
        int.from_bytes(data[_SCALAR_BYTES : 2 * _SCALAR_BYTES], "little"),
    )
