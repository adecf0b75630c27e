"""What evidence is bound to, what a policy may say, and evidence that is SIMULATED."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.attestation.binding import Binding
from matl_common.attestation.evidence import (
    MAX_ENDORSEMENTS_BYTES,
    MAX_REPORT_BYTES,
    EvidenceRefusedError,
    Technology,
    parse_evidence,
)
from matl_common.attestation.policy import Policy, SnpPolicy, Tcb, load_policy
from matl_common.attestation.simulated import MEASUREMENT, Simulation, simulate
from matl_common.attestation.snp_report import SIGNED_BYTES
from matl_common.attestation.verifier import report_digest, verify_evidence
from matl_common.errors import ConfigurationError, InvalidInputError, MatlError
from matl_common.ids import Digest

pytestmark = pytest.mark.attestation

NOW = datetime(2026, 11, 28, tzinfo=UTC)
BINDING = Binding(b"a key", bytes(range(32)), "dr-study", Digest("ab" * 32))
SNP = SnpPolicy(measurements=(MEASUREMENT,), minimum_tcb=Tcb())
DEVELOPMENT = Policy(allow_simulated=True, sev_snp=SNP)

P384_ORDER = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffff"
    "c7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)
KNOWN = (
    "5ec7983c2cded9f8fee86623bc579afcff8225adf5a8c989b11823d2637bd160"
    "53c5744a032e3d6e4734173091e0f984320f9a7b68e8a5b6a8ab42cb39bdba5e"
)


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return simulate(NOW)


def test_report_data_is_known_for_known_fields() -> None:
    # printf 'fl-ratls-v1'; then each field after its length in 4 bytes; sha512sum
    assert BINDING.report_data.hex() == KNOWN


def test_every_field_of_the_binding_counts() -> None:
    others = (
        replace(BINDING, tls_spki=b"b key"),
        replace(BINDING, nonce=bytes(32)),
        replace(BINDING, federation_id="dr-studz"),
        replace(BINDING, config_digest=Digest("ac" * 32)),
    )
    assert len({each.report_data for each in (BINDING, *others)}) == 5


@given(st.binary(max_size=40), st.binary(min_size=1, max_size=8))
def test_bytes_cannot_move_from_one_field_into_the_next(key: bytes, moved: bytes) -> None:
    nonce = moved.ljust(32, b"x")
    # Joined without lengths, both would be the same bytes.
    longer = Binding(key + nonce[:4], nonce[4:] + b"dr-s", "tudy", BINDING.config_digest)
    assert longer.report_data != replace(BINDING, tls_spki=key, nonce=nonce).report_data


def test_a_nonce_of_another_length_is_refused() -> None:
    for length in (0, 31, 33):
        with pytest.raises(InvalidInputError, match="the nonce has"):
            _ = replace(BINDING, nonce=bytes(length)).report_data


def test_simulated_evidence_is_accepted_only_where_the_policy_asks_for_it(
    simulation: Simulation,
) -> None:
    evidence = simulation.evidence(BINDING.report_data)
    verdict = verify_evidence(evidence, policy=DEVELOPMENT, binding=BINDING, now=NOW)
    assert verdict.simulated
    assert str(verdict).startswith("SIMULATED, proves nothing: SIMULATED ")
    with pytest.raises(EvidenceRefusedError, match="is SIMULATED: software signed it"):
        verify_evidence(evidence, policy=Policy(sev_snp=SNP), binding=BINDING, now=NOW)


def test_another_signature_that_holds_gives_the_same_report_no_other_name(
    simulation: Simulation,
) -> None:
    evidence = simulation.evidence(BINDING.report_data)
    at = slice(SIGNED_BYTES + 72, SIGNED_BYTES + 144)
    twin = bytearray(evidence.report)
    twin[at] = (P384_ORDER - int.from_bytes(twin[at], "little")).to_bytes(72, "little")
    assert bytes(twin) != evidence.report
    first, second = (
        verify_evidence(
            replace(evidence, report=report), policy=DEVELOPMENT, binding=BINDING, now=NOW
        )
        for report in (evidence.report, bytes(twin))
    )
    assert first.report_digest == second.report_digest == report_digest(evidence)
    other = simulation.evidence(replace(BINDING, nonce=bytes(32)).report_data)
    assert report_digest(other) != first.report_digest


def test_simulated_evidence_does_not_pass_for_genuine(simulation: Simulation) -> None:
    evidence = simulation.evidence(BINDING.report_data)
    for technology in (Technology.SEV_SNP, Technology.TDX):
        renamed = replace(evidence, technology=technology)
        with pytest.raises(MatlError):
            verify_evidence(renamed, policy=DEVELOPMENT, binding=BINDING, now=NOW)


def test_evidence_about_something_else_is_refused(simulation: Simulation) -> None:
    evidence = simulation.evidence(BINDING.report_data)
    for asked in (
        replace(BINDING, tls_spki=b"the key of somebody in between"),
        replace(BINDING, nonce=bytes(32)),
        replace(BINDING, federation_id="another"),
        replace(BINDING, config_digest=Digest("00" * 32)),
    ):
        with pytest.raises(EvidenceRefusedError, match="about another TLS key, nonce"):
            verify_evidence(evidence, policy=DEVELOPMENT, binding=asked, now=NOW)


def test_simulated_evidence_is_judged_like_genuine_evidence(simulation: Simulation) -> None:
    data = BINDING.report_data
    for evidence, now, why in (
        (simulation.evidence(data, policy=0xB0000), NOW, "debugging on"),
        (simulation.evidence(data, measurement="00" * 48), NOW, "policy does not accept"),
        (simulation.evidence(data), NOW + timedelta(days=400), "is valid from"),
        (replace(simulate(NOW).evidence(data), endorsements=simulation.certificates), NOW, "key"),
    ):
        with pytest.raises(EvidenceRefusedError, match=why):
            verify_evidence(evidence, policy=DEVELOPMENT, binding=BINDING, now=now)


def test_a_policy_may_name_the_configurations_it_accepts(simulation: Simulation) -> None:
    evidence = simulation.evidence(BINDING.report_data)
    for digest, is_accepted in (("ab" * 32, True), ("ac" * 32, False)):
        policy = DEVELOPMENT.model_copy(update={"config_digests": (digest,)})
        if is_accepted:
            verify_evidence(evidence, policy=policy, binding=BINDING, now=NOW)
            continue
        with pytest.raises(EvidenceRefusedError, match="runs with configuration"):
            verify_evidence(evidence, policy=policy, binding=BINDING, now=NOW)


def test_a_technology_without_a_section_is_not_accepted(simulation: Simulation) -> None:
    policy = Policy.model_validate({"tdx": {"measurements": [{"mr_td": "00" * 48}]}}, strict=False)
    evidence = replace(simulation.evidence(bytes(64)), technology=Technology.SEV_SNP)
    with pytest.raises(EvidenceRefusedError, match="accepts no AMD SEV-SNP guest"):
        verify_evidence(evidence, policy=policy, binding=BINDING, now=NOW)
    tdx = replace(evidence, technology=Technology.TDX)
    with pytest.raises(EvidenceRefusedError, match="accepts no Intel TDX guest"):
        verify_evidence(tdx, policy=DEVELOPMENT, binding=BINDING, now=NOW)


def test_a_policy_is_read_from_a_file_and_named_by_its_meaning(tmp_path: Path) -> None:
    path = tmp_path / "attestation.toml"
    path.write_text(
        f'# a comment\n[sev_snp]\nmeasurements = ["{MEASUREMENT}"]\n'
        "minimum_tcb = { snp = 8, microcode = 115 }\n"
    )
    policy = load_policy(path)
    assert policy.technologies == (Technology.SEV_SNP,)
    assert policy.sev_snp is not None
    assert policy.sev_snp.minimum_tcb == Tcb(snp=8, microcode=115)
    path.write_text(path.read_text().replace("# a comment", "# another"))
    assert load_policy(path).digest == policy.digest
    path.write_text(path.read_text().replace("115", "116"))
    assert load_policy(path).digest != policy.digest


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "accepts nothing"),
        ("allow_simulated = true", "accepts nothing"),
        ("allow_debug = true", "allow_debug: no such key"),
        ('[sev_snp]\nmeasurements = ["ab"]\nminimum_tcb = {}', "96 characters"),
        (f'[sev_snp]\nmeasurements = ["{"A" * 96}"]\nminimum_tcb = {{}}', "lower-case"),
        (f'[sev_snp]\nmeasurements = ["{"a" * 96}"]', "minimum_tcb"),
        (f'config_digests = ["x"]\n[tdx]\nmeasurements = [{{ mr_td = "{"a" * 96}" }}]', "64"),
        (
            f'allow_simulated = true\n[tdx]\nmeasurements = [{{ mr_td = "{"a" * 96}" }}]',
            "needs a \\[sev_snp\\]",
        ),
    ],
)
def test_a_policy_that_does_not_work_is_refused(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "attestation.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=why):
        load_policy(path)


def test_evidence_from_outside_is_bounded_and_of_a_known_kind() -> None:
    parse_evidence("sev-snp", bytes(MAX_REPORT_BYTES), bytes(MAX_ENDORSEMENTS_BYTES))
    for technology, report, endorsements in (
        ("sgx", b"", b""),
        ("simulated", b"", b""),
        ("sev-snp", bytes(MAX_REPORT_BYTES + 1), b""),
        ("tdx", b"", bytes(MAX_ENDORSEMENTS_BYTES + 1)),
    ):
        with pytest.raises(InvalidInputError):
            parse_evidence(technology, report, endorsements)


@given(st.binary(max_size=1300), st.binary(max_size=300), st.sampled_from(Technology))
def test_arbitrary_evidence_is_only_ever_refused(
    report: bytes, endorsements: bytes, technology: Technology
) -> None:
    evidence = parse_evidence(technology.value, report, endorsements)
    with pytest.raises(MatlError):
        verify_evidence(evidence, policy=DEVELOPMENT, binding=BINDING, now=NOW)


def test_each_simulation_has_keys_of_its_own(simulation: Simulation) -> None:
    others = [simulate(NOW).certificates for _ in range(2)]
    for one, other in itertools.combinations((simulation.certificates, *others), 2):
        assert one != other
