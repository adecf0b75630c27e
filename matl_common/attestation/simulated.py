"""SIMULATED attestation: reports in SEV-SNP's format, signed by software with a root of its own.

It lets everything around attestation be developed and tested on any machine. It proves nothing:
whoever can run this module can make such a report about anything. So a verdict on one carries
``simulated``, and a policy has to ask for it.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

from matl_common.attestation.binding import Binding, tls_spki
from matl_common.attestation.evidence import Evidence, EvidenceRefusedError, Technology, Verdict
from matl_common.attestation.policy import Policy, Tcb
from matl_common.attestation.snp import verify_snp
from matl_common.attestation.snp_report import REPORT_BYTES, SIGNED_BYTES
from matl_common.errors import InvalidInputError
from matl_common.identity.certificates import MALFORMED

PRODUCT = "SIMULATED"
MEASUREMENT = hashlib.sha384(b"SIMULATED: no program was measured").hexdigest()
"""The one value that simulated reports have as measurement."""
TCB = Tcb(bootloader=1, tee=0, snp=1, microcode=1)

_VALID = timedelta(days=365)
_HARDWARE_ID = b"SIMULATED".ljust(64, b"\0")
_DEFAULT_POLICY = 0x30000
_AMD = "1.3.6.1.4.1.3704.1."


@dataclass(frozen=True, slots=True)
class Simulation:
    """A made-up chip with its made-up makers. Every key is new."""

    private_key: ec.EllipticCurvePrivateKey
    certificates: bytes
    """VCEK, ASK and ARK in PEM."""

    def evidence(
        self, report_data: bytes, *, measurement: str = MEASUREMENT, policy: int = _DEFAULT_POLICY
    ) -> Evidence:
        """A report about these 64 bytes.

        Args:
            report_data: what the report is about.
            measurement: of the guest; hexadecimal.
            policy: the guest's, as GUEST_POLICY of the SNP ABI.
        """
        report = bytearray(REPORT_BYTES)
        tcb = bytes([TCB.bootloader, TCB.tee, 0, 0, 0, 0, TCB.snp, TCB.microcode])
        struct.pack_into("<I4xQ", report, 0, 2, policy)
        struct.pack_into("<I", report, 0x34, 1)
        for offset, field in (
            (0x38, tcb),
            (0x50, report_data),
            (0x90, bytes.fromhex(measurement)),
            (0x180, tcb),
            (0x1A0, _HARDWARE_ID),
            (0x1E0, tcb),
            (0x1F0, tcb),
        ):
            report[offset : offset + len(field)] = field
        signature = self.private_key.sign(bytes(report[:SIGNED_BYTES]), ec.ECDSA(SHA384()))
        r, s = decode_dss_signature(signature)
        report[SIGNED_BYTES : SIGNED_BYTES + 144] = r.to_bytes(72, "little") + s.to_bytes(
            72, "little"
        )
        return Evidence(Technology.SIMULATED, bytes(report), self.certificates)


def simulate(now: datetime) -> Simulation:
    """Make up a chip, valid for a year around ``now``."""
    root_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    intermediate_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    leaf_key = ec.generate_private_key(ec.SECP384R1())
    root_name, intermediate_name = f"ARK-{PRODUCT}", f"SEV-{PRODUCT}"
    root = _authority(root_name, root_key, root_name, root_key, now)
    intermediate = _authority(intermediate_name, intermediate_key, root_name, root_key, now)
    leaf = _unsigned("SEV-VCEK", leaf_key.public_key(), intermediate_name, now)
    for oid, value in _leaf_extensions():
        leaf = leaf.add_extension(
            x509.UnrecognizedExtension(ObjectIdentifier(_AMD + oid), value), critical=False
        )
    chain = (_sign(leaf, intermediate_key), intermediate, root)
    pem = b"".join(each.public_bytes(Encoding.PEM) for each in chain)
    return Simulation(leaf_key, pem)


def verify_simulated(
    evidence: Evidence, *, policy: Policy, binding: Binding, now: datetime
) -> Verdict:
    """Check a simulated report as a genuine one, but for whose root it is.

    Raises:
        InvalidInputError: report or certificates are malformed.
        EvidenceRefusedError: the policy does not ask for simulated evidence, or it fails a check.
    """
    if not policy.allow_simulated:
        raise EvidenceRefusedError(
            "the evidence is SIMULATED: software signed it, and it proves nothing; a policy for "
            "development accepts it with allow_simulated = true"
        )
    try:
        root = x509.load_pem_x509_certificates(evidence.endorsements)[-1]
        fingerprint = hashlib.sha256(tls_spki(root)).hexdigest()
    except MALFORMED as error:
        raise InvalidInputError("the SIMULATED report's certificates are malformed") from error
    # Anybody's root: there is nobody whose word this could be.
    return verify_snp(
        evidence, policy=policy, binding=binding, now=now, roots={fingerprint: PRODUCT}
    )


def _leaf_extensions() -> tuple[tuple[str, bytes], ...]:
    name = PRODUCT.encode()
    return (
        ("2", bytes([0x16, len(name)]) + name),
        ("3.1", bytes([2, 1, TCB.bootloader])),
        ("3.2", bytes([2, 1, TCB.tee])),
        ("3.3", bytes([2, 1, TCB.snp])),
        ("3.8", bytes([2, 1, TCB.microcode])),
        ("4", _HARDWARE_ID),
    )


def _authority(
    name: str, key: rsa.RSAPrivateKey, issuer: str, issuer_key: rsa.RSAPrivateKey, now: datetime
) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=False,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    unsigned = (
        _unsigned(name, key.public_key(), issuer, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
    )
    return _sign(unsigned, issuer_key)


def _unsigned(
    name: str,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    issuer: str,
    now: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID)
        .not_valid_after(now + _VALID)
    )


def _sign(unsigned: x509.CertificateBuilder, key: rsa.RSAPrivateKey) -> x509.Certificate:
    pss = padding.PSS(mgf=padding.MGF1(SHA384()), salt_length=48)
    return unsigned.sign(key, SHA384(), rsa_padding=pss)


def _name(text: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SIMULATED, not AMD"),
            x509.NameAttribute(NameOID.COMMON_NAME, text),
        ]
    )
