"""Intel TDX quotes: genuine ones from others' machines, at the time their collateral was valid."""

import struct
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.attestation.binding import Binding
from matl_common.attestation.evidence import Evidence, EvidenceRefusedError, Technology
from matl_common.attestation.policy import Policy, TdMeasurements, TdxPolicy
from matl_common.attestation.tdx import Td, check_td, read_verified_quote
from matl_common.attestation.tdx_quote import parse_quote_frame, without_padding
from matl_common.attestation.verifier import report_digest, verify_evidence
from matl_common.errors import ConfigurationError, InvalidInputError, MatlError
from matl_common.ids import Digest, digest_of
from tests.common.attestation_vectors import VECTORS, needs_vectors, tdx_evidence

pytestmark = pytest.mark.attestation

COLLATERAL_VALID = datetime(2025, 6, 25, tzinfo=UTC)
TD = Td(
    attributes=1 << 28,
    xfam=0x602E7,
    mr_td="ab" * 48,
    rtmrs=("01" * 48, "02" * 48, "03" * 48, "04" * 48),
    report_data=bytes(64),
    mr_seam="5e" * 48,
    mr_signer_seam="00" * 48,
    seam_attributes=0,
    service_td="00" * 48,
    status="UpToDate",
    advisories=(),
)
POLICY = TdxPolicy(measurements=(TdMeasurements(mr_td=TD.mr_td, rtmr1=TD.rtmrs[1]),))
EVERYTHING = POLICY.model_copy(
    update={"allowed_attributes": ("PKS", "KL", "PERFMON"), "allowed_xfam": (1 << 63) - 1}
)
"""A policy that allows whatever one can allow."""
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
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
    with pytest.raises(EvidenceRefusedError, match="runs with debugging on"):
        check_td(replace(TD, attributes=TD.attributes | 1 << bit), EVERYTHING)


@pytest.mark.parametrize("bit", [each for each in range(8, 64) if each != 28])
def test_an_attribute_is_accepted_only_where_the_policy_names_it(bit: int) -> None:
    td = replace(TD, attributes=TD.attributes | 1 << bit)
    with pytest.raises(EvidenceRefusedError, match=f"does not allow {1 << bit:#x} of them"):
        check_td(td, POLICY)
    name = {30: "PKS", 31: "KL", 63: "PERFMON"}.get(bit)
    if name is None:
        with pytest.raises(EvidenceRefusedError, match=f"does not allow {1 << bit:#x} of them"):
            check_td(td, EVERYTHING)
    else:
        check_td(td, POLICY.model_copy(update={"allowed_attributes": (name,)}))


def test_a_td_that_its_host_can_raise_exceptions_in_is_refused() -> None:
    with pytest.raises(EvidenceRefusedError, match="without SEPT_VE_DISABLE"):
        check_td(replace(TD, attributes=0), EVERYTHING)


@pytest.mark.parametrize("bit", range(64))
def test_the_features_of_the_processor_that_a_td_may_have_are_the_policys(bit: int) -> None:
    td = replace(TD, xfam=0x3 | 1 << bit)
    if bit in {0, 1, 2, 5, 6, 7, 9, 11, 12, 17, 18}:
        check_td(td, POLICY)
    else:
        with pytest.raises(EvidenceRefusedError, match=f"does not allow {1 << bit:#x} of it"):
            check_td(td, POLICY)
    if bit < 63:
        check_td(td, POLICY.model_copy(update={"allowed_xfam": 0x3 | 1 << bit}))


@pytest.mark.parametrize(
    "changes",
    [{"mr_signer_seam": "00" * 47 + "01"}, {"seam_attributes": 1}, {"seam_attributes": 1 << 63}],
)
def test_a_module_that_is_not_intels_in_production_is_always_refused(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(EvidenceRefusedError, match="not one of Intel's in production"):
        check_td(replace(TD, **changes), EVERYTHING)


def test_a_td_that_a_service_td_is_bound_to_is_always_refused() -> None:
    with pytest.raises(EvidenceRefusedError, match=r"service TD 0.*1 is bound"):
        check_td(replace(TD, service_td="00" * 47 + "01"), EVERYTHING)


def test_modules_are_intels_or_those_that_the_policy_names() -> None:
    check_td(TD, POLICY.model_copy(update={"mr_seams": ("ff" * 48, TD.mr_seam)}))
    with pytest.raises(EvidenceRefusedError, match="module measures 5e5e"):
        check_td(TD, POLICY.model_copy(update={"mr_seams": ("ff" * 48,)}))


@needs_vectors
@pytest.mark.vectors
@pytest.mark.parametrize(
    "name", ["tdx_quote", "quote_v5_sample.dat", "tdx_quote_outdated", "tdx_prod_quote_SPR_E4.dat"]
)
def test_genuine_quotes_of_both_versions_are_as_long_as_they_declare_and_no_longer(
    name: str,
) -> None:
    answered = (VECTORS / "tdx" / name).read_bytes()
    if name.startswith("tdx_prod"):
        # Somebody put text after it.
        with pytest.raises(InvalidInputError, match="ends after 4935 bytes, and something follows"):
            without_padding(answered)
        answered = answered[:4935]
    quote = without_padding(answered)
    signed = parse_quote_frame(quote).signed
    assert quote.startswith(signed)
    assert len(signed) == (632 if quote[0] == 4 else 702)
    assert without_padding(quote + bytes(100)) == quote
    for damaged in (quote + b"\0", quote + b"x", quote[:-1], quote[: len(signed)], b""):
        with pytest.raises(InvalidInputError):
            parse_quote_frame(damaged)
    for damaged in (quote + bytes(10) + b"x", quote[:-1], quote[: len(signed)], b""):
        with pytest.raises(InvalidInputError):
            without_padding(damaged)


@needs_vectors
@pytest.mark.vectors
def test_what_no_signature_covers_can_neither_be_added_nor_name_a_quote_anew() -> None:
    evidence = tdx_evidence()
    quote, signed = evidence.report, parse_quote_frame(evidence.report).signed
    for tail in (b"\0", bytes(70), b"x"):
        with pytest.raises(InvalidInputError, match="declares 4936"):
            read_verified_quote(replace(evidence, report=quote + tail), now=COLLATERAL_VALID)
    # Longer within the signature's data, after the certificates, all outer lengths corrected.
    grown = bytearray(quote + b"x")
    for at, form in ((632, "<I"), (632 + 4 + 128 + 2, "<I")):
        (length,) = struct.unpack_from(form, grown, at)
        struct.pack_into(form, grown, at, length + 1)
    with pytest.raises(InvalidInputError, match="not as long as declared"):
        read_verified_quote(replace(evidence, report=bytes(grown)), now=COLLATERAL_VALID)
    # The other signature that holds: (r, n - s).
    s = int.from_bytes(quote[668:700], "big")
    other = quote[:668] + (P256_ORDER - s).to_bytes(32, "big") + quote[700:]
    twin = replace(evidence, report=other)
    assert read_verified_quote(twin, now=COLLATERAL_VALID).status == "UpToDate"
    assert report_digest(twin) == report_digest(evidence) == digest_of(signed)


@needs_vectors
@pytest.mark.vectors
def test_a_clock_before_1970_or_beyond_all_time_is_refused_like_any_other() -> None:
    for now in (datetime(1969, 12, 31, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)):
        with pytest.raises(EvidenceRefusedError, match="does not verify"):
            read_verified_quote(tdx_evidence(), now=now)


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


@given(st.sampled_from([b"", b"\4\0", b"\5\0", b"\4\0" + bytes(630)]), st.binary(max_size=900))
def test_the_frame_of_arbitrary_bytes_is_found_or_refused(begin: bytes, rest: bytes) -> None:
    for parse in (parse_quote_frame, without_padding):
        with suppress(InvalidInputError):
            parse(begin + rest)
