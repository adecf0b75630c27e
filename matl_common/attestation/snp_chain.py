"""The certificates behind an SEV-SNP report: VCEK or VLEK, ASK, ARK.

Everything RFC 5280 asks of a path of three is checked here, because
``verify_directly_issued_by`` compares names and signature and nothing else. AMD's revocation
lists are not consulted.

"Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification" (AMD 57230).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from matl_common.attestation.binding import tls_spki
from matl_common.attestation.evidence import EvidenceRefusedError
from matl_common.attestation.policy import Tcb
from matl_common.attestation.snp_report import SigningKey
from matl_common.errors import InvalidInputError
from matl_common.identity.certificates import MALFORMED

AMD_ROOTS: Mapping[str, str] = {
    "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9": "Milan",
    "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831": "Genoa",
}
"""SHA-256 of the SubjectPublicKeyInfo of AMD's root keys (ARK), and the product of each.

Computed from the certificates that AMD serves at kdsintf.amd.com/vcek/v1/{Milan,Genoa}/cert_chain
as virtee/sev carries them (src/certs/snp/builtin/{milan,genoa}/ark.pem at 9cf2adb); Milan's is
also the root in google/go-sev-guest's test data.
"""

_AMD = "1.3.6.1.4.1.3704.1."
_PRODUCT_NAME, _HARDWARE_ID = _AMD + "2", _AMD + "4"
_TCB = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8"}
_LEAF_NAMES = {"SEV-VCEK": SigningKey.VCEK, "SEV-VLEK": SigningKey.VLEK}
_INTERMEDIATE_NAMES = {SigningKey.VCEK: "SEV-", SigningKey.VLEK: "SEV-VLEK-"}
_HARDWARE_ID_BYTES = 64
_UNDERSTOOD = (x509.BasicConstraints, x509.KeyUsage)


@dataclass(frozen=True, slots=True)
class Endorsement:
    """The key that signs reports, and what AMD says of the chip that has it."""

    public_key: ec.EllipticCurvePublicKey
    kind: SigningKey
    product: str
    tcb: Tcb
    hardware_id: bytes
    """Of the chip; empty for a VLEK."""


def verify_chain(pem: bytes, *, roots: Mapping[str, str], now: datetime) -> Endorsement:
    """Verify three certificates, leaf first.

    Args:
        pem: the certificates.
        roots: products by SHA-256 of the root's SubjectPublicKeyInfo.
        now: when each must be valid.

    Raises:
        InvalidInputError: not three certificates, or the leaf lacks what AMD puts into it.
        EvidenceRefusedError: they are no chain to one of the roots, or not valid now.
    """
    with warnings.catch_warnings():
        # Every VCEK has the serial number 0; and a damaged name is for the signature to refuse.
        warnings.simplefilter("ignore")
        try:
            certificates = x509.load_pem_x509_certificates(pem)
            if len(certificates) != 3:
                raise InvalidInputError(
                    f"{len(certificates)} certificates came with the SEV-SNP report; 3 are needed: "
                    "VCEK or VLEK, ASK, ARK"
                )
            leaf, intermediate, root = certificates
            product = _product_of_root(root, roots)
            for certificate in certificates:
                _check_validity(certificate, now)
                _check_extensions(certificate)
            for authority in (intermediate, root):
                _check_authority(authority)
            _check_signature(root, root)
            _check_signature(intermediate, root)
            _check_signature(leaf, intermediate)
            return _endorsement(leaf, intermediate, product)
        except MALFORMED as error:
            raise InvalidInputError("the SEV-SNP report's certificates are malformed") from error


def _product_of_root(root: x509.Certificate, roots: Mapping[str, str]) -> str:
    fingerprint = hashlib.sha256(tls_spki(root)).hexdigest()
    if fingerprint not in roots:
        raise EvidenceRefusedError(
            f"the SEV-SNP report's certificates end in the root key {fingerprint}, which is not a "
            f"known one ({', '.join(sorted(roots.values()))})"
        )
    return roots[fingerprint]


def _check_validity(certificate: x509.Certificate, now: datetime) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now <= end:
        raise EvidenceRefusedError(
            f"the certificate {_common_name(certificate)} is valid from {begin} to {end}, not "
            f"at {now}"
        )


def _check_extensions(certificate: x509.Certificate) -> None:
    for extension in certificate.extensions:
        if extension.critical and not isinstance(extension.value, _UNDERSTOOD):
            raise EvidenceRefusedError(
                f"the certificate {_common_name(certificate)} has the critical extension "
                f"{extension.oid.dotted_string}, which is not understood"
            )


def _check_authority(certificate: x509.Certificate) -> None:
    extensions = certificate.extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    if not constraints.ca or not usage.key_cert_sign:
        raise EvidenceRefusedError(
            f"the certificate {_common_name(certificate)} is not one of an authority"
        )


def _check_signature(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *MALFORMED) as error:
        raise EvidenceRefusedError(
            f"the certificate {_common_name(certificate)} is not signed by {_common_name(issuer)}"
        ) from error
    # The one byte that no signature covers and the library does not look at: the unused bits of
    # the signature's BIT STRING. One certificate has one encoding.
    if not certificate.public_bytes(Encoding.DER).endswith(b"\0" + certificate.signature):
        raise InvalidInputError(f"the certificate {_common_name(certificate)} is not in DER")


def _endorsement(
    leaf: x509.Certificate, intermediate: x509.Certificate, product: str
) -> Endorsement:
    name, key = _common_name(leaf), leaf.public_key()
    kind = _LEAF_NAMES.get(name)
    if kind is None or _common_name(intermediate) != _INTERMEDIATE_NAMES[kind] + product:
        raise EvidenceRefusedError(
            f"the certificate {name} under {_common_name(intermediate)} is not a signing key of "
            f"{product}"
        )
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EvidenceRefusedError(f"the certificate {name} does not hold a P-384 key")
    if any(isinstance(each.value, x509.BasicConstraints) for each in leaf.extensions):
        raise EvidenceRefusedError(f"the certificate {name} says that it is an authority")
    extensions = {
        each.oid.dotted_string: each.value.value
        for each in leaf.extensions
        if isinstance(each.value, x509.UnrecognizedExtension)
    }
    if _text(extensions, _PRODUCT_NAME).partition("-")[0] != product:
        raise EvidenceRefusedError(f"the certificate {name} is not one of {product}")
    tcb = Tcb(**{part: _integer(extensions, _AMD + oid) for part, oid in _TCB.items()})
    return Endorsement(key, kind, product, tcb, _hardware_id(extensions, kind))


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value)[:64] if names else "without a name"


def _hardware_id(extensions: Mapping[str, bytes], kind: SigningKey) -> bytes:
    if kind is SigningKey.VLEK:
        return b""
    value = extensions.get(_HARDWARE_ID, b"")
    if len(value) != _HARDWARE_ID_BYTES:
        raise InvalidInputError("the VCEK's certificate does not name its chip")
    return value


def _integer(extensions: Mapping[str, bytes], oid: str) -> int:
    """A DER INTEGER from 0 to 255."""
    match tuple(extensions.get(oid, b"")):
        case (2, 1, value) if value < 128:
            return value
        case (2, 2, 0, value) if value >= 128:
            return value
    raise InvalidInputError(f"the certificate's extension {oid} is no firmware version")


def _text(extensions: Mapping[str, bytes], oid: str) -> str:
    """A DER IA5String of at most 127 characters."""
    value = extensions.get(oid, b"")
    if len(value) < 2 or value[0] != 0x16 or value[1] != len(value) - 2:
        raise InvalidInputError(f"the certificate's extension {oid} is no text")
    return value[2:].decode("ascii", errors="replace")
