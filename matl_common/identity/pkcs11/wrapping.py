"""A key-encryption key that never leaves its token (CKM_AES_KEY_WRAP, which is RFC 3394).

The data keys that it wraps do come out: the log's entries are encrypted in this process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from matl_common.errors import ConfigurationError
from matl_common.identity.pkcs11.promises import holder_of, pin_weaknesses, weaknesses_of
from matl_common.identity.pkcs11.session import Opened, TokenError, TokenObject
from matl_common.identity.pkcs11.uri import ObjectType, TokenUri
from matl_common.identity.wrapping import KEY_BYTES, foreign_key_error, name_of_zeros

if TYPE_CHECKING:
    from pkcs11 import Session

_ID_BYTES: Final = 8


class TokenKeyEncryptionKey:
    """An AES-256 key in a PKCS#11 token. Any thread may use it."""

    def __init__(self, uri: TokenUri, *, environment: Mapping[str, str] = os.environ) -> None:
        """Open the token and look at the key.

        Raises:
            ConfigurationError: module, PIN or key is not as configured, or the key cannot wrap.
            TokenError: the token cannot be reached, or refuses.
        """
        self._key = TokenObject(
            uri, type=ObjectType.SECRET_KEY, check=self._check, environment=environment
        )
        self._uri = uri
        self._name = ""
        self._holder, self._weaknesses = self._key.use(_looked_at)

    @property
    def name(self) -> str:
        """The first 16 hexadecimal characters of a hash of its wrapping of zeros."""
        return self._name

    @property
    def holder(self) -> str:
        """The token that holds it."""
        return self._holder

    @property
    def weaknesses(self) -> tuple[str, ...]:
        """What its token does not promise of it, or the file of its PIN gives away."""
        return (*self._weaknesses, *pin_weaknesses(self._uri))

    def wrap(self, key: bytes) -> bytes:
        """Wrap a key of 32 bytes.

        Raises:
            ConfigurationError: the PIN or the key in the token is another one by now.
            TokenError: the token cannot be reached, or refuses.
        """
        return self._key.use(lambda opened: self._wrap(opened, key))

    def unwrap(self, wrapped: bytes) -> bytes:
        """Unwrap what this key has wrapped.

        Raises:
            IntegrityError: another key has wrapped it, or it was changed.
            ConfigurationError, TokenError: as ``wrap``.
        """
        if len(wrapped) != KEY_BYTES + 8:
            raise foreign_key_error(self._name)
        return self._key.use(lambda opened: self._unwrap(opened, wrapped))

    def _wrap(self, opened: Opened, key: bytes) -> bytes:
        self._require_same(opened)
        return _wrap(opened, key)

    def _unwrap(self, opened: Opened, wrapped: bytes) -> bytes:
        from pkcs11 import PKCS11Error

        try:
            return _unwrap(opened, wrapped)
        except PKCS11Error as error:
            # Tokens answer a wrong integrity value as they answer being broken; one that still
            # wraps is not broken.
            self._require_same(opened)
            raise foreign_key_error(self._name) from error

    def _require_same(self, opened: Opened) -> None:
        """See that the handles still mean this key: after a reset, a token gives them anew.

        What another key has wrapped would be lost.

        Raises:
            TokenError: they do not, so the object has to be found again.
        """
        if _name(opened) != self._name:
            raise TokenError(f"{self._uri} was reset and has to be opened again")

    def _check(self, opened: Opened) -> None:
        """See that what was found can do the work, and is the key that was found at first."""
        from pkcs11 import Attribute, KeyType

        key: Any = opened.object
        if key[Attribute.KEY_TYPE] is not KeyType.AES or key[Attribute.VALUE_LEN] != KEY_BYTES:
            raise ConfigurationError(f"{self._uri} is not an AES key of {KEY_BYTES * 8} bits")
        if not (key[Attribute.WRAP] and key[Attribute.UNWRAP]):
            raise ConfigurationError(
                f"{self._uri} may not wrap and unwrap keys (CKA_WRAP, CKA_UNWRAP); make a key "
                "for this use"
            )
        name = _name(opened)
        if self._name not in {"", name}:
            raise ConfigurationError(
                f"{self._uri} is key {name} now and was {self._name}; restore the key that the "
                "log's data keys are under"
            )
        self._name = name


def create_token_key(
    uri: TokenUri, *, environment: Mapping[str, str] = os.environ
) -> TokenKeyEncryptionKey:
    """Make a key-encryption key in a token, which never lets it out.

    Raises:
        ConfigurationError: there is one already, or module or PIN is not as configured.
        TokenError: the token cannot be reached, or refuses.
    """

    def make(session: Session) -> None:
        from pkcs11 import Attribute, KeyType, MechanismFlag

        session.generate_key(
            KeyType.AES,
            KEY_BYTES * 8,
            id=uri.id or os.urandom(_ID_BYTES),
            label=uri.label,
            store=True,
            capabilities=MechanismFlag.WRAP | MechanismFlag.UNWRAP,
            template={
                Attribute.PRIVATE: True,
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
            },
        )

    place = TokenObject(
        uri, type=ObjectType.SECRET_KEY, check=lambda _: None, environment=environment
    )
    place.create(make)
    return TokenKeyEncryptionKey(uri, environment=environment)


def _name(opened: Opened) -> str:
    return name_of_zeros(_wrap(opened, bytes(KEY_BYTES)))


def _wrap(opened: Opened, key: bytes) -> bytes:
    from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

    wrapping: Any = opened.object
    inside = opened.session.create_object(
        {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: KeyType.AES,
            Attribute.VALUE: key,
            **_passing_through(),
        }
    )
    try:
        return bytes(wrapping.wrap_key(inside, mechanism=Mechanism.AES_KEY_WRAP))
    finally:
        inside.destroy()


def _unwrap(opened: Opened, wrapped: bytes) -> bytes:
    from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

    wrapping: Any = opened.object
    inside = wrapping.unwrap_key(
        ObjectClass.SECRET_KEY,
        KeyType.AES,
        wrapped,
        mechanism=Mechanism.AES_KEY_WRAP,
        template=_passing_through(),
    )
    try:
        return bytes(inside[Attribute.VALUE])
    finally:
        inside.destroy()


def _passing_through() -> dict[Any, Any]:
    """What a data key is while it is in the token: there for this session, and let out again."""
    from pkcs11 import Attribute

    return {
        Attribute.TOKEN: False,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: False,
        Attribute.EXTRACTABLE: True,
    }


def _looked_at(opened: Opened) -> tuple[str, tuple[str, ...]]:
    name = "the log's encryption key"
    return holder_of(opened), weaknesses_of(opened, name=name, remedy="and rewrap")
