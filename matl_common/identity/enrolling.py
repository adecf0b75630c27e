"""How a node is enrolled without any private key leaving it: a request, and its answer.

A request holds the node's public keys and, over all of them together, a signature by each: so
nobody enrols a key that is another's, and no key can be taken out of one request into another.
Who sent it, only people can tell each other: both sides compare its fingerprint.

An answer holds the certificate and whom to trust. Nothing here touches a file.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.identity.certificates import (
    MALFORMED,
    PeerCertificate,
    Role,
    SpiffeId,
    parse_peer_certificate,
    parse_spiffe_id,
)
from matl_common.identity.keys import (
    TLS_CURVES,
    check_curve,
    parse_public_key,
    public_key_pem,
    spki_pin,
    witness_keyid,
)
from matl_common.signing import Signer
from matl_common.tlog.cosignature import COSIGNATURE_TYPES
from matl_common.tlog.names import log_origin, witness_name
from matl_common.tlog.note import Signer as NoteSigner
from matl_common.tlog.note import VerifierKey, parse_verifier_key
from matl_common.validation import problems_in

MAX_DOCUMENT_BYTES = 64 << 10

_REQUEST, _ANSWER = "matl-enrolment-request", "matl-enrolment-answer"
# No checkpoint, cosignature or envelope begins so: no proof can stand for one of them.
_PROVES = b"matl enrolment request v1\n"


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose proofs hold. Obtain one from ``parse_request``."""

    spiffe_id: SpiffeId
    tls_key: ec.EllipticCurvePublicKey
    signing_key: ec.EllipticCurvePublicKey
    witness_key: VerifierKey | None
    fingerprint: str
    """SHA-256 over everything in it; for people to compare."""

    @property
    def keyids(self) -> Mapping[str, str]:
        """Its keys' digests, by what people call their use."""
        keys = {"TLS key": spki_pin(self.tls_key), "signing key": spki_pin(self.signing_key)}
        if self.witness_key is not None:
            keys["witness key"] = witness_keyid(self.witness_key)
        return keys


@dataclass(frozen=True, slots=True)
class Keys:
    """The private keys that a request proves, wherever they are held."""

    tls: ec.EllipticCurvePrivateKey
    signing: Signer
    witness: tuple[VerifierKey, NoteSigner] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node needs to take part, beside its own keys."""

    certificate: x509.Certificate
    coordinator: SpiffeId
    coordinator_authority: x509.Certificate
    coordinator_signing_key: ec.EllipticCurvePublicKey
    log_key: VerifierKey

    @property
    def node(self) -> PeerCertificate:
        """What the certificate says."""
        return parse_peer_certificate(_pem(self.certificate))


def make_request(spiffe_id: SpiffeId, keys: Keys) -> bytes:
    """A request to enrol these keys under this name."""
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, spiffe_id.node_id)]))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(spiffe_id))]),
            critical=False,
        )
        .sign(keys.tls, SHA256())
    )
    body = {
        "type": _REQUEST,
        "version": 1,
        "spiffe_id": str(spiffe_id),
        "csr": csr.public_bytes(Encoding.PEM).decode(),
        "signing_key": public_key_pem(keys.signing.public_key).decode(),
        "witness_key": None if keys.witness is None else keys.witness[0].vkey,
    }
    statement = _statement(body)
    proofs = {
        "tls": _text(keys.tls.sign(statement, ec.ECDSA(SHA256()))),
        "signing": _text(keys.signing.sign(statement)),
        "witness": None if keys.witness is None else _text(keys.witness[1].sign(statement)),
    }
    return _document({**body, "proofs": proofs})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


_Pem = Annotated[str, Field(max_length=16 << 10)]
_Line = Annotated[str, Field(max_length=8000)]


class _Proofs(_Strict):
    tls: _Line
    signing: _Line
    witness: _Line | None


class _Request(_Strict):
    type: Literal["matl-enrolment-request"]
    version: Literal[1]
    spiffe_id: _Line
    csr: _Pem
    signing_key: _Pem
    witness_key: _Line | None
    proofs: _Proofs


class _Answer(_Strict):
    type: Literal["matl-enrolment-answer"]
    version: Literal[1]
    certificate: _Pem
    coordinator: _Line
    coordinator_authority: _Pem
    coordinator_signing_key: _Pem
    log_key: _Line


def parse_request(data: bytes) -> Request:
    """Read a request and check that whoever made it holds every key in it.

    Raises:
        InvalidInputError: not a request, or one that asks for what no node may have.
        IntegrityError: a proof does not hold.
    """
    found = _parsed(_Request, data, "request")
    spiffe_id = parse_spiffe_id(found.spiffe_id)
    if spiffe_id.role is Role.COORDINATOR:
        raise InvalidInputError("a request is for a participant, an operator or a front end")
    tls_key = _csr_key(found.csr, spiffe_id)
    signing_key = parse_public_key(found.signing_key.encode())
    witness_key = None
    if found.witness_key is not None:
        witness_key = parse_verifier_key(found.witness_key, COSIGNATURE_TYPES)
        wanted = witness_name(spiffe_id.federation, spiffe_id.node_id)
        if witness_key.name != wanted or spiffe_id.role is not Role.PARTICIPANT:
            raise InvalidInputError(f"the witness key is not one of participant {wanted!r}")
    statement = _statement(found.model_dump(exclude={"proofs"}))
    fingerprint = hashlib.sha256(statement).hexdigest()
    request = Request(spiffe_id, tls_key, signing_key, witness_key, fingerprint)
    if len(set(request.keyids.values())) != len(request.keyids):
        raise InvalidInputError("the request uses one key for two uses; make one for each")
    _check(tls_key, "tls", found.proofs.tls, statement)
    _check(signing_key, "signing", found.proofs.signing, statement)
    if witness_key is not None:
        proof = _bytes(found.proofs.witness or "")
        try:
            witness_key.signature_type.load(witness_key.public_key)(statement, proof)
        except (InvalidSignature, InvalidInputError) as error:
            raise _unproved("witness") from error
    return request


def make_answer(answer: Answer) -> bytes:
    """The answer as ``parse_answer`` reads it."""
    return _document(
        {
            "type": _ANSWER,
            "version": 1,
            "certificate": _pem(answer.certificate).decode(),
            "coordinator": str(answer.coordinator),
            "coordinator_authority": _pem(answer.coordinator_authority).decode(),
            "coordinator_signing_key": public_key_pem(answer.coordinator_signing_key).decode(),
            "log_key": answer.log_key.vkey,
        }
    )


def parse_answer(data: bytes) -> Answer:
    """Read an answer; whom it is for, and whether to believe it, is for the caller to see.

    Raises:
        InvalidInputError: not an answer, or its parts are not of one federation.
    """
    found = _parsed(_Answer, data, "answer")
    try:
        certificate = x509.load_pem_x509_certificate(found.certificate.encode())
        authority = x509.load_pem_x509_certificate(found.coordinator_authority.encode())
    except MALFORMED as error:
        raise InvalidInputError("the answer holds no certificates") from error
    answer = Answer(
        certificate=certificate,
        coordinator=parse_spiffe_id(found.coordinator),
        coordinator_authority=authority,
        coordinator_signing_key=parse_public_key(found.coordinator_signing_key.encode()),
        log_key=parse_verifier_key(found.log_key),
    )
    federation = answer.node.spiffe_id.federation
    if (
        answer.coordinator.role is not Role.COORDINATOR
        or answer.coordinator.federation != federation
        or answer.log_key.name != log_origin(federation)
    ):
        raise InvalidInputError("the answer mixes nodes, or the log, of several federations")
    return answer


def fingerprint(data: bytes) -> str:
    """SHA-256 of a document, for people to compare."""
    return hashlib.sha256(data).hexdigest()


def for_people(digest: str) -> str:
    """A fingerprint in groups of four, as it is read out."""
    return " ".join(digest[at : at + 4] for at in range(0, len(digest), 4))


def _csr_key(pem: str, spiffe_id: SpiffeId) -> ec.EllipticCurvePublicKey:
    try:
        csr = x509.load_pem_x509_csr(pem.encode())
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        is_signed, key = csr.is_signature_valid, csr.public_key()
    except MALFORMED as error:
        raise InvalidInputError("the request holds no certificate request for a node") from error
    if list(names) != [x509.UniformResourceIdentifier(str(spiffe_id))]:
        raise InvalidInputError(f"the certificate request is not for {spiffe_id}")
    if not is_signed:
        raise _unproved("tls")
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidInputError("the TLS key is not an elliptic-curve key")
    check_curve(key, TLS_CURVES)
    return key


def _check(key: ec.EllipticCurvePublicKey, use: str, proof: str, statement: bytes) -> None:
    try:
        key.verify(_bytes(proof), statement, ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        raise _unproved(use) from error


def _unproved(use: str) -> IntegrityError:
    return IntegrityError(
        f"the request does not prove that its sender holds the {use} key; it was changed on its "
        "way, or put together from others: ask for a new one"
    )


def _statement(body: Mapping[str, Any]) -> bytes:
    return _PROVES + json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _document(table: Mapping[str, Any]) -> bytes:
    return json.dumps(table, indent=2).encode() + b"\n"


_Kind = TypeVar("_Kind", _Request, _Answer)


def _parsed(kind: type[_Kind], data: bytes, what: str) -> _Kind:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InvalidInputError(f"the {what} exceeds {MAX_DOCUMENT_BYTES} bytes")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        problems = problems_in(error, whole="file")
        raise InvalidInputError(f"not an enrolment {what}: {problems}") from error


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidInputError("a proof is not base64") from error


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
