"""Genuine reports of others' machines, where this machine has them."""

import base64
import os
import textwrap
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from matl_common.attestation.evidence import Evidence, Technology
from matl_common.attestation.tdx_quote import without_padding

VECTORS = Path(os.environ.get("MATL_VECTORS", "../shared/vectors")) / "attestation"

needs_vectors = pytest.mark.skipif(
    not VECTORS.is_dir(), reason=f"no attestation vectors in {VECTORS}; set MATL_VECTORS"
)


def snp_evidence(*, vcek: str, chain: str, report: bytes) -> Evidence:
    """A report with its certificates, leaf first."""
    leaf = pem_of((VECTORS / "snp" / vcek).read_bytes())
    return Evidence(Technology.SEV_SNP, report, leaf + (VECTORS / "snp" / chain).read_bytes())


def pem_of(der: bytes) -> bytes:
    """One certificate, from DER to PEM; not parsed, for what is tested may be damaged."""
    body = "\n".join(textwrap.wrap(base64.b64encode(der).decode(), 64))
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n".encode()


def ders_of(pem: bytes) -> list[bytes]:
    """The certificates of a chain, in DER."""
    return [each.public_bytes(Encoding.DER) for each in x509.load_pem_x509_certificates(pem)]


def virtee_evidence() -> Evidence:
    """A Milan guest with debugging off."""
    text = (VECTORS / "snp" / "report_milan.hex").read_text()
    return snp_evidence(
        vcek="vcek_milan.der", chain="cert_chain_milan", report=bytes.fromhex(text.strip())
    )


def google_evidence() -> Evidence:
    """A Milan guest with debugging on."""
    report = (VECTORS / "snp" / "attestation.bin").read_bytes()
    return snp_evidence(vcek="vcek.testcer", chain="milan.testcer", report=report)


def tdx_evidence(name: str = "tdx_quote") -> Evidence:
    """A quote with its collateral, as an attester hands it over."""
    quote = (VECTORS / "tdx" / name).read_bytes()
    return Evidence(
        Technology.TDX,
        without_padding(quote) if name.startswith("tdx") else quote,
        (VECTORS / "tdx" / f"{name.removesuffix('.dat')}_collateral.json").read_bytes(),
    )
