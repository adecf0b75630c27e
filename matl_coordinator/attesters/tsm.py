"""Evidence from configfs-tsm, the kernel's one interface to AMD SEV-SNP and Intel TDX.

Linux ``Documentation/ABI/testing/configfs-tsm-report`` (6.7 and later): a folder is a request.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from matl_common.attestation.evidence import Evidence, Technology
from matl_common.attestation.tdx_quote import without_padding
from matl_common.errors import InvalidInputError
from matl_coordinator.attesters.certificate_table import pem_of_table
from matl_coordinator.attesters.sev_guest import read_endorsements
from matl_coordinator.ports import AttesterError

REPORTS = Path("/sys/kernel/config/tsm/report")

_PROVIDERS = {"sev_guest": Technology.SEV_SNP, "tdx_guest": Technology.TDX}


@dataclass(frozen=True, slots=True)
class TsmAttester:
    """Asks whatever the kernel's driver speaks to."""

    endorsements: Path | None = None
    """AMD: certificates in PEM, where the host hands out none. Intel: collateral as JSON."""
    reports: Path = REPORTS

    def attest(self, report_data: bytes) -> Evidence:
        """Have the hardware sign these 64 bytes.

        Raises:
            AttesterError: there is no such interface, or it refused.
        """
        request = self.reports / f"matl-{secrets.token_hex(8)}"
        try:
            request.mkdir()
        except OSError as error:
            raise AttesterError(
                f"cannot make a request in {self.reports}: {error.strerror}; attestation needs a "
                "confidential guest (AMD SEV-SNP or Intel TDX), configfs mounted and a kernel with "
                "TSM_REPORTS, and this user's access to it"
            ) from error
        try:
            (request / "inblob").write_bytes(report_data)
            report = (request / "outblob").read_bytes()
            provider = (request / "provider").read_text().strip()
            auxiliary = request / "auxblob"
            table = auxiliary.read_bytes() if auxiliary.exists() else b""
            # Somebody else's request in between would have moved it on.
            generation = int((request / "generation").read_text())
        except (OSError, ValueError) as error:
            raise AttesterError(f"the kernel's driver refused to attest: {error}") from error
        finally:
            request.rmdir()
        if generation != 1:
            raise AttesterError("the request for evidence was interfered with; ask again")
        return evidence_of(provider, report, table, endorsements=self.endorsements)


def evidence_of(
    provider: str, report: bytes, table: bytes, *, endorsements: Path | None
) -> Evidence:
    """What the kernel answered, with what is needed to verify it.

    Args:
        provider: the kernel's name for the hardware.
        report: an SEV-SNP report or a TDX quote.
        table: the host's certificates, for SEV-SNP.
        endorsements: the operator's file, which goes before the host's.

    Raises:
        AttesterError: an unknown provider, no quote, or nothing to verify the report with.
    """
    technology = _PROVIDERS.get(provider)
    if technology is None:
        raise AttesterError(
            f"the kernel's attestation provider is {provider[:40]!r}; known are "
            f"{', '.join(_PROVIDERS)}"
        )
    if technology is Technology.TDX:
        report = _quote(report)
    if endorsements is not None:
        return Evidence(technology, report, read_endorsements(endorsements))
    if technology is Technology.TDX:
        raise AttesterError(
            "a TDX quote needs Intel's collateral; name its JSON file in attestation.endorsements"
        )
    return Evidence(technology, report, pem_of_table(table))


def _quote(answered: bytes) -> bytes:
    try:
        return without_padding(answered)
    except InvalidInputError as error:
        raise AttesterError(f"the kernel's driver answered with no quote: {error}") from error
