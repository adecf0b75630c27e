"""What a coordinator shows, and what a verifier makes of it, as values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from matl_common.errors import IntegrityError, InvalidInputError

MAX_REPORT_BYTES = 64 << 10
MAX_ENDORSEMENTS_BYTES = 256 << 10


class EvidenceRefusedError(IntegrityError):
    """The evidence does not verify, is about something else, or the policy does not accept it."""


class Technology(StrEnum):
    """What made the evidence."""

    SEV_SNP = "sev-snp"
    TDX = "tdx"
    SIMULATED = "SIMULATED"
    """Software, which proves nothing. In capitals wherever it shows."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A signed report with what is needed to check its signature."""

    technology: Technology
    report: bytes
    """SEV-SNP and SIMULATED: the attestation report. TDX: the quote."""
    endorsements: bytes
    """SEV-SNP and SIMULATED: certificates of leaf, intermediate and root in PEM. TDX: the
    collateral of Intel's certification service as JSON."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Evidence that was accepted, and under which policy."""

    technology: Technology
    measurement: str
    """Of the program that was loaded: MEASUREMENT, or MRTD; hexadecimal."""
    platform: str
    """Product, firmware versions or status, for people."""
    report_digest: str
    """What logs name the report by: SHA-256 of what its signature covers."""
    policy_digest: str
    simulated: bool
    """Whether software signed the report, so that it proves nothing."""

    def __str__(self) -> str:
        """One sentence; a simulated verdict begins by saying so."""
        sentence = f"{self.technology.value} {self.platform}, measurement {self.measurement[:16]}…"
        return f"SIMULATED, proves nothing: {sentence}" if self.simulated else sentence


def parse_evidence(technology: str, report: bytes, endorsements: bytes) -> Evidence:
    """Take evidence from outside, within the size limits.

    Raises:
        InvalidInputError: an unknown technology, or too long.
    """
    try:
        kind = Technology(technology)
    except ValueError as error:
        raise InvalidInputError(
            f"{technology[:40]!r} is no kind of evidence; known are "
            f"{', '.join(each.value for each in Technology)}"
        ) from error
    for name, data, limit in (
        ("report", report, MAX_REPORT_BYTES),
        ("endorsements", endorsements, MAX_ENDORSEMENTS_BYTES),
    ):
        if len(data) > limit:
            raise InvalidInputError(f"the {name} has {len(data)} bytes; at most {limit}")
    return Evidence(kind, report, endorsements)
