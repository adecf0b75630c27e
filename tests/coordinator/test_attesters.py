"""Where evidence comes from: the kernel's formats, and machines without such hardware.

The ioctl and configfs themselves need a confidential guest; these are the parts around them.
"""

import ctypes
import struct
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.attestation.evidence import Technology
from matl_coordinator.attesters import sev_guest
from matl_coordinator.attesters.certificate_table import pem_of_table
from matl_coordinator.attesters.sev_guest import SevGuestAttester, parse_response
from matl_coordinator.attesters.tsm import TsmAttester, evidence_of
from matl_coordinator.ports import AttesterError

pytestmark = pytest.mark.attestation

VCEK = "63da758d-e664-4564-adc5-f4b93be8accd"
VLEK = "a8074bc2-a25a-483e-aae6-39c045a0b8a1"
ASK = "4ab7b379-bbac-4fe4-a02f-05aef327c782"
# Version 4, with one byte of signature.
QUOTE = b"\4\0" + bytes(630) + struct.pack("<I", 1) + b"s"
ARK = "c0b406a4-a803-4952-9743-3fb6014cd0ae"


def table_of(certificates: dict[str, bytes]) -> bytes:
    offset, header, body = 24 * (len(certificates) + 1), b"", b""
    for guid, certificate in certificates.items():
        header += UUID(guid).bytes + struct.pack("<II", offset + len(body), len(certificate))
        body += certificate
    return header + bytes(24) + body


class _ReportRequest(ctypes.Structure):
    """``struct snp_report_req`` of linux/sev-guest.h."""

    _fields_ = (
        ("user_data", ctypes.c_uint8 * 64),
        ("vmpl", ctypes.c_uint32),
        ("rsvd", ctypes.c_uint8 * 28),
    )


class _ExtendedRequest(ctypes.Structure):
    """``struct snp_ext_report_req``."""

    _fields_ = (
        ("data", _ReportRequest),
        ("certs_address", ctypes.c_uint64),
        ("certs_len", ctypes.c_uint32),
    )


class _Message(ctypes.Structure):
    """``struct snp_guest_request_ioctl``."""

    _fields_ = (
        ("msg_version", ctypes.c_uint8),
        ("req_data", ctypes.c_uint64),
        ("resp_data", ctypes.c_uint64),
        ("exitinfo2", ctypes.c_uint64),
    )


def test_requests_are_laid_out_as_the_compiler_lays_out_the_kernels_structures() -> None:
    packed = sev_guest._REPORT_REQUEST.pack(b"d" * 64, 2, 0x1122334455667788, 0x4000)
    assert len(packed) == ctypes.sizeof(_ExtendedRequest)
    read = _ExtendedRequest.from_buffer_copy(packed)
    assert bytes(read.data.user_data) == b"d" * 64
    assert (read.data.vmpl, bytes(read.data.rsvd)) == (2, bytes(28))
    assert (read.certs_address, read.certs_len) == (0x1122334455667788, 0x4000)
    message = _Message.from_buffer_copy(sev_guest._REQUEST.pack(1, 2, 3, 4))
    assert (message.msg_version, message.req_data, message.resp_data) == (1, 2, 3)
    assert message.exitinfo2 == 4
    # _IOWR('S', 2, struct snp_guest_request_ioctl), asm-generic/ioctl.h
    number = 3 << 30 | ctypes.sizeof(_Message) << 16 | ord("S") << 8 | 2
    assert number == sev_guest.SNP_GET_EXT_REPORT


def test_a_report_is_taken_from_the_firmwares_answer_or_its_refusal_told() -> None:
    report = bytes(range(256)) * 4 + bytes(160)
    answer = struct.pack("<II24x", 0, 1184) + report + bytes(4000 - 32 - 1184)
    assert parse_response(answer) == report
    for status, size in ((0x16, 1184), (0, 1000)):
        refused = struct.pack("<II24x", status, size) + answer[32:]
        with pytest.raises(AttesterError, match=f"status {status:#x} and {size} bytes"):
            parse_response(refused)


def test_the_hosts_certificates_are_put_leaf_first_whatever_their_order() -> None:
    table = table_of({ARK: b"ark", VCEK: b"vcek", ASK: b"ask"})
    names = [b"dmNlaw==", b"YXNr", b"YXJr"]  # base64 of vcek, ask, ark
    pem = pem_of_table(table.ljust(0x4000, b"\0"))
    assert [pem.index(name) for name in names] == sorted(pem.index(name) for name in names)
    already = b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"
    assert pem_of_table(table_of({VLEK: already + b"\0", ASK: b"a", ARK: b"b"})).startswith(already)


def test_a_table_without_all_certificates_is_said_to_lack_them() -> None:
    for table in (bytes(0x4000), table_of({VCEK: b"vcek", ASK: b"ask"}), b""):
        with pytest.raises(AttesterError, match=r"name the PEM file in attestation\.endorsements"):
            pem_of_table(table)
    outside = UUID(VCEK).bytes + struct.pack("<II", 100, 1 << 30) + bytes(24)
    with pytest.raises(AttesterError, match="malformed"):
        pem_of_table(outside)


@given(st.binary(max_size=400))
def test_an_arbitrary_table_is_only_ever_refused(table: bytes) -> None:
    with pytest.raises(AttesterError):
        pem_of_table(table)


def test_on_a_machine_without_the_hardware_the_operator_is_told_what_is_missing(
    tmp_path: Path,
) -> None:
    with pytest.raises(AttesterError, match="needs an AMD SEV-SNP guest"):
        SevGuestAttester(device=tmp_path / "sev-guest").attest(bytes(64))
    with pytest.raises(AttesterError, match="needs a confidential guest"):
        TsmAttester(reports=tmp_path / "tsm" / "report").attest(bytes(64))
    # A device that is none of the driver's.
    with pytest.raises(AttesterError, match="refused to attest: ENOTTY"):
        SevGuestAttester(device=Path("/dev/null")).attest(bytes(64))


def test_a_folder_that_no_driver_fills_gives_no_evidence(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not empty"):
        TsmAttester(reports=tmp_path).attest(bytes(64))


def test_the_kernels_answer_needs_something_to_verify_it_with(tmp_path: Path) -> None:
    table = table_of({VCEK: b"vcek", ASK: b"ask", ARK: b"ark"})
    snp = evidence_of("sev_guest", b"report", table, endorsements=None)
    assert (snp.technology, snp.report) == (Technology.SEV_SNP, b"report")
    assert snp.endorsements.count(b"BEGIN CERTIFICATE") == 3
    file = tmp_path / "collateral.json"
    with pytest.raises(AttesterError, match="needs Intel's collateral"):
        evidence_of("tdx_guest", QUOTE, b"", endorsements=None)
    with pytest.raises(AttesterError, match="cannot read"):
        evidence_of("tdx_guest", QUOTE, b"", endorsements=file)
    file.write_bytes(b"{}")
    tdx = evidence_of("tdx_guest", QUOTE + bytes(70), b"", endorsements=file)
    assert (tdx.technology, tdx.report, tdx.endorsements) == (Technology.TDX, QUOTE, b"{}")
    for answered in (b"quote", QUOTE[:-1], QUOTE + b"x"):
        with pytest.raises(AttesterError, match="answered with no quote"):
            evidence_of("tdx_guest", answered, b"", endorsements=file)
    with pytest.raises(AttesterError, match="provider is 'arm_cca_guest'"):
        evidence_of("arm_cca_guest", b"", b"", endorsements=file)
