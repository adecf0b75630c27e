"""Intel TDX quotes: genuine ones from others' machines, at the time their collateral was valid."""

import sys
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.attestation.binding import Binding
from matl_common.attestation.evidence import Evidence, EvidenceRefusedError, Technology
from matl_common.attestation.policy import Policy, TdMeasurements, TdxPolicy
from matl_common.attestation.tdx import Td, check_td, read_verified_quote
from matl_common.attestation.verifier import verify_evidence
from matl_common.errors import ConfigurationError, InvalidInputError, MatlError
from matl_common.ids import Digest
from tests.common.attestation_vectors import needs_vectors, tdx_evidence

pytestmark = pytest.mark.attestation

COLLATERAL_VALID = datetime(2025, 6, 25, tzinfo=UTC)
TD = Td(
    attributes=bytes.fromhex("0000001000000000"),
    mr_td="ab" * 48,
    rtmrs=("01" * 48, "02" * 48, "03" * 48, "04" * 48),
    report_data=bytes(64),
    status="UpToDate",
    advisories=(),
)
POLICY = TdxPolicy(measurements=(TdMeasurements(mr_td=TD.mr_td, rtmr1=TD.rtmrs[1]),))
BINDING = Binding(b"key", bytes(32), "dr-study", Digest("00" * 32))


@needs_vectors
@pytest.mark.vectors
def test_a_genuine_quote_verifies_up_to_intels_root() -> None:
    td = read_verified_quote(tdx_evidence(), now=COLLATERAL_VALID)
    assert td.status == "UpToDate"
    assert td.mr_td.startswith("91eb2b44d141d4ec")
    check_td(td, TdxPolicy(measurements=(TdMeasurements(mr_td=td.mr_td, rtmr0=td.rtmrs[0]),)))


@needs_vectors
@pytest.mark.vectors
def test_a_genuine_quote_about_something_else_is_refused() -> None:
    evidence = tdx_evidence()
    td = read_verified_quote(evidence, now=COLLATERAL_VALID)
    policy = Policy(tdx=TdxPolicy(measurements=(TdMeasurements(mr_td=td.mr_td),)))
    with pytest.raises(EvidenceRefusedError, match="about another TLS key, nonce"):
        verify_evidence(evidence, policy=policy, binding=BINDING, now=COLLATERAL_VALID)


@needs_vectors
@pytest.mark.vectors
@pytest.mark.parametrize("year", [2024, 2026, 2030])
def test_collateral_is_refused_before_and_after_its_time(year: int) -> None:
    with pytest.raises(EvidenceRefusedError, match="does not verify"):
        read_verified_quote(tdx_evidence(), now=COLLATERAL_VALID.replace(year=year))


@needs_vectors
@pytest.mark.vectors
def test_no_sampled_byte_of_a_genuine_quotes_signed_part_can_be_flipped() -> None:
    evidence = tdx_evidence()
    # Header and TD report, the quote's signature, the attestation key, and the report of the
    # quoting enclave with its signature.
    for index in (*range(0, 632, 3), *range(636, 1300, 7)):
        quote = evidence.report
        flipped = quote[:index] + bytes([quote[index] ^ 1]) + quote[index + 1 :]
        with pytest.raises((EvidenceRefusedError, InvalidInputError)):
            read_verified_quote(replace(evidence, report=flipped), now=COLLATERAL_VALID)


@needs_vectors
@pytest.mark.vectors
def test_tampered_collateral_is_refused() -> None:
    evidence = tdx_evidence()
    fmspc = b"B0C06F000000"
    assert fmspc in evidence.endorsements
    tampered = evidence.endorsements.replace(fmspc, b"B0C06F000001")
    with pytest.raises(EvidenceRefusedError, match="does not verify"):
        read_verified_quote(replace(evidence, endorsements=tampered), now=COLLATERAL_VALID)


@needs_vectors
@pytest.mark.vectors
def test_a_quote_of_an_sgx_enclave_is_not_one_of_a_td() -> None:
    with pytest.raises(EvidenceRefusedError, match="not one of a TD"):
        read_verified_quote(tdx_evidence("sgx_quote"), now=COLLATERAL_VALID)


@pytest.mark.parametrize("bit", range(8))
def test_a_td_with_debugging_or_profiling_on_is_refused(bit: int) -> None:
    attributes = bytes([1 << bit]) + TD.attributes[1:]
    with pytest.raises(EvidenceRefusedError, match="runs with debugging on"):
        check_td(replace(TD, attributes=attributes), POLICY)


def test_the_policy_says_which_td_and_which_status_are_accepted() -> None:
    check_td(TD, POLICY)
    for changed in (
        replace(TD, mr_td="cd" * 48),
        replace(TD, rtmrs=(TD.rtmrs[0], "ff" * 48, *TD.rtmrs[2:])),
        replace(TD, status="OutOfDate"),
    ):
        with pytest.raises(EvidenceRefusedError, match="policy accepts"):
            check_td(changed, POLICY)
    check_td(replace(TD, rtmrs=("ff" * 48, *TD.rtmrs[1:])), POLICY)
    accepting = POLICY.model_copy(update={"statuses": ("UpToDate", "OutOfDate")})
    check_td(replace(TD, status="OutOfDate"), accepting)


def test_without_dcap_qvl_the_operator_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "dcap_qvl", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'matl\[tee\]'"):
        read_verified_quote(Evidence(Technology.TDX, b"", b"{}"), now=COLLATERAL_VALID)


@given(st.binary(max_size=6000), st.binary(max_size=200))
def test_arbitrary_bytes_are_only_ever_refused(quote: bytes, collateral: bytes) -> None:
    with pytest.raises(MatlError):
        read_verified_quote(Evidence(Technology.TDX, quote, collateral), now=COLLATERAL_VALID)
