"""Real PKCS#11 tokens of a test's own, in software (SoftHSM)."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import Attribute, KeyType, ObjectClass

from matl_common.identity.pkcs11.uri import PIN_VARIABLE, TokenUri, parse_token_uri

PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey

PIN, SO_PIN = "canary-pin-4711", "canary-so-pin-0815"
MODULES = (
    Path("/usr/lib/softhsm/libsofthsm2.so"),
    Path("/usr/lib64/pkcs11/libsofthsm2.so"),
    Path("/usr/local/lib/softhsm/libsofthsm2.so"),
    Path("/opt/homebrew/lib/softhsm/libsofthsm2.so"),
)


class SoftHsmUnavailableError(Exception):
    """There is no SoftHSM here; the message says what to install."""


@dataclass(frozen=True, slots=True)
class TokenFolder:
    """A folder with tokens, which this process and those it starts find."""

    module: Path
    folder: Path

    def add(self, label: str, *, pin: str = PIN) -> None:
        """Initialise one more token."""
        subprocess.run(
            (
                *("softhsm2-util", "--init-token", "--free", "--label", label),
                *("--pin", pin, "--so-pin", SO_PIN),
            ),
            check=True,
            capture_output=True,
        )
        self.restart()

    def restart(self) -> None:
        """Make every session of this process invalid, as a token does that was reset."""
        pkcs11.lib(str(self.module)).reinitialize()

    def uri_text(self, token: str, label: str = "log", *, query: str = "") -> str:
        """The URI of an object."""
        where = f"pkcs11:token={quote(token)};object={quote(label)}"
        return f"{where}?module-path={self.module}{query}"

    def uri(self, token: str, label: str = "log", *, query: str = "") -> TokenUri:
        """The URI of an object, parsed."""
        return parse_token_uri(self.uri_text(token, label, query=query))

    @contextmanager
    def session(self, token: str) -> Iterator[pkcs11.Session]:
        """A session to do with the token what the product does not; every other one is lost."""
        self.restart()
        found = pkcs11.lib(str(self.module)).get_token(token_label=token)
        with found.open(rw=True, user_pin=PIN) as session:
            yield session

    def put(self, token: str, label: str, key: PrivateKey) -> None:
        """Put a pair into a token that was known outside of it."""
        both = _pair(key)
        id = os.urandom(8)
        with self.session(token) as session:
            for each in both:
                session.create_object(
                    {**each, Attribute.TOKEN: True, Attribute.ID: id, Attribute.LABEL: label}
                )

    @contextmanager
    def session_beside(self, token: str) -> Iterator[pkcs11.Session]:
        """A session that leaves the others be, and sees what they see once one has logged in."""
        with pkcs11.lib(str(self.module)).get_token(token_label=token).open() as session:
            yield session

    @contextmanager
    def taken_away(self) -> Iterator[None]:
        """Every token is gone, and back afterwards."""
        away = self.folder.with_name("away")
        self.folder.rename(away)
        self.folder.mkdir()
        try:
            yield
        finally:
            self.folder.rmdir()
            away.rename(self.folder)


def _pair(key: PrivateKey) -> tuple[dict[Attribute, object], dict[Attribute, object]]:
    """What both halves are to a token."""
    match key:
        case ec.EllipticCurvePrivateKey():
            kind, curve = KeyType.EC, bytes.fromhex("06082a8648ce3d030107")
            value = key.private_numbers().private_value.to_bytes(32)
            point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        case _:
            kind, curve = KeyType.EC_EDWARDS, b"\x13\x0cedwards25519"
            value, point = key.private_bytes_raw(), key.public_key().public_bytes_raw()
    shared: dict[Attribute, object] = {Attribute.KEY_TYPE: kind, Attribute.EC_PARAMS: curve}
    public = {
        Attribute.CLASS: ObjectClass.PUBLIC_KEY,
        Attribute.EC_POINT: bytes((4, len(point))) + point,
        Attribute.VERIFY: True,
    }
    private = {
        Attribute.CLASS: ObjectClass.PRIVATE_KEY,
        Attribute.VALUE: value,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.SIGN: True,
    }
    return {**shared, **private}, {**shared, **public}


@contextmanager
def token_folder(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[TokenFolder]:
    """Make a folder for tokens, and set the PIN in the environment.

    Raises:
        SoftHsmUnavailableError: SoftHSM is not installed.
    """
    module = next((each for each in MODULES if each.exists()), None)
    if module is None or shutil.which("softhsm2-util") is None:
        raise SoftHsmUnavailableError(
            "SoftHSM is missing; install it with: apt-get install softhsm2"
        )
    tokens = folder / "tokens"
    tokens.mkdir(parents=True)
    configuration = folder / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    patch.setenv("SOFTHSM2_CONF", str(configuration))
    patch.setenv(PIN_VARIABLE, PIN)
    made = TokenFolder(module, tokens)
    # It reads where its tokens are when it is initialised.
    made.restart()
    yield made
    pkcs11.lib(str(module)).finalize()
