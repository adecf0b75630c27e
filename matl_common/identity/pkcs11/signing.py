"""Private keys that sign in their token and never leave it: ECDSA over P-256, and Ed25519.

A token gives no public half of a private key, so its public key object must stand beside it. That
the two belong together is seen by a signature whenever the key is opened, and every signature is
verified before it is handed on: after a reset, a handle may mean another key.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from matl_common.errors import ConfigurationError
from matl_common.identity.keys import spki_pin
from matl_common.identity.pkcs11.promises import holder_of, pin_weaknesses, weaknesses_of
from matl_common.identity.pkcs11.session import Opened, TokenError, TokenObject
from matl_common.identity.pkcs11.uri import ObjectType, TokenUri

if TYPE_CHECKING:
    from pkcs11 import Session

PublicKeyT = TypeVar("PublicKeyT", bound=ec.EllipticCurvePublicKey | Ed25519PublicKey)

_ID_BYTES: Final = 8
_CHALLENGE: Final = b"matl: does this token hold the private half of this public key?"
_OCTET_STRING: Final = 0x04


@dataclass(frozen=True, slots=True)
class Algorithm(Generic[PublicKeyT]):
    """How keys of one type are told, read and used in a token.

    Attributes:
        name: for people to read, with its article.
        key_type: name of its CKK constant.
        curve: CKA_EC_PARAMS of a key to make, in DER.
        generation: name of the CKM constant that makes a pair.
        load: makes a public key of CKA_EC_POINT without its wrapping; raises ValueError.
        sign: signs raw data with a private key object.
        verify: raises InvalidSignature unless the second argument signs the third.
    """

    name: str
    key_type: str
    curve: bytes
    generation: str
    load: Callable[[bytes], PublicKeyT]
    sign: Callable[[Any, bytes], bytes]
    verify: Callable[[PublicKeyT, bytes, bytes], None]


def _p256_signature(key: Any, data: bytes) -> bytes:
    from pkcs11 import Mechanism

    # CKM_ECDSA signs a digest; tokens that hash themselves are not the rule.
    pair = bytes(key.sign(sha256(data).digest(), mechanism=Mechanism.ECDSA))
    half = len(pair) // 2
    return encode_dss_signature(int.from_bytes(pair[:half]), int.from_bytes(pair[half:]))


def _ed25519_signature(key: Any, data: bytes) -> bytes:
    from pkcs11 import Mechanism

    return bytes(key.sign(data, mechanism=Mechanism.EDDSA))


P256: Final[Algorithm[ec.EllipticCurvePublicKey]] = Algorithm(
    name="a P-256 key",
    key_type="EC",
    curve=bytes.fromhex("06082a8648ce3d030107"),
    generation="EC_KEY_PAIR_GEN",
    load=lambda point: ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point),
    sign=_p256_signature,
    verify=lambda key, signature, data: key.verify(signature, data, ec.ECDSA(SHA256())),
)
"""ECDSA over P-256 with SHA-256, signatures in DER: TLS and what nodes sign."""

ED25519: Final[Algorithm[Ed25519PublicKey]] = Algorithm(
    name="an Ed25519 key",
    key_type="EC_EDWARDS",
    curve=bytes.fromhex("06032b6570"),
    generation="EC_EDWARDS_KEY_PAIR_GEN",
    load=Ed25519PublicKey.from_public_bytes,
    sign=_ed25519_signature,
    verify=lambda key, signature, data: key.verify(signature, data),
)
"""Ed25519 (RFC 8032): the log's checkpoints and their cosignatures."""


class TokenSigningKey(Generic[PublicKeyT]):
    """A private key in a PKCS#11 token. Any thread may use it."""

    def __init__(
        self,
        uri: TokenUri,
        algorithm: Algorithm[PublicKeyT],
        *,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """Open the token, look at the key, and sign once.

        Raises:
            ConfigurationError: module, PIN or key is not as configured, or the key is of another
                type or cannot sign.
            TokenError: the token cannot be reached, or refuses.
        """
        self._uri = uri
        self._algorithm = algorithm
        self._found: PublicKeyT | None = None
        self._key = TokenObject(
            uri, type=ObjectType.PRIVATE_KEY, check=self._check, environment=environment
        )
        self._public_key, self._holder, self._weaknesses = self._key.use(self._looked_at)

    @property
    def public_key(self) -> PublicKeyT:
        """The verification key."""
        return self._public_key

    @property
    def keyid(self) -> str:
        """The pin of its public key."""
        return spki_pin(self._public_key)

    @property
    def holder(self) -> str:
        """The token that holds it."""
        return self._holder

    @property
    def weaknesses(self) -> tuple[str, ...]:
        """What its token does not promise of it, or the file of its PIN gives away."""
        return (*self._weaknesses, *pin_weaknesses(self._uri))

    def sign(self, data: bytes, /) -> bytes:
        """Sign raw ``data`` in the token.

        Raises:
            TokenError: the token cannot be used for now, or has another PIN or key by now.
        """
        try:
            return self._key.use(lambda opened: self._signature(opened, data))
        except ConfigurationError as error:
            # It was as configured at start; whoever changed the token may change it back.
            raise TokenError(str(error)) from error

    def _signature(self, opened: Opened, data: bytes) -> bytes:
        signature = self._algorithm.sign(opened.object, data)
        try:
            self._algorithm.verify(self._public_key, signature, data)
        except InvalidSignature as error:
            raise TokenError(f"{self._uri} was reset and has to be opened again") from error
        return signature

    def _looked_at(self, opened: Opened) -> tuple[PublicKeyT, str, tuple[str, ...]]:
        assert self._found is not None, "an object is checked when it is opened"
        weaknesses = weaknesses_of(opened, name=str(self._uri), remedy="and enrol that")
        return self._found, holder_of(opened), weaknesses

    def _check(self, opened: Opened) -> None:
        """See that what was found can sign, and is the key that was found at first."""
        from pkcs11 import Attribute, KeyType, PKCS11Error

        key: Any = opened.object
        if key[Attribute.KEY_TYPE] is not KeyType[self._algorithm.key_type]:
            raise self._wrong_type()
        if not key[Attribute.SIGN]:
            raise ConfigurationError(f"{self._uri} may not sign (CKA_SIGN); make a key that may")
        if _asks_each_time(key):
            raise ConfigurationError(
                f"{self._uri} wants its PIN for every signature (CKA_ALWAYS_AUTHENTICATE), which "
                "a daemon cannot give; make a key that wants it once"
            )
        found = self._public_half(opened)
        try:
            signature = self._algorithm.sign(key, _CHALLENGE)
        except PKCS11Error as error:
            raise TokenError(f"{self._uri} does not sign ({type(error).__name__})") from error
        try:
            self._algorithm.verify(found, signature, _CHALLENGE)
        except InvalidSignature as error:
            raise ConfigurationError(
                f"the public key beside {self._uri} is another key's; give both halves of a pair "
                "one CKA_ID that no other has"
            ) from error
        if self._found is not None and spki_pin(found) != spki_pin(self._found):
            raise ConfigurationError(
                f"{self._uri} is key {spki_pin(found)[:16]} now and was "
                f"{spki_pin(self._found)[:16]}; restore the key that is enrolled, or restart with "
                "the new one once it is"
            )
        self._found = found

    def _public_half(self, opened: Opened) -> PublicKeyT:
        from pkcs11 import Attribute, ObjectClass

        key: Any = opened.object
        same = {Attribute.ID: key[Attribute.ID]} if key[Attribute.ID] else {}
        wanted = same or {Attribute.LABEL: key[Attribute.LABEL]}
        match list(opened.session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY, **wanted})):
            case [public]:
                try:
                    return self._algorithm.load(_point(public[Attribute.EC_POINT]))
                except ValueError as error:
                    raise self._wrong_type() from error
            case found:
                raise ConfigurationError(
                    f"{self._uri} has {len(found)} public keys beside it with its CKA_ID; its "
                    "token must hold exactly one"
                )

    def _wrong_type(self) -> ConfigurationError:
        return ConfigurationError(
            f"{self._uri} is not {self._algorithm.name}; make one for this use"
        )


def create_token_pair(
    uri: TokenUri,
    algorithm: Algorithm[PublicKeyT],
    *,
    environment: Mapping[str, str] = os.environ,
) -> TokenSigningKey[PublicKeyT]:
    """Make a key pair in a token, which never lets the private half out.

    Raises:
        ConfigurationError: there is one already, or module or PIN is not as configured.
        TokenError: the token cannot be reached, or refuses.
    """

    def make(session: Session) -> None:
        from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag

        domain: Any = session.create_domain_parameters(
            KeyType[algorithm.key_type], {Attribute.EC_PARAMS: algorithm.curve}, local=True
        )
        domain.generate_keypair(
            id=uri.id or os.urandom(_ID_BYTES),
            label=uri.label,
            store=True,
            mechanism=Mechanism[algorithm.generation],
            capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
            private_template={
                Attribute.PRIVATE: True,
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
            },
        )

    place = TokenObject(
        uri, type=ObjectType.PRIVATE_KEY, check=lambda _: None, environment=environment
    )
    place.create(make)
    return TokenSigningKey(uri, algorithm, environment=environment)


def _point(value: bytes) -> bytes:
    """The point of CKA_EC_POINT, which is wrapped in an OCTET STRING but for older tokens."""
    is_wrapped = len(value) >= 2 and value[0] == _OCTET_STRING and value[1] == len(value) - 2
    return value[2:] if is_wrapped else value


def _asks_each_time(key: Any) -> bool:
    from pkcs11 import Attribute, AttributeTypeInvalid

    try:
        return bool(key[Attribute.ALWAYS_AUTHENTICATE])
    except AttributeTypeInvalid:
        return False
