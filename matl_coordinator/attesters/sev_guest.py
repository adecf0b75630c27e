"""Evidence from ``/dev/sev-guest``: AMD SEV-SNP by the ioctl SNP_GET_EXT_REPORT.

Linux ``Documentation/virt/coco/sev-guest.rst`` and ``include/uapi/linux/sev-guest.h``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from matl_common.attestation.binding import REPORT_DATA_BYTES
from matl_common.attestation.evidence import Evidence, Technology
from matl_common.attestation.snp_report import REPORT_BYTES
from matl_coordinator.attesters.certificate_table import pem_of_table
from matl_coordinator.ports import AttesterError

DEVICE = Path("/dev/sev-guest")

# _IOWR('S', 0x2, struct snp_guest_request_ioctl)
SNP_GET_EXT_REPORT = 0xC020_5302

_MESSAGE_VERSION = 1
_RESPONSE_BYTES = 4000
_HEADER_BYTES = 32
# SEV_FW_BLOB_MAX_SIZE: the kernel takes whole pages up to it.
_TABLE_BYTES = 0x4000
_REQUEST = struct.Struct("<B7xQQQ")
_REPORT_REQUEST = struct.Struct(f"<{REPORT_DATA_BYTES}sI28xQI4x")


@dataclass(frozen=True, slots=True)
class SevGuestAttester:
    """Asks the AMD secure processor through the kernel."""

    endorsements: Path | None = None
    """VCEK or VLEK, ASK and ARK in PEM, where the host hands out none."""
    device: Path = DEVICE

    def attest(self, report_data: bytes) -> Evidence:
        """Have the processor sign these 64 bytes.

        Raises:
            AttesterError: there is no such device, or it refused.
        """
        table = ctypes.create_string_buffer(_TABLE_BYTES)
        response = ctypes.create_string_buffer(_RESPONSE_BYTES)
        # At privilege level 0, that of an unparavirtualised guest.
        asked = _REPORT_REQUEST.pack(report_data, 0, ctypes.addressof(table), _TABLE_BYTES)
        request = ctypes.create_string_buffer(asked, len(asked))
        message = bytearray(
            _REQUEST.pack(
                _MESSAGE_VERSION, ctypes.addressof(request), ctypes.addressof(response), 0
            )
        )
        self._ask(message)
        certificates = self._certificates(table.raw)
        return Evidence(Technology.SEV_SNP, parse_response(response.raw), certificates)

    def _certificates(self, table: bytes) -> bytes:
        """The configured certificates, or those in the table that the host handed out."""
        return read_endorsements(self.endorsements) if self.endorsements else pem_of_table(table)

    def _ask(self, message: bytearray) -> None:
        try:
            descriptor = os.open(self.device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise AttesterError(
                f"cannot open {self.device}: {error.strerror}; attestation needs an AMD SEV-SNP "
                "guest with the kernel's sev-guest driver, and this user's access to the device"
            ) from error
        try:
            fcntl.ioctl(descriptor, SNP_GET_EXT_REPORT, message)
        except OSError as error:
            firmware = int.from_bytes(message[24:32], "little")
            kind = errno.errorcode.get(error.errno or 0, "an error")
            raise AttesterError(
                f"{self.device} refused to attest: {kind}, firmware error {firmware:#x}"
            ) from error
        finally:
            os.close(descriptor)


def parse_response(data: bytes) -> bytes:
    """The report in the firmware's MSG_REPORT_RSP.

    Raises:
        AttesterError: it says that it failed, or holds no report.
    """
    status, size = struct.unpack_from("<II", data)
    if status or size != REPORT_BYTES:
        raise AttesterError(
            f"the AMD secure processor answered with status {status:#x} and {size} bytes"
        )
    return data[_HEADER_BYTES : _HEADER_BYTES + REPORT_BYTES]


def read_endorsements(path: Path) -> bytes:
    """Read what the operator keeps beside the hardware.

    Raises:
        AttesterError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise AttesterError(
            f"cannot read attestation.endorsements {path}: {error.strerror}"
        ) from error
