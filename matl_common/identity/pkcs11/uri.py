"""PKCS#11 URIs (RFC 7512): which object in which token, and how to get there. Pure.

An attribute that would not be honoured is refused instead of passed over, and so is a PIN in the
URI itself: configuration files, process lists and backups are no place for it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from matl_common.errors import ConfigurationError

SCHEME = "pkcs11:"
PIN_VARIABLE = "MATL_PKCS11_PIN"
"""The environment variable with the PIN where a URI has no pin-source."""
MAX_URI_CHARACTERS = 2000

_PIN_VALUE = "pin-value"
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,40}")
# RFC 7512 §2.3: unreserved characters, pk11-res-avail, and what path or query add.
_PATH_VALUE = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=&]|%[0-9A-Fa-f]{2})+")
_QUERY_VALUE = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=/?|]|%[0-9A-Fa-f]{2})+")
_MAX_SLOT_ID = (1 << 64) - 1


class ObjectType(StrEnum):
    """What kind of object a URI names (RFC 7512 §2.3)."""

    CERTIFICATE = "cert"
    DATA = "data"
    PRIVATE_KEY = "private"
    PUBLIC_KEY = "public"
    SECRET_KEY = "secret-key"


@dataclass(frozen=True, slots=True)
class TokenUri:
    """A PKCS#11 URI. Holds no secret. Obtain one from ``parse_token_uri``."""

    text: str
    module: Path
    token: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    serial: str | None = None
    slot_id: int | None = None
    label: str | None = None
    """The attribute ``object``: CKA_LABEL."""
    id: bytes | None = None
    type: ObjectType | None = None
    pin_source: Path | None = None

    def __str__(self) -> str:
        """The URI as it was written."""
        return self.text


def is_token_uri(text: str) -> bool:
    """Whether this is meant to be a PKCS#11 URI, and not a path."""
    return text[: len(SCHEME)].lower() == SCHEME


def parse_token_uri(text: str) -> TokenUri:
    """Parse a PKCS#11 URI that names an object in a token.

    Raises:
        ConfigurationError: it is none, lacks what finding the object needs, or says what is not
            honoured here. The message quotes names of attributes and never a value.
    """
    if not is_token_uri(text) or len(text) > MAX_URI_CHARACTERS:
        raise ConfigurationError(
            f"a PKCS#11 URI begins with {SCHEME} and has at most {MAX_URI_CHARACTERS} characters"
        )
    path, has_query, query = text[len(SCHEME) :].partition("?")
    where = _attributes(path, separator=";", form=_PATH_VALUE, known=_PATH)
    how = _attributes(query, separator="&", form=_QUERY_VALUE, known=_QUERY) if has_query else {}
    if "module" not in how:
        raise ConfigurationError(
            "the PKCS#11 URI names no module; add the library of the token's vendor, such as "
            "?module-path=/usr/lib/softhsm/libsofthsm2.so"
        )
    if "label" not in where and "id" not in where:
        raise ConfigurationError("the PKCS#11 URI names no object; add object=LABEL or id=%01")
    if not where.keys() & {"token", "serial", "slot_id"}:
        raise ConfigurationError("the PKCS#11 URI names no token; add token=LABEL or serial=NUMBER")
    return TokenUri(text=text, **where, **how)


def _text(value: bytes) -> str:
    text = value.decode()
    if not text.isprintable():
        raise ValueError
    return text


def _slot_id(value: bytes) -> int:
    digits = value.decode()
    if not re.fullmatch("[0-9]{1,20}", digits) or int(digits) > _MAX_SLOT_ID:
        raise ValueError
    return int(digits)


def _type(value: bytes) -> ObjectType:
    return ObjectType(value.decode())


def _absolute(value: bytes) -> Path:
    path = Path(_text(value))
    if not path.is_absolute():
        raise ValueError
    return path


def _file(value: bytes) -> Path:
    # A path, or a file: URI without a host (RFC 8089).
    text = _text(value)
    if not text.startswith("file:"):
        return _absolute(value)
    local = re.fullmatch(r"file:(?://(?:localhost)?)?(/[^/].*)", text)
    if local is None:
        raise ValueError
    return _absolute(unquote_to_bytes(local[1]))


# Each attribute with the field it goes to, how its bytes are read, and what they have to be.
_Reader = tuple[str, Callable[[bytes], object], str]
_PATH: dict[str, _Reader] = {
    "token": ("token", _text, "text"),
    "manufacturer": ("manufacturer", _text, "text"),
    "model": ("model", _text, "text"),
    "serial": ("serial", _text, "text"),
    "slot-id": ("slot_id", _slot_id, "a number"),
    "object": ("label", _text, "text"),
    "id": ("id", bytes, "bytes"),
    "type": ("type", _type, "one of " + ", ".join(ObjectType)),
}
_QUERY: dict[str, _Reader] = {
    "module-path": ("module", _absolute, "the absolute path of a library"),
    "pin-source": ("pin_source", _file, "the absolute path of a file, or its file: URI"),
}


def _attributes(
    text: str, *, separator: str, form: re.Pattern[str], known: dict[str, _Reader]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for attribute in text.split(separator) if text else []:
        name, is_named, value = attribute.partition("=")
        if not is_named or not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"the PKCS#11 URI has something that is no attribute; write name=value, "
                f"separated by {separator!r}"
            )
        if name == _PIN_VALUE:
            raise ConfigurationError(
                f"the PKCS#11 URI has a PIN in it ({_PIN_VALUE}), which files and process lists "
                f"would show; write it to a file and name that with pin-source, or set "
                f"{PIN_VARIABLE}"
            )
        if name not in known:
            raise ConfigurationError(
                f"the PKCS#11 URI's attribute {name} means nothing here; known are "
                f"{', '.join(known)}"
            )
        field, read, meant = known[name]
        if field in found:
            raise ConfigurationError(f"the PKCS#11 URI says {name} twice")
        if not form.fullmatch(value):
            raise ConfigurationError(
                f"the PKCS#11 URI's {name} is empty, or has characters that must be written as "
                "%20, for example"
            )
        try:
            found[field] = read(unquote_to_bytes(value))
        except ValueError as error:
            raise ConfigurationError(f"the PKCS#11 URI's {name} is not {meant}") from error
    return found
