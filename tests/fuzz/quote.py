"""Evidence of attestation: reports and quotes, with the certificates or collateral beside them.

An input is one byte for the technology, four for the report's length, the report, and the rest.
"""

from __future__ import annotations

from datetime import UTC, datetime

from matl_common.attestation.binding import Binding
from matl_common.attestation.evidence import Evidence, Technology, parse_evidence
from matl_common.attestation.policy import Policy, SnpPolicy, Tcb
from matl_common.attestation.simulated import MEASUREMENT, simulate
from matl_common.attestation.tdx import read_verified_quote
from matl_common.attestation.verifier import verify_evidence
from matl_common.ids import Digest
from tests.fuzz.target import Target

NOW = datetime(2026, 11, 28, tzinfo=UTC)
BINDING = Binding(b"a key", bytes(32), "dr-study", Digest("ab" * 32))
POLICY = Policy(
    allow_simulated=True, sev_snp=SnpPolicy(measurements=(MEASUREMENT,), minimum_tcb=Tcb())
)
KINDS = tuple(Technology)


def _input(evidence: Evidence) -> bytes:
    kind = KINDS.index(evidence.technology).to_bytes(1, "big")
    length = len(evidence.report).to_bytes(4, "big")
    return kind + length + evidence.report + evidence.endorsements


def _run(data: bytes) -> None:
    kind = KINDS[data[0] % len(KINDS)] if data else "none"
    end = 5 + int.from_bytes(data[1:5], "big")
    evidence = parse_evidence(kind, data[5:end], data[end:])
    if evidence.technology is Technology.TDX:
        read_verified_quote(evidence, now=NOW)
    else:
        verify_evidence(evidence, policy=POLICY, binding=BINDING, now=NOW)


TARGET = Target(run=_run, seeds=[_input(simulate(NOW).evidence(BINDING.report_data))])
