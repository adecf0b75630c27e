"""Secrets by name, and where they turn up: raw, in hexadecimal or in base64."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key


def found(secrets: Mapping[str, bytes], places: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """Every secret that is in a place, with the place."""
    return [
        (name, place)
        for name, secret in secrets.items()
        for place, content in places.items()
        if any(form in content for form in forms(secret))
    ]


def forms(secret: bytes) -> Iterator[bytes]:
    """How bytes look in what is written of them."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for shift in range(3):
        # Inside longer data, base64 begins at any of three places; the ends depend on the rest.
        text = base64.b64encode(bytes(shift) + secret).rstrip(b"=")[-(-4 * shift // 3) : -1]
        yield text
        yield text.translate(bytes.maketrans(b"+/", b"-_"))


def key_secrets(folder: Path) -> dict[str, bytes]:
    """Of every private key in PEM below a folder: its number, and a line of its file."""
    secrets: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*.key")):
        pem = path.read_bytes()
        if b"PRIVATE KEY" not in pem:
            continue
        name = str(path.relative_to(folder))
        match load_pem_private_key(pem, password=None):
            case ec.EllipticCurvePrivateKey() as key:
                secrets[name] = key.private_numbers().private_value.to_bytes(32, "big")
            case ed25519.Ed25519PrivateKey() as key:
                secrets[name] = key.private_bytes_raw()
            case other:
                raise AssertionError(f"a key of an unknown kind: {type(other).__name__}")
        # The last whole line: the first is the same for all keys of a curve.
        lines = [line for line in pem.splitlines() if line and not line.startswith(b"-----")]
        secrets[f"{name}, as text"] = max(lines[:-1] or lines, key=len)[-32:]
    return secrets
