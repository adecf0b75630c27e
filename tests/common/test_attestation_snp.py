"""AMD SEV-SNP reports: genuine ones from others' machines, and simulated ones from ours."""

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from hypothesis import given, settings
from hypothesis import strategies as st

from matl_common.attestation.binding import tls_spki
from matl_common.attestation.evidence import Evidence, EvidenceRefusedError, Technology
from matl_common.attestation.policy import SnpPolicy, Tcb
from matl_common.attestation.simulated import PRODUCT, Simulation, simulate
from matl_common.attestation.snp import check_guest, read_verified_report
from matl_common.attestation.snp_chain import AMD_ROOTS, verify_chain
from matl_common.attestation.snp_report import SigningKey, parse_snp_report
from matl_common.errors import InvalidInputError, MatlError
from tests.common.attestation_vectors import (
    VECTORS,
    ders_of,
    google_evidence,
    needs_vectors,
    pem_of,
    virtee_evidence,
)

pytestmark = pytest.mark.attestation

NOW = datetime(2026, 11, 28, tzinfo=UTC)
VIRTEE_MEASUREMENT = (
    "7a1e5c266c0108dbc9bb94fa926951320940915d0aafb42464bd88b579ea158d"
    "3e1a0dc39b2c60bd95b9c480cd81841f"
)
VIRTEE_TCB = Tcb(bootloader=3, tee=0, snp=8, microcode=115)
POLICY = SnpPolicy(measurements=(VIRTEE_MEASUREMENT,), minimum_tcb=VIRTEE_TCB)


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return simulate(NOW)


@pytest.fixture(autouse=True)
def _serial_number_zero() -> Iterator[None]:
    """Let the tests themselves parse a VCEK, whose serial number is 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        yield


@needs_vectors
@pytest.mark.vectors
def test_a_genuine_report_verifies_up_to_amds_root() -> None:
    report, product = read_verified_report(virtee_evidence(), now=NOW)
    assert product == "Milan"
    assert report.measurement == VIRTEE_MEASUREMENT
    assert report.signing_key is SigningKey.VCEK
    assert report.reported_tcb == VIRTEE_TCB
    assert not report.is_debuggable
    check_guest(report, POLICY)


@needs_vectors
@pytest.mark.vectors
def test_a_genuine_guest_with_debugging_on_is_refused_for_that() -> None:
    report, _ = read_verified_report(google_evidence(), now=NOW)
    lenient = SnpPolicy(measurements=(report.measurement,), minimum_tcb=Tcb())
    with pytest.raises(EvidenceRefusedError, match="runs with debugging on"):
        check_guest(report, lenient)
    check_guest(replace(report, is_debuggable=False), lenient)


@needs_vectors
@pytest.mark.vectors
def test_no_byte_of_a_genuine_report_can_be_flipped() -> None:
    evidence = virtee_evidence()
    for index in range(len(evidence.report)):
        with pytest.raises((EvidenceRefusedError, InvalidInputError)):
            read_verified_report(
                replace(evidence, report=_flipped(evidence.report, index)), now=NOW
            )


@needs_vectors
@pytest.mark.vectors
@pytest.mark.parametrize("number", [0, 1, 2])
def test_no_byte_of_a_genuine_certificate_can_be_flipped(number: int) -> None:
    evidence = virtee_evidence()
    ders = ders_of(evidence.endorsements)
    for index in range(len(ders[number])):
        damaged = [*ders]
        damaged[number] = _flipped(ders[number], index)
        pem = b"".join(map(pem_of, damaged))
        with pytest.raises((EvidenceRefusedError, InvalidInputError)):
            read_verified_report(replace(evidence, endorsements=pem), now=NOW)


@needs_vectors
@pytest.mark.vectors
@pytest.mark.parametrize("years", [-10, 10, 40])
def test_certificates_are_refused_before_and_after_their_time(years: int) -> None:
    with pytest.raises(EvidenceRefusedError, match="is valid from"):
        read_verified_report(virtee_evidence(), now=NOW + timedelta(days=365 * years))


@needs_vectors
@pytest.mark.vectors
def test_a_report_with_the_certificate_of_another_chip_is_refused() -> None:
    crossed = replace(virtee_evidence(), endorsements=google_evidence().endorsements)
    with pytest.raises(EvidenceRefusedError, match="not signed by the key"):
        read_verified_report(crossed, now=NOW)


@needs_vectors
@pytest.mark.vectors
def test_certificates_in_another_order_or_number_are_refused() -> None:
    evidence = virtee_evidence()
    vcek, ask, ark = (pem_of(der) for der in ders_of(evidence.endorsements))
    for wrong in (vcek + ark + ask, ask + vcek + ark, vcek + ask, vcek + ask + ark + ark, b""):
        with pytest.raises((EvidenceRefusedError, InvalidInputError)):
            read_verified_report(replace(evidence, endorsements=wrong), now=NOW)


@needs_vectors
@pytest.mark.vectors
def test_the_authority_of_lent_keys_does_not_certify_chips() -> None:
    evidence = virtee_evidence()
    vcek, _, ark = (pem_of(der) for der in ders_of(evidence.endorsements))
    asvk = pem_of(ders_of(_read("milanvlek.testcer"))[0])
    with pytest.raises(EvidenceRefusedError, match="is not signed by"):
        read_verified_report(replace(evidence, endorsements=vcek + asvk + ark), now=NOW)


def test_a_simulated_root_is_not_one_of_amds(simulation: Simulation) -> None:
    evidence = replace(simulation.evidence(bytes(64)), technology=Technology.SEV_SNP)
    with pytest.raises(EvidenceRefusedError, match=r"not a known one \(Genoa, Milan\)"):
        read_verified_report(evidence, now=NOW)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"measurements": ("00" * 48,)}, "which the policy does not accept"),
        ({"minimum_tcb": Tcb(microcode=116)}, "older than the policy's minimum"),
        ({"minimum_tcb": Tcb(bootloader=4)}, "older than the policy's minimum"),
    ],
)
@needs_vectors
def test_a_guest_that_the_policy_does_not_accept_is_refused(
    change: dict[str, object], why: str
) -> None:
    report = parse_snp_report(virtee_evidence().report)
    with pytest.raises(EvidenceRefusedError, match=why):
        check_guest(report, POLICY.model_copy(update=change))


@needs_vectors
def test_every_firmware_version_must_reach_the_minimum() -> None:
    report = parse_snp_report(virtee_evidence().report)
    older = Tcb(bootloader=2, snp=8, microcode=115)
    for name, changed in (
        ("reported", replace(report, reported_tcb=older)),
        ("committed", replace(report, committed_tcb=older)),
        ("launch", replace(report, launch_tcb=older)),
    ):
        with pytest.raises(EvidenceRefusedError, match=name):
            check_guest(changed, POLICY)


@needs_vectors
def test_privilege_level_neighbours_and_migration_are_the_policys_to_allow() -> None:
    report = parse_snp_report(virtee_evidence().report)
    for change, policy, why in (
        ({"vmpl": 1}, {"maximum_vmpl": 1}, "privilege level 1"),
        ({"allows_migration": True}, {"allow_migration_agent": True}, "may be migrated"),
    ):
        changed = replace(report, **change)
        with pytest.raises(EvidenceRefusedError, match=why):
            check_guest(changed, POLICY)
        check_guest(changed, POLICY.model_copy(update=policy))
    with pytest.raises(EvidenceRefusedError, match="may share a core"):
        check_guest(report, POLICY.model_copy(update={"allow_smt": False}))


# A simulated chip's makers can be varied, which AMD cannot: every check of the chain for itself.


def test_what_the_certificate_says_of_the_chip_must_be_in_the_report(
    simulation: Simulation,
) -> None:
    for offset, why in ((0x180, "firmware"), (0x1A0, "another chip"), (0x48, "says that the VLEK")):
        evidence = _with_signed_change(simulation, offset, 4 if offset == 0x48 else 9)
        with pytest.raises(EvidenceRefusedError, match=why):
            read_verified_report(evidence, roots=_roots(evidence), now=NOW)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("ask_without_ca", "not one of an authority"),
        ("ask_without_cert_sign", "not one of an authority"),
        ("ask_of_another_product", "is not a signing key of"),
        ("leaf_of_another_name", "is not a signing key of"),
        ("leaf_on_p256", "does not hold a P-384 key"),
        ("leaf_is_authority", "says that it is an authority"),
        ("leaf_of_another_product", "is not one of"),
        ("leaf_with_unknown_critical", "which is not understood"),
        ("leaf_without_chip", "does not name its chip"),
    ],
)
def test_a_chain_with_one_fault_is_refused_for_it(fault: str, why: str) -> None:
    sound = _Makers()
    endorsement = verify_chain(sound.chain(), roots=sound.roots, now=NOW)
    assert (endorsement.product, endorsement.tcb.microcode) == (PRODUCT, 200)
    with pytest.raises((EvidenceRefusedError, InvalidInputError), match=why):
        verify_chain(sound.chain(fault), roots=sound.roots, now=NOW)


@given(st.binary(max_size=1400))
def test_arbitrary_bytes_as_a_report_are_only_ever_refused(data: bytes) -> None:
    with pytest.raises(MatlError):
        parse_snp_report(data)


@given(
    st.binary(min_size=1184, max_size=1184),
    st.integers(2, 5),
    st.sampled_from([0x30000, 0xB0000, 0]),
)
def test_a_report_of_the_right_length_is_parsed_or_refused(
    noise: bytes, version: int, policy: int
) -> None:
    data = bytearray(noise)
    data[:16] = version.to_bytes(8, "little") + policy.to_bytes(8, "little")
    data[0x34:0x38] = (1).to_bytes(4, "little")
    try:
        parse_snp_report(bytes(data))
    except InvalidInputError:
        return


@settings(max_examples=30)
@given(st.binary(max_size=3000))
def test_arbitrary_bytes_as_certificates_are_only_ever_refused(data: bytes) -> None:
    for pem in (data, pem_of(data) * 3):
        with pytest.raises(MatlError):
            verify_chain(pem, roots=AMD_ROOTS, now=NOW)


def _read(name: str) -> bytes:
    return (VECTORS / "snp" / name).read_bytes()


def _flipped(data: bytes, index: int) -> bytes:
    return data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]


def _roots(evidence: Evidence) -> dict[str, str]:
    root = x509.load_pem_x509_certificates(evidence.endorsements)[-1]
    return {hashlib.sha256(tls_spki(root)).hexdigest(): PRODUCT}


def _with_signed_change(simulation: Simulation, offset: int, value: int) -> Evidence:
    """A report with one byte changed before it was signed."""
    evidence = simulation.evidence(bytes(64))
    report = bytearray(evidence.report)
    report[offset] = value
    signature = simulation.private_key.sign(bytes(report[:0x2A0]), ec.ECDSA(SHA384()))
    scalars = (each.to_bytes(72, "little") for each in decode_dss_signature(signature))
    report[0x2A0 : 0x2A0 + 144] = b"".join(scalars)
    return replace(evidence, report=bytes(report))


class _Makers:
    """Certificates like AMD's, of which any can be given one fault."""

    def __init__(self) -> None:
        self.root_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.ask_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @property
    def roots(self) -> dict[str, str]:
        return _roots(Evidence(Technology.SIMULATED, b"", self.chain()))

    def chain(self, fault: str = "") -> bytes:
        product = "Other" if fault == "ask_of_another_product" else PRODUCT
        ask_name = f"SEV-{product}"
        root = self._certificate("ARK", self.root_key.public_key(), "ARK", self.root_key)
        ask = self._certificate(
            ask_name,
            self.ask_key.public_key(),
            "ARK",
            self.root_key,
            ca=fault != "ask_without_ca",
            cert_sign=fault != "ask_without_cert_sign",
        )
        curve = ec.SECP256R1() if fault == "leaf_on_p256" else ec.SECP384R1()
        leaf = self._certificate(
            "SEV-XCEK" if fault == "leaf_of_another_name" else "SEV-VCEK",
            ec.generate_private_key(curve).public_key(),
            ask_name,
            self.ask_key,
            ca=True if fault == "leaf_is_authority" else None,
            extra=_leaf_extensions(fault),
        )
        return b"".join(each.public_bytes(Encoding.PEM) for each in (leaf, ask, root))

    def _certificate(
        self,
        name: str,
        key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
        issuer: str,
        issuer_key: rsa.RSAPrivateKey,
        *,
        ca: bool | None = True,
        cert_sign: bool = True,
        extra: tuple[tuple[str, bytes, bool], ...] = (),
    ) -> x509.Certificate:
        def named(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

        builder = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named(issuer))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=1))
        )
        if ca is not None:
            usage = x509.KeyUsage(True, False, False, False, False, cert_sign, False, False, False)
            builder = builder.add_extension(
                x509.BasicConstraints(ca=ca, path_length=None), critical=True
            ).add_extension(usage, critical=True)
        for oid, value, critical in extra:
            builder = builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=critical
            )
        pss = padding.PSS(mgf=padding.MGF1(SHA384()), salt_length=48)
        return builder.sign(issuer_key, SHA384(), rsa_padding=pss)


def _leaf_extensions(fault: str) -> tuple[tuple[str, bytes, bool], ...]:
    amd = "1.3.6.1.4.1.3704.1."
    product = b"Milan-B0" if fault == "leaf_of_another_product" else PRODUCT.encode()
    chip = b"" if fault == "leaf_without_chip" else bytes(64)
    return (
        (amd + "2", bytes([0x16, len(product)]) + product, False),
        *((amd + oid, bytes([2, 1, 1]), False) for oid in ("3.1", "3.2", "3.3")),
        (amd + "3.8", bytes([2, 2, 0, 200]), False),
        (amd + "4", chip, fault == "leaf_with_unknown_critical"),
    )
