"""The one entrance: evidence of whatever kind, judged by a policy."""

from __future__ import annotations

from datetime import datetime

from matl_common.attestation.binding import Binding
from matl_common.attestation.evidence import Evidence, EvidenceRefusedError, Technology, Verdict
from matl_common.attestation.policy import Policy
from matl_common.attestation.simulated import verify_simulated
from matl_common.attestation.snp import verify_snp
from matl_common.attestation.snp_report import parse_snp_report
from matl_common.attestation.tdx import load_dcap_qvl, verify_tdx
from matl_common.attestation.tdx_quote import parse_quote_frame
from matl_common.ids import Digest, digest_of


def check_available(policy: Policy) -> None:
    """Find out at start whether what the policy accepts can be verified here.

    Raises:
        ConfigurationError: something is not installed.
    """
    if Technology.TDX in policy.technologies:
        load_dcap_qvl()


def report_digest(evidence: Evidence) -> Digest:
    """SHA-256 of what the report's signature covers, whatever became of the rest.

    An ECDSA signature can be changed into another one that holds, and the same report would have
    two names.

    Raises:
        InvalidInputError: it is malformed.
    """
    if evidence.technology is Technology.TDX:
        return digest_of(parse_quote_frame(evidence.report).signed)
    return digest_of(parse_snp_report(evidence.report).signed)


def verify_evidence(
    evidence: Evidence, *, policy: Policy, binding: Binding, now: datetime
) -> Verdict:
    """Judge evidence.

    Args:
        evidence: what the coordinator showed.
        policy: what this verifier accepts.
        binding: what the report has to be about.
        now: when certificates and collateral must be valid.

    Raises:
        ConfigurationError: what verifies this kind is not installed.
        InvalidInputError: it is malformed.
        EvidenceRefusedError: it is not genuine, about something else, or not accepted.
    """
    if policy.config_digests and binding.config_digest not in policy.config_digests:
        raise EvidenceRefusedError(
            f"the coordinator runs with configuration {binding.config_digest}, which the policy "
            "does not accept"
        )
    match evidence.technology:
        case Technology.SEV_SNP:
            return verify_snp(evidence, policy=policy, binding=binding, now=now)
        case Technology.TDX:
            return verify_tdx(evidence, policy=policy, binding=binding, now=now)
        case Technology.SIMULATED:
            return verify_simulated(evidence, policy=policy, binding=binding, now=now)
