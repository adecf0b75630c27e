"""Whether an AMD SEV-SNP report is genuine, about us, and from a guest that the policy accepts.

Steps as in google/go-sev-guest ``verify`` and ``validate``: certificates, signature, what the
certificate says of the chip, what is signed about the guest.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from matl_common.attestation.binding import Binding
from matl_common.attestation.evidence import Evidence, EvidenceRefusedError, Technology, Verdict
from matl_common.attestation.policy import Policy, SnpPolicy
from matl_common.attestation.snp_chain import AMD_ROOTS, Endorsement, verify_chain
from matl_common.attestation.snp_report import SigningKey, SnpReport, parse_snp_report
from matl_common.ids import digest_of


def verify_snp(
    evidence: Evidence,
    *,
    policy: Policy,
    binding: Binding,
    now: datetime,
    roots: Mapping[str, str] = AMD_ROOTS,
) -> Verdict:
    """Verify a report.

    Raises:
        InvalidInputError: report or certificates are malformed.
        EvidenceRefusedError: it is not genuine, not bound to ``binding``, or not accepted.
    """
    if policy.sev_snp is None:
        raise EvidenceRefusedError("the policy accepts no AMD SEV-SNP guest")
    report, product = read_verified_report(evidence, roots=roots, now=now)
    if report.report_data != binding.report_data:
        raise EvidenceRefusedError(
            "the SEV-SNP report is about another TLS key, nonce, federation or configuration"
        )
    check_guest(report, policy.sev_snp)
    return Verdict(
        technology=evidence.technology,
        measurement=report.measurement,
        platform=f"{product} {report.signing_key.name} ({report.reported_tcb})",
        report_digest=digest_of(report.signed),
        policy_digest=policy.digest,
        simulated=evidence.technology is Technology.SIMULATED,
    )


def read_verified_report(
    evidence: Evidence, *, roots: Mapping[str, str] = AMD_ROOTS, now: datetime
) -> tuple[SnpReport, str]:
    """What the report says, once it is verified up to the root; and the product it is from.

    Raises:
        InvalidInputError, EvidenceRefusedError: as ``verify_snp``.
    """
    report = parse_snp_report(evidence.report)
    endorsement = verify_chain(evidence.endorsements, roots=roots, now=now)
    _check_signature(report, endorsement)
    _check_chip(report, endorsement)
    return report, endorsement.product


def _check_signature(report: SnpReport, endorsement: Endorsement) -> None:
    signature = encode_dss_signature(report.signature_r, report.signature_s)
    try:
        endorsement.public_key.verify(signature, report.signed, ec.ECDSA(SHA384()))
    except InvalidSignature as error:
        raise EvidenceRefusedError(
            "the SEV-SNP report is not signed by the key in its certificates"
        ) from error


def _check_chip(report: SnpReport, endorsement: Endorsement) -> None:
    if report.signing_key is not endorsement.kind:
        raise EvidenceRefusedError(
            f"the SEV-SNP report says that the {report.signing_key.name} signed it; its "
            f"certificate is of a {endorsement.kind.name}"
        )
    if report.reported_tcb != endorsement.tcb:
        raise EvidenceRefusedError(
            f"the SEV-SNP report's firmware ({report.reported_tcb}) is not the one in the "
            f"certificate ({endorsement.tcb})"
        )
    if endorsement.kind is SigningKey.VCEK and report.chip_id != endorsement.hardware_id:
        raise EvidenceRefusedError("the SEV-SNP report is from another chip than its certificate's")


def check_guest(report: SnpReport, policy: SnpPolicy) -> None:
    """Judge a guest whose report is genuine.

    Raises:
        EvidenceRefusedError: debugging is on, or the policy does not accept it.
    """
    if report.is_debuggable:
        raise EvidenceRefusedError(
            "the SEV-SNP guest runs with debugging on, so its host can read its memory"
        )
    if report.measurement not in policy.measurements:
        raise EvidenceRefusedError(
            f"the SEV-SNP guest measures {report.measurement}, which the policy does not accept"
        )
    for name, tcb in (
        ("reported", report.reported_tcb),
        ("committed", report.committed_tcb),
        ("launch", report.launch_tcb),
    ):
        if not tcb.covers(policy.minimum_tcb):
            raise EvidenceRefusedError(
                f"the SEV-SNP platform's {name} firmware ({tcb}) is older than the policy's "
                f"minimum ({policy.minimum_tcb})"
            )
    if report.vmpl > policy.maximum_vmpl:
        raise EvidenceRefusedError(
            f"the SEV-SNP report was asked for at privilege level {report.vmpl}; the policy "
            f"accepts up to {policy.maximum_vmpl}"
        )
    if report.allows_smt and not policy.allow_smt:
        raise EvidenceRefusedError("the SEV-SNP guest may share a core; the policy forbids it")
    if report.allows_migration and not policy.allow_migration_agent:
        raise EvidenceRefusedError("the SEV-SNP guest may be migrated; the policy forbids it")
