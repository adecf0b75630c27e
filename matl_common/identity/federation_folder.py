"""A federation's authorities and allow-list in the folder of its coordinator's operator.

    coordinator-ca.crt  participant-ca.crt  and .key     the two authorities
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
from cryptography.hazmat.primitives.serialization import Encoding

from matl_common.durable import one_at_a_time
from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.allowlist import (
    AllowedNode,
    Allowlist,
    encode_allowlist,
    enrol,
    load_allowlist,
)
from matl_common.identity.authorities import (
    AUTHORITY_VALIDITY,
    CERTIFICATE_VALIDITY,
    COORDINATOR_SIDE,
    PARTICIPANT_SIDE,
    SIDES,
    is_rooted_in_token,
    issue,
    load_authority,
    make_authority,
    names_served,
    read_certificate,
)
from matl_common.identity.certificates import (
    CLOCK_SKEW,
    Role,
    SpiffeId,
    parse_peer_certificate,
)
from matl_common.identity.enrolling import Answer, Request
from matl_common.identity.ephemeral import coordinator_of, create_node_authority
from matl_common.identity.held_keys import load_ed25519_key, load_p256_key
from matl_common.identity.installing import put_in_place
from matl_common.identity.keys import (
    TLS_CURVES,
    load_private_key,
    parse_public_key,
    public_key_pem,
    spki_pin,
)
from matl_common.identity.node_folder import (
    NO_TOKEN,
    PRIVATE_FOLDER_MODE,
    NodeFolder,
    TokenKeys,
    make_missing_keys,
    write_private_key,
    write_public,
)
from matl_common.identity.pkcs11.uri import TokenUri
from matl_common.identity.revocations import Revoked, read_revoked, refuse_revoked, write_revoked
from matl_common.ids import FederationId, NodeId
from matl_common.tlog.checkpoint import log_key
from matl_common.tlog.names import log_origin
from matl_common.tlog.note import VerifierKey, parse_verifier_key


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
    """The authorities, where their keys are in files, and who is enrolled; owns nothing else."""

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
        validity: timedelta | None = None,
        server_names: tuple[str, ...] = (),
        tokens: TokenKeys = NO_TOKEN,
        remark: str = "",
    ) -> "FederationFolder":
        """Make the authorities, the coordinator's keys, and an allow-list of nobody.

        Keys in ``tokens`` are there already, and what others need to know of them is written; a
        TLS key among them is the coordinators' authority itself.

        Args:
            folder: empty, or to be made.
            coordinator: its name.
            now: aware.
            authority_validity: of both authorities.
            validity: of the coordinator's certificate; by default ``CERTIFICATE_VALIDITY``, and
                the authorities' for a TLS key in a token, which is one.
            server_names: further DNS names or IP addresses of the coordinator.
            tokens: its keys that are in a token.
            remark: at the end of the authorities' names.

        Raises:
            ConfigurationError: the folder holds something already, or a key in a token is not as
                configured or serves two uses.
            TokenError: a token cannot be reached.
        """
        if folder.exists() and any(folder.iterdir()):
            raise ConfigurationError(f"{folder} is not empty; choose another folder")
        tokens.check()
        folder.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
        begin, end = now - CLOCK_SKEW, now + authority_validity
        for side in SIDES if tokens.tls is None else (PARTICIPANT_SIDE,):
            name = f"{coordinator.federation} {side} authority{remark}"
            make_authority(folder, side, name, not_before=begin, not_after=end)
        node = NodeFolder(folder / coordinator.node_id)
        make_missing_keys(node, Role.COORDINATOR, elsewhere=tokens.files_of(node))
        if tokens.signing is not None:
            signing = load_p256_key(tokens.signing).public_key
            write_public(node.signing_public_key, public_key_pem(signing))
        log = load_ed25519_key(tokens.log or node.log_key).public_key
        vkey = log_key(log_origin(coordinator.federation), log).vkey
        write_public(node.log_verifier_key, vkey.encode() + b"\n")
        write_public(
            node.tls.trusted_authority, (folder / f"{PARTICIPANT_SIDE}-ca.crt").read_bytes()
        )
        write_public(node.allowlist, encode_allowlist(Allowlist(coordinator.federation, {})))
        if tokens.tls is None:
            certificate = issue(
                load_authority(folder, COORDINATOR_SIDE),
                load_private_key(node.tls.private_key).public_key(),
                coordinator,
                now=now,
                validity=validity or CERTIFICATE_VALIDITY,
                server_names=server_names,
            )
        else:
            certificate = create_node_authority(
                tokens.tls,
                coordinator,
                not_before=begin,
                not_after=end if validity is None else now + validity,
                server_names=server_names,
            )
            write_public(folder / f"{COORDINATOR_SIDE}-ca.crt", _pem(certificate))
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
            authority = load_authority(self.folder, PARTICIPANT_SIDE)
            answers = tuple(
                self._answer(
                    issue(authority, each.tls_key, each.spiffe_id, now=now, validity=validity)
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
            coordinator_authority=read_certificate(self.folder / f"{COORDINATOR_SIDE}-ca.crt"),
            coordinator_signing_key=parse_public_key(
                self.coordinator.signing_public_key.read_bytes()
            ),
            log_key=self._log_key(),
        )

    def revoke(
        self, node_id: NodeId, *, reason: str, now: datetime, pin: str | None = None
    ) -> Revoked:
        """Shut a node out with all its keys, or one TLS key of it; they are never approved again.

        Raises:
            ConfigurationError: it is not enrolled, or has no such pin, or no other; or it is the
                coordinator.
        """
        with one_at_a_time(self.folder):
            return self._revoke(node_id, reason=reason, now=now, pin=pin)

    def _revoke(self, node_id: NodeId, *, reason: str, now: datetime, pin: str | None) -> Revoked:
        before = self.allowlist()
        node = before.lookup(node_id)
        if node_id == self.coordinator_id.node_id:
            raise ConfigurationError(
                f"{node_id} is the coordinator, whom hospitals know by its authority and name, not "
                "by a pin; a new authority shuts its old keys out: matl pki renew --new-authority, "
                'and "The coordinator\'s key was stolen" in docs/certificates.md'
            )
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
        new_authority: bool = False,
        server_names: tuple[str, ...] = (),
    ) -> x509.Certificate:
        """Issue the coordinator's certificate anew, for its key or a new one, and put it in place.

        Under a new authority, always for a new key, it is trusted by those alone who got that
        authority with an answer; what the one before has certified, by nobody who did.

        Raises:
            ConfigurationError: a key or certificate of the folder is missing, the key was revoked
                as a node's, or it is in a token.
        """
        with one_at_a_time(self.folder):
            if self.rooted_in_token:
                raise ConfigurationError(
                    "the coordinator's TLS key is in a token, from which the coordinator renews "
                    "its certificate by itself; name the key with --tls-key to make the "
                    "authority's certificate anew"
                )
            if new_authority:
                make_authority(
                    self.folder,
                    COORDINATOR_SIDE,
                    f"{self.federation} {COORDINATOR_SIDE} authority {now:%Y-%m-%d}",
                    not_before=now - CLOCK_SKEW,
                    not_after=now + AUTHORITY_VALIDITY,
                )
            return self._renew(
                now=now,
                validity=validity,
                new_key=new_key or new_authority,
                server_names=server_names,
            )

    def renew_in_token(
        self,
        key: TokenUri,
        *,
        now: datetime,
        validity: timedelta = AUTHORITY_VALIDITY,
        server_names: tuple[str, ...] = (),
    ) -> x509.Certificate:
        """Make the certificate of the authority that is the coordinator's key in a token anew.

        Raises:
            ConfigurationError: the authority is another key.
            TokenError: the token cannot be used.
        """
        with one_at_a_time(self.folder):
            path = self.folder / f"{COORDINATOR_SIDE}-ca.crt"
            before = read_certificate(path)
            certificate = create_node_authority(
                key,
                self.coordinator_id,
                not_before=now - CLOCK_SKEW,
                not_after=now + validity,
                server_names=server_names or names_served(before),
            )
            if spki_pin(certificate) != spki_pin(before):
                raise ConfigurationError(
                    f"hospitals trust another key than {key} as the coordinator's authority; "
                    "for a new one, see 'New authority' in docs/certificates.md"
                )
            write_public(path, _pem(certificate))
            write_public(self.coordinator.tls.certificate_chain, _pem(certificate))
            return certificate

    @property
    def rooted_in_token(self) -> bool:
        """Whether the coordinators' authority is the coordinator's own key, in a token."""
        return is_rooted_in_token(self.folder, self.coordinator)

    def _renew(
        self, *, now: datetime, validity: timedelta, new_key: bool, server_names: tuple[str, ...]
    ) -> x509.Certificate:
        node = self.coordinator
        if new_key:
            write_private_key(node.next_tls_key)
        path = node.next_tls_key if node.next_tls_key.exists() else node.tls.private_key
        key = load_private_key(path, curves=TLS_CURVES).public_key()
        refuse_revoked({"TLS key": spki_pin(key)}, self.revoked())
        certificate = issue(
            load_authority(self.folder, COORDINATOR_SIDE),
            key,
            self.coordinator_id,
            now=now,
            validity=validity,
            server_names=server_names or names_served(read_certificate(node.tls.certificate_chain)),
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
            certificate = read_certificate(path)
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
        if is_rooted_in_token(folder, NodeFolder(path)):
            return coordinator_of(x509.load_pem_x509_certificate(pem))[0]
        return parse_peer_certificate(pem).spiffe_id
    except (OSError, ValueError, ConfigurationError, InvalidInputError) as error:
        raise ConfigurationError(
            f"{folder} is not a federation's folder; matl pki init makes one"
        ) from error


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
