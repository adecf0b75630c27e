"""Whether an Intel TDX quote is genuine, about us, and from a TD that the policy accepts.

Signatures, certificates and collateral are dcap-qvl's work; the judgement about the TD is here.
dcap-qvl is optional (``pip install 'matl[tee]'``).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from matl_common.attestation.binding import Binding
from matl_common.attestation.evidence import Evidence, EvidenceRefusedError, Verdict
from matl_common.attestation.policy import Policy, TdAttribute, TdMeasurements, TdxPolicy
from matl_common.attestation.tdx_quote import parse_quote_frame
from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.ids import digest_of


@dataclass(frozen=True, slots=True)
class Td:
    """What a verified quote says of a TD."""

    attributes: int
    """ATTRIBUTES, by bit."""
    xfam: int
    """XFAM, by bit: which extended features of the processor the TD has."""
    mr_td: str
    rtmrs: tuple[str, str, str, str]
    report_data: bytes
    mr_seam: str
    """Of the TDX module."""
    mr_signer_seam: str
    """Of who signed the TDX module; zeros for Intel."""
    seam_attributes: int
    """Of the TDX module; zero for one in production."""
    service_td: str
    """Of a service TD that is bound to this one; zeros for none."""
    status: str
    """Of the platform's TCB, in Intel's words."""
    advisories: tuple[str, ...]


def verify_tdx(evidence: Evidence, *, policy: Policy, binding: Binding, now: datetime) -> Verdict:
    """Verify a quote with the collateral that came with it.

    Raises:
        ConfigurationError: dcap-qvl is not installed.
        InvalidInputError: quote or collateral are malformed.
        EvidenceRefusedError: it is not genuine, the collateral not valid now, it is not bound to
            ``binding``, or not accepted.
    """
    if policy.tdx is None:
        raise EvidenceRefusedError("the policy accepts no Intel TDX guest")
    td = read_verified_quote(evidence, now=now)
    if td.report_data != binding.report_data:
        raise EvidenceRefusedError(
            "the TDX quote is about another TLS key, nonce, federation or configuration"
        )
    check_td(td, policy.tdx)
    advisories = f", {' '.join(td.advisories)}" if td.advisories else ""
    return Verdict(
        technology=evidence.technology,
        measurement=td.mr_td,
        platform=f"{td.status}{advisories}",
        report_digest=digest_of(parse_quote_frame(evidence.report).signed),
        policy_digest=policy.digest,
        simulated=False,
    )


def read_verified_quote(evidence: Evidence, *, now: datetime) -> Td:
    """What the quote says, once its signatures are verified up to Intel's root.

    Raises:
        ConfigurationError, InvalidInputError, EvidenceRefusedError: as ``verify_tdx``.
    """
    dcap_qvl = load_dcap_qvl()
    try:
        quote = dcap_qvl.parse_quote(evidence.report)
        collateral = dcap_qvl.QuoteCollateralV3.from_json(evidence.endorsements.decode())
    except ValueError as error:
        raise InvalidInputError("the TDX quote or its collateral is malformed") from error
    if not quote.is_tdx():
        raise EvidenceRefusedError("the quote is not one of a TD")
    parse_quote_frame(evidence.report)
    try:
        verified = dcap_qvl.verify(evidence.report, collateral, int(now.timestamp()))
    except (ValueError, OverflowError) as error:
        # The latter for a time before 1970.
        raise EvidenceRefusedError(f"the TDX quote does not verify: {str(error)[:200]}") from error
    report = quote.report
    return Td(
        attributes=int.from_bytes(report.td_attributes, "little"),
        xfam=int.from_bytes(report.xfam, "little"),
        mr_td=report.mr_td.hex(),
        rtmrs=(
            report.rt_mr0.hex(),
            report.rt_mr1.hex(),
            report.rt_mr2.hex(),
            report.rt_mr3.hex(),
        ),
        report_data=report.report_data,
        mr_seam=report.mr_seam.hex(),
        mr_signer_seam=report.mr_signer_seam.hex(),
        seam_attributes=int.from_bytes(report.seam_attributes, "little"),
        # A report of TDX 1.0 knows of none.
        service_td=getattr(report, "mr_service_td", bytes(48)).hex(),
        status=verified.status,
        advisories=tuple(verified.advisory_ids),
    )


def check_td(td: Td, policy: TdxPolicy) -> None:
    """Judge a TD that is genuine.

    Raises:
        EvidenceRefusedError: debugging or profiling is on, the TDX module is not one of Intel's in
            production, or the policy does not accept it.
    """
    _check_attributes(td, policy)
    _check_module(td, policy)
    if td.status not in policy.statuses:
        raise EvidenceRefusedError(
            f"the TDX platform's status is {td.status}; the policy accepts "
            f"{', '.join(policy.statuses)}"
        )
    if not any(_matches(td, accepted) for accepted in policy.measurements):
        raise EvidenceRefusedError(
            f"the TD with MRTD {td.mr_td} and RTMRs {', '.join(td.rtmrs)} is not one that the "
            "policy accepts"
        )


def _check_attributes(td: Td, policy: TdxPolicy) -> None:
    # TUD, the lowest byte: debugging and profiling.
    if td.attributes & 0xFF:
        raise EvidenceRefusedError("the TD runs with debugging on, so its host can read its memory")
    attributes = TdAttribute(td.attributes)
    if TdAttribute.SEPT_VE_DISABLE not in attributes:
        raise EvidenceRefusedError(
            "the TD runs without SEPT_VE_DISABLE, so its host can raise exceptions in it"
        )
    # A TD that may be migrated has a bit there that no policy can allow.
    if further := attributes & ~policy.accepted_attributes:
        raise EvidenceRefusedError(
            f"the TD's ATTRIBUTES are {td.attributes:#x}; the policy does not allow {further:#x} "
            "of them"
        )
    if features := td.xfam & ~policy.allowed_xfam:
        raise EvidenceRefusedError(
            f"the TD's XFAM is {td.xfam:#x}; the policy does not allow {features:#x} of it"
        )
    if int(td.service_td, 16):
        raise EvidenceRefusedError(
            f"the service TD {td.service_td} is bound to the TD and may move it"
        )


def _check_module(td: Td, policy: TdxPolicy) -> None:
    if int(td.mr_signer_seam, 16) or td.seam_attributes:
        raise EvidenceRefusedError(
            "the TDX module is not one of Intel's in production: its MRSIGNERSEAM is "
            f"{td.mr_signer_seam}, its SEAM attributes {td.seam_attributes:#x}"
        )
    if policy.mr_seams and td.mr_seam not in policy.mr_seams:
        raise EvidenceRefusedError(
            f"the TDX module measures {td.mr_seam}, which the policy does not accept"
        )


def _matches(td: Td, accepted: TdMeasurements) -> bool:
    wanted = (accepted.rtmr0, accepted.rtmr1, accepted.rtmr2, accepted.rtmr3)
    return td.mr_td == accepted.mr_td and all(
        rtmr is None or rtmr == found for rtmr, found in zip(wanted, td.rtmrs, strict=True)
    )


def load_dcap_qvl() -> Any:
    """The library that verifies quotes.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        import dcap_qvl
    except ImportError as error:
        raise ConfigurationError(
            "TDX quotes are verified by dcap-qvl, which is not installed; "
            "run: pip install 'matl[tee]'"
        ) from error
    return dcap_qvl
