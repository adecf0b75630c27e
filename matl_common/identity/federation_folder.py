"""A federation's authorities and allow-list in the folder of its coordinator's operator.

    coordinator-ca.{crt,key}  participant-ca.{crt,key}   the two authorities
    issued/<node>-<serial>.crt                           every certificate that was issued
    revoked.jsonl                                        who was shut out, when and why
    <coordinator>/                                       a ``NodeFolder``

Whoever can write here decides who belongs to the federation; the coordinator needs its own
folder alone, and the rest is better kept where it is not. Every change is one file replaced
whole, so that the coordinator may follow the allow-list while this is used.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from matl_common.durable import one_at_a_time, write_atomically
from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.allowlist import (
    AllowedNode,
    Allowlist,
    encode_allowlist,
    enrol,
    load_allowlist,
)
from matl_common.identity.certificates import (
    CLOCK_SKEW,
    COORDINATOR_ROLES,
    PARTICIPANT_ROLES,
    CertificateAuthority,
    Role,
    SpiffeId,
    create_authority,
    issue_certificate,
    parse_peer_certificate,
)
from matl_common.identity.enrolling import Answer, Request
from matl_common.identity.installing import put_in_place
from matl_common.identity.keys import (
    TLS_CURVES,
    load_ed25519_private_key,
    load_private_key,
    private_key_pem,
    spki_pin,
)
from matl_common.identity.node_folder import (
    PRIVATE_FOLDER_MODE,
    NodeFolder,
    make_missing_keys,
    write_private_key,
    write_public,
)
from matl_common.identity.revocations import Revoked, read_revoked, refuse_revoked, write_revoked
from matl_common.ids import FederationId, NodeId
from matl_common.signing import load_pem_signer
from matl_common.tlog.checkpoint import log_key
from matl_common.tlog.names import log_origin
from matl_common.tlog.note import VerifierKey, parse_verifier_key

AUTHORITY_VALIDITY = timedelta(days=5 * 365)
CERTIFICATE_VALIDITY = timedelta(days=365)

_COORDINATOR, _PARTICIPANT = "coordinator", "participant"
_ROLES = {_COORDINATOR: COORDINATOR_ROLES, _PARTICIPANT: PARTICIPANT_ROLES}


@dataclass(frozen=True, slots=True)
class Facts:
    """What the operator says about a node; ``None`` leaves what was said before."""

    patients: int | None = None
    label_histogram: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """An enrolled node, with the newest certificate issued for each of its pins."""

    node: AllowedNode
    certificates: Mapping[str, x509.Certificate]


class FederationFolder:
    """The authorities, with their keys in files; owns nothing else."""

    def __init__(self, folder: Path) -> None:
        """Open a folder that ``found`` has made.

        Raises:
            ConfigurationError: it is not one.
        """
        self.folder = folder
        self.coordinator_id = _coordinator_in(folder)

    @property
    def federation(self) -> FederationId:
        """Whose folder it is."""
        return self.coordinator_id.federation

    @property
    def coordinator(self) -> NodeFolder:
        """The coordinator's own files."""
        return NodeFolder(self.folder / self.coordinator_id.node_id)

    @classmethod
    def found(
        cls,
        folder: Path,
        coordinator: SpiffeId,
        *,
        now: datetime,
        authority_validity: timedelta = AUTHORITY_VALIDITY,
        validity: timedelta = CERTIFICATE_VALIDITY,
        server_names: tuple[str, ...] = (),
        remark: str = "",
    ) -> "FederationFolder":
        """Make the authorities, the coordinator's keys, and an allow-list of nobody.

        Raises:
            ConfigurationError: the folder holds something already.
        """
        if folder.exists() and any(folder.iterdir()):
            raise ConfigurationError(f"{folder} is not empty; choose another folder")
        folder.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
        for side, roles in _ROLES.items():
            authority = create_authority(
                f"{coordinator.federation} {side} authority{remark}",
                roles=roles,
                not_before=now - CLOCK_SKEW,
                not_after=now + authority_validity,
            )
            write_public(folder / f"{side}-ca.crt", _pem(authority.certificate))
            write_atomically(folder / f"{side}-ca.key", [private_key_pem(authority.private_key)])
        node = NodeFolder(folder / coordinator.node_id)
        make_missing_keys(node, Role.COORDINATOR)
        log_private_key = load_ed25519_private_key(node.log_key)
        vkey = log_key(log_origin(coordinator.federation), log_private_key.public_key()).vkey
        write_public(node.log_verifier_key, vkey.encode() + b"\n")
        write_public(node.tls.trusted_authority, (folder / f"{_PARTICIPANT}-ca.crt").read_bytes())
        write_public(node.allowlist, encode_allowlist(Allowlist(coordinator.federation, {})))
        key = load_private_key(node.tls.private_key)
        certificate = _issue(
            _authority(folder, _COORDINATOR),
            key.public_key(),
            coordinator,
            now=now,
            validity=validity,
            server_names=server_names,
        )
        write_public(node.tls.certificate_chain, _pem(certificate))
        return cls(folder)

    def allowlist(self) -> Allowlist:
        """Who is enrolled.

        Raises:
            ConfigurationError, InvalidInputError: the file does not tell.
        """
        return load_allowlist(self.coordinator.allowlist)

    def approve(
        self,
        request: Request,
        facts: Facts,
        *,
        now: datetime,
        validity: timedelta = CERTIFICATE_VALIDITY,
        replace_keys: bool = False,
    ) -> Answer:
        """Certify a request's TLS key and enrol its keys, beside a pin that is enrolled already.

        Raises:
            ConfigurationError: it is for another federation, asks for a key that was revoked,
                or brings other keys than are enrolled and ``replace_keys`` is not set; or a
                participant was given no patients.
            InvalidInputError: a key of it is another node's.
        """
        (answer,) = self.approve_all(
            [(request, facts)], now=now, validity=validity, replace_keys=replace_keys
        )
        return answer

    def approve_all(
        self,
        requests: Iterable[tuple[Request, Facts]],
        *,
        now: datetime,
        validity: timedelta = CERTIFICATE_VALIDITY,
        replace_keys: bool = False,
    ) -> tuple[Answer, ...]:
        """Approve several requests, all of them or none.

        Raises:
            ConfigurationError, InvalidInputError: as ``approve``.
        """
        requests = tuple(requests)
        with one_at_a_time(self.folder):
            nodes = dict(self.allowlist().nodes)
            revoked = self.revoked()
            for request, facts in requests:
                self._check(request, revoked)
                node_id = request.spiffe_id.node_id
                known = nodes.get(node_id)
                nodes[node_id] = _enrolled(known, request, facts, replace_keys)
                if gone := _replaced(known, nodes[node_id], now=now):
                    revoked += (gone,)
            after = enrol(self.federation, nodes.values())
            authority = _authority(self.folder, _PARTICIPANT)
            answers = tuple(
                self._answer(
                    _issue(authority, each.tls_key, each.spiffe_id, now=now, validity=validity)
                )
                for each, _ in requests
            )
            for answer in answers:
                self._keep(answer.certificate, answer.node.node_id)
            if revoked != self.revoked():
                write_revoked(self._revoked_file, revoked)
            write_public(self.coordinator.allowlist, encode_allowlist(after))
        return answers

    def _answer(self, certificate: x509.Certificate) -> Answer:
        return Answer(
            certificate=certificate,
            coordinator=self.coordinator_id,
            coordinator_authority=_certificate(self.folder / f"{_COORDINATOR}-ca.crt"),
            coordinator_signing_key=load_pem_signer(self.coordinator.signing_key).public_key,
            log_key=self._log_key(),
        )

    def revoke(
        self, node_id: NodeId, *, reason: str, now: datetime, pin: str | None = None
    ) -> Revoked:
        """Shut a node out with all its keys, or one TLS key of it; they are never approved again.

        Raises:
            ConfigurationError: it is not enrolled, or has no such pin, or no other.
        """
        with one_at_a_time(self.folder):
            return self._revoke(node_id, reason=reason, now=now, pin=pin)

    def _revoke(self, node_id: NodeId, *, reason: str, now: datetime, pin: str | None) -> Revoked:
        before = self.allowlist()
        node = before.lookup(node_id)
        if node is None:
            raise ConfigurationError(f"{node_id} is not enrolled")
        if pin is not None and pin not in node.pins:
            raise ConfigurationError(f"{node_id} has no pin {pin}; matl pki list shows them")
        whole = pin is None
        gone = node.pins if pin is None else frozenset({pin})
        if not whole and gone == node.pins:
            raise ConfigurationError(f"{pin} is the only pin of {node_id}; revoke the node")
        revoked = Revoked(node_id, gone, whole, reason, now)
        if whole:
            revoked = replace(
                revoked, signing_key=node.signing_keyid, witness_key=node.witness_keyid
            )
        kept = [each for each in before.nodes.values() if each.node_id != node_id]
        if not whole:
            kept.append(replace(node, pins=node.pins - gone))
        # On record first: a crash in between leaves a key refused that is still enrolled.
        write_revoked(self._revoked_file, (*self.revoked(), revoked))
        write_public(self.coordinator.allowlist, encode_allowlist(enrol(self.federation, kept)))
        return revoked

    def renew(
        self,
        *,
        now: datetime,
        validity: timedelta = CERTIFICATE_VALIDITY,
        new_key: bool = False,
        server_names: tuple[str, ...] = (),
    ) -> x509.Certificate:
        """Issue the coordinator's certificate anew, for its key or a new one, and put it in place.

        Raises:
            ConfigurationError: a key or certificate of the folder is missing, or the key was
                revoked as a node's.
        """
        with one_at_a_time(self.folder):
            return self._renew(
                now=now, validity=validity, new_key=new_key, server_names=server_names
            )

    def _renew(
        self, *, now: datetime, validity: timedelta, new_key: bool, server_names: tuple[str, ...]
    ) -> x509.Certificate:
        node = self.coordinator
        if new_key:
            write_private_key(node.next_tls_key)
        path = node.next_tls_key if node.next_tls_key.exists() else node.tls.private_key
        key = load_private_key(path, curves=TLS_CURVES).public_key()
        refuse_revoked({"TLS key": spki_pin(key)}, self.revoked())
        certificate = _issue(
            _authority(self.folder, _COORDINATOR),
            key,
            self.coordinator_id,
            now=now,
            validity=validity,
            server_names=server_names or _served(_certificate(node.tls.certificate_chain)),
        )
        put_in_place(node, certificate)
        return certificate

    def listed(self) -> tuple[Listed, ...]:
        """Every enrolled node, by name.

        Raises:
            ConfigurationError, InvalidInputError: a file does not tell.
        """
        issued: dict[str, x509.Certificate] = {}
        for path in sorted(self.folder.glob("issued/*.crt")):
            certificate = _certificate(path)
            known = issued.get(spki_pin(certificate))
            if known is None or known.not_valid_after_utc < certificate.not_valid_after_utc:
                issued[spki_pin(certificate)] = certificate
        return tuple(
            Listed(node, {pin: issued[pin] for pin in sorted(node.pins) if pin in issued})
            for _, node in sorted(self.allowlist().nodes.items())
        )

    def revoked(self) -> tuple[Revoked, ...]:
        """Whom this folder has shut out, oldest first.

        Raises:
            ConfigurationError: the file is damaged.
        """
        return read_revoked(self._revoked_file)

    def _check(self, request: Request, revoked: tuple[Revoked, ...]) -> None:
        found = request.spiffe_id
        if found.federation != self.federation:
            raise ConfigurationError(
                f"the request is for federation {found.federation}, this is {self.federation}"
            )
        if found.node_id == self.coordinator_id.node_id:
            raise ConfigurationError(f"{found.node_id} is the coordinator's own name")
        refuse_revoked(request.keyids, revoked)

    def _keep(self, certificate: x509.Certificate, node_id: NodeId) -> None:
        folder = self.folder / "issued"
        folder.mkdir(exist_ok=True, mode=PRIVATE_FOLDER_MODE)
        path = folder / f"{node_id}-{certificate.serial_number:x}.crt"
        write_public(path, _pem(certificate))

    def _log_key(self) -> VerifierKey:
        return parse_verifier_key(self.coordinator.log_verifier_key.read_text("utf-8").strip())

    @property
    def _revoked_file(self) -> Path:
        return self.folder / "revoked.jsonl"


def _enrolled(
    known: AllowedNode | None,
    request: Request,
    facts: Facts,
    replace_keys: bool,  # noqa: FBT001 - internal
) -> AllowedNode:
    pin, spiffe_id = spki_pin(request.tls_key), request.spiffe_id
    node = AllowedNode(
        node_id=spiffe_id.node_id,
        role=spiffe_id.role,
        pins=frozenset({pin}),
        signing_key=request.signing_key,
        enrolled_patients=facts.patients or 0,
        label_histogram=facts.label_histogram,
        witness_key=request.witness_key,
    )
    if known is not None:
        changed = [
            name
            for name in ("role", "signing_key", "witness_key")
            if getattr(known, name) != getattr(node, name)
        ]
        if changed and not replace_keys:
            raise ConfigurationError(
                f"{node.node_id} is enrolled with another {' and '.join(changed)}; make sure that "
                "the hospital means it, then approve with --replace-keys"
            )
        node = replace(
            node,
            pins=node.pins | known.pins,
            enrolled_patients=known.enrolled_patients if facts.patients is None else facts.patients,
            label_histogram=facts.label_histogram or known.label_histogram,
        )
    if node.role is Role.PARTICIPANT and node.enrolled_patients < 1:
        raise ConfigurationError(
            f"say how many patients {node.node_id} has enrolled (--patients): they weigh it"
        )
    return node


def _replaced(before: AllowedNode | None, after: AllowedNode, *, now: datetime) -> Revoked | None:
    """The keys that others took the place of; one that was only left out may come back."""
    if before is None:
        return None
    signing = before.signing_keyid if before.signing_keyid != after.signing_keyid else None
    is_other = after.witness_keyid not in {None, before.witness_keyid}
    witness = before.witness_keyid if is_other else None
    if signing is None and witness is None:
        return None
    return Revoked(after.node_id, frozenset(), False, "replaced", now, signing, witness)


def _coordinator_in(folder: Path) -> SpiffeId:
    try:
        (path,) = (each.parent for each in folder.glob("*/allowlist.toml"))
        pem = NodeFolder(path).tls.certificate_chain.read_bytes()
        found = parse_peer_certificate(pem).spiffe_id
    except (OSError, ValueError, InvalidInputError) as error:
        raise ConfigurationError(
            f"{folder} is not a federation's folder; matl pki init makes one"
        ) from error
    return found


def _authority(folder: Path, side: str) -> CertificateAuthority:
    certificate = _certificate(folder / f"{side}-ca.crt")
    key = load_private_key(folder / f"{side}-ca.key")
    if spki_pin(certificate) != spki_pin(key):
        raise ConfigurationError(f"{side}-ca.crt and {side}-ca.key in {folder} do not fit")
    return CertificateAuthority(certificate, key, _ROLES[side])


def _issue(
    authority: CertificateAuthority,
    key: ec.EllipticCurvePublicKey,
    spiffe_id: SpiffeId,
    *,
    now: datetime,
    validity: timedelta,
    server_names: tuple[str, ...] = (),
) -> x509.Certificate:
    issuer = authority.certificate
    if now >= issuer.not_valid_after_utc:
        raise ConfigurationError(
            f"the authority's certificate expired on {issuer.not_valid_after_utc:%Y-%m-%d}"
        )
    return issue_certificate(
        authority,
        key,
        spiffe_id,
        not_before=max(now - CLOCK_SKEW, issuer.not_valid_before_utc),
        # One that outlives its authority would be refused then without a word of warning.
        not_after=min(now + validity, issuer.not_valid_after_utc),
        server_names=server_names,
    )


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read a certificate from {path}") from error


def _served(certificate: x509.Certificate) -> tuple[str, ...]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        *names.get_values_for_type(x509.DNSName),
        *map(str, names.get_values_for_type(x509.IPAddress)),
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
