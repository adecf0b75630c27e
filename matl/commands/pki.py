"""``matl pki`` and ``matl keygen``: who belongs to a federation, and by which keys.

Works on files alone; no coordinator is asked, and a running one follows what is written here.
No private key is ever read by another machine than the one it was made on.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from cryptography.hazmat.primitives.serialization import Encoding

from matl.terminal import console, errors_in_one_line, print_json, printable, table
from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.authorities import AUTHORITY_VALIDITY, CERTIFICATE_VALIDITY
from matl_common.identity.certificates import CLOCK_SKEW, Role, SpiffeId
from matl_common.identity.enrolling import (
    MAX_DOCUMENT_BYTES,
    Keys,
    fingerprint,
    for_people,
    make_answer,
    make_request,
    parse_answer,
    parse_request,
)
from matl_common.identity.ephemeral import create_node_authority
from matl_common.identity.federation_folder import Facts, FederationFolder
from matl_common.identity.held_keys import KeyKind, generate_key, load_tls_key
from matl_common.identity.installing import install
from matl_common.identity.key_places import parse_key_place
from matl_common.identity.keys import spki_pin
from matl_common.identity.node_folder import (
    PUBLIC_MODE,
    NodeFolder,
    TokenKeys,
    keys_at,
    keys_in,
    make_keys_anew,
    make_missing_keys,
    write_private_key,
    write_public,
)
from matl_common.identity.pkcs11.uri import TokenUri, parse_token_uri
from matl_common.ids import parse_digest, parse_federation_id, parse_node_id

pki_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Enrol nodes, renew and revoke their keys. A hospital's private keys never leave its "
    "machine.",
)

SOFTWARE_HELD: Final = "software-held: whoever can read the file has the key"

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Yes = Annotated[
    bool,
    typer.Option("--yes", help="The fingerprint was compared already; do not ask. For scripts."),
]
Federation = Annotated[
    Path,
    typer.Option("--folder", "-f", help="The federation's folder, which `matl pki init` made."),
]
NodeFolderOption = Annotated[
    Path, typer.Option("--folder", "-f", help="The node's own folder, with its keys.")
]
Days = Annotated[int, typer.Option(min=1, max=3660, help="How long the certificate is valid.")]
CoordinatorDays = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=3660,
        help="How long the coordinator's certificate is valid. Default: 365; five years for a TLS "
        "key in a token, whose certificate is an authority's.",
    ),
]
ServerName = Annotated[
    list[str] | None,
    typer.Option("--server-name", help="A further DNS name or IP address of the coordinator."),
]


TokenKey = Annotated[
    str | None, typer.Option(help="The `pkcs11:` URI of a key in a token, not one in the folder.")
]


class Client(StrEnum):
    """Whom a request can be for."""

    PARTICIPANT = "participant"
    OPERATOR = "operator"


def keygen(
    place: Annotated[
        str,
        typer.Argument(metavar="PLACE", help="A file or a `pkcs11:` URI; it must not exist."),
    ],
    *,
    kind: Annotated[
        KeyKind,
        typer.Option(
            help="`p256` for TLS and for signing updates, `p384` for TLS alone, `ed25519` for a "
            "log or its witness."
        ),
    ] = KeyKind.P256,
    as_json: Json = False,
) -> None:
    """Make one private key, in a file that its owner alone can read or in a token.

    A node needs a key for each use. `matl pki init` and `matl pki request` make those that are
    missing, so this is for replacing one of them: move the old file away first.
    """
    with errors_in_one_line():
        where = parse_key_place(place)
        key = generate_key(where, kind)
    facts = {
        "uri" if isinstance(where, TokenUri) else "file": str(where),
        "kind": kind.value,
        "held": key.holder if isinstance(where, TokenUri) else SOFTWARE_HELD,
        "pin": key.keyid,
    }
    _say(facts, as_json=as_json)


@pki_app.command()
def authority(
    *,
    key: Annotated[
        str, typer.Option(help="The coordinator's key: its `pkcs11:` URI in a token, or its file.")
    ],
    federation: Annotated[str, typer.Option(help="The federation's name, such as dr-study.")],
    coordinator: Annotated[str, typer.Option(help="The coordinator's name.")] = "coordinator",
    out: Annotated[Path, typer.Option(help="Where the certificate goes.")],
    days: Days = 3650,
    server_name: ServerName = None,
    as_json: Json = False,
) -> None:
    """Make a coordinator's key, in a token or a file, the authority that hospitals trust.

    The certificate is the coordinator's `tls_certificate` and every hospital's `authority`. While
    it runs, the coordinator certifies a key in its memory with it, for a day at a time.
    """
    with errors_in_one_line((ConfigurationError, InvalidInputError)):
        name = SpiffeId(
            parse_federation_id(federation), Role.COORDINATOR, parse_node_id(coordinator)
        )
        now = _now()
        certificate = create_node_authority(
            parse_key_place(key),
            name,
            not_before=now - CLOCK_SKEW,
            not_after=now + timedelta(days=days),
            server_names=tuple(server_name or ()),
        )
        write_public(_target(out, ""), certificate.public_bytes(Encoding.PEM))
    _say({"file": str(out), "for": str(name), "pin": spki_pin(certificate)}, as_json=as_json)


@pki_app.command()
def init(
    *,
    folder: Annotated[Path, typer.Option("--folder", "-f", help="To be made; empty or absent.")],
    federation: Annotated[str, typer.Option(help="The federation's name, such as dr-study.")],
    coordinator: Annotated[str, typer.Option(help="The coordinator's name.")] = "coordinator",
    days: CoordinatorDays = None,
    server_name: ServerName = None,
    tls_key: TokenKey = None,
    signing_key: TokenKey = None,
    log_key: TokenKey = None,
    as_json: Json = False,
) -> None:
    """Make a federation: two authorities, the coordinator's keys, and an allow-list of nobody.

    Run it at the coordinator's operator, once. One authority certifies coordinators, the other
    participants and operators, and neither can stand for the other. The coordinator's own folder
    goes to its machine; the two `-ca.key` files need not, and are better kept where they are not.

    Then a hospital runs `matl pki request`, you run `matl pki approve`, and it `matl pki install`.

    Keys of the coordinator that `matl keygen` has made in a token are named with `--tls-key`,
    `--signing-key` and `--log-key`; hospitals get the public ones with their answers. A TLS key
    in a token is itself the authority that certifies the coordinator.
    """
    with errors_in_one_line((ConfigurationError, InvalidInputError)):
        name = SpiffeId(
            parse_federation_id(federation), Role.COORDINATOR, parse_node_id(coordinator)
        )
        uris = {"TLS": tls_key, "signing": signing_key, "log": log_key}
        places = {use: None if uri is None else parse_token_uri(uri) for use, uri in uris.items()}
        tokens = TokenKeys(places["TLS"], places["signing"], places["log"])
        made = FederationFolder.found(
            folder,
            name,
            now=_now(),
            validity=None if days is None else timedelta(days=days),
            server_names=tuple(server_name or ()),
            tokens=tokens,
        )
    facts = {
        "federation": name.federation,
        "coordinator": str(name),
        "folder": str(made.coordinator.folder),
        "allowlist": str(made.coordinator.allowlist),
        "keys": {
            use: SOFTWARE_HELD if uri is None else f"in the token of {uri}"
            for use, uri in places.items()
        },
    }
    _say(facts, as_json=as_json)


@pki_app.command()
def request(
    *,
    folder: NodeFolderOption,
    federation: Annotated[str, typer.Option(help="The federation's name.")],
    node: Annotated[str, typer.Option(help="This node's name in it, such as hospital_b.")],
    role: Annotated[Client, typer.Option(help="What it takes part as.")] = Client.PARTICIPANT,
    new_key: Annotated[
        bool,
        typer.Option(
            "--new-key",
            help="Ask for a new TLS key, made beside the one in use; without it, for the key "
            "in use.",
        ),
    ] = False,
    replace_keys: Annotated[
        bool,
        typer.Option(
            "--replace-keys",
            help="Make all keys anew, TLS, signing and witness, beside those in use: after a "
            "theft, or for another signing or witness key.",
        ),
    ] = False,
    tls_key: TokenKey = None,
    signing_key: TokenKey = None,
    witness_key: TokenKey = None,
    out: Annotated[Path | None, typer.Option(help="Default: NODE.request.json here.")] = None,
    as_json: Json = False,
) -> None:
    """Ask to be enrolled, or for another certificate. Run it at the hospital.

    Makes the keys that are missing in the folder, and a request: public keys, and a signature by
    each that proves you hold it. Send the file to the coordinator's operator, and read the
    fingerprint to each other over a line that you trust; nothing else shows that nobody
    exchanged the request on its way.

    Run it again before the certificate ends: the daemon takes the new one without a restart.

    With `--tls-key`, `--signing-key` and `--witness-key` the keys stay in their token, where
    `matl keygen` has made them; the folder then gets no private key.

    New keys are used from `matl pki install` on. A daemon reads a TLS key again by itself, others
    at its next start.
    """
    with errors_in_one_line((ConfigurationError, InvalidInputError)):
        name = SpiffeId(parse_federation_id(federation), Role(role), parse_node_id(node))
        path = _target(out, f"{name.node_id}.request.json")
        if new_key and replace_keys:
            raise ConfigurationError("--replace-keys makes a new TLS key, too; leave out --new-key")
        if tls_key or signing_key or witness_key:
            if new_key or replace_keys:
                raise ConfigurationError(
                    "make new keys in a token with matl keygen, and name them here"
                )
            keys, held = _in_token(name, tls_key, signing_key, witness_key)
            made: tuple[Path, ...] = ()
        else:
            mine = NodeFolder(folder)
            keys, made = (
                _made_anew(mine, name) if replace_keys else _in_folder(mine, name, new_key=new_key)
            )
            held = SOFTWARE_HELD
        document = make_request(name, keys)
        write_atomically(path, [document], mode=PUBLIC_MODE)
        found = parse_request(document).fingerprint
    facts = {
        "request": str(path),
        "node": str(name),
        "fingerprint": for_people(found),
        "keys made": [str(each) for each in made],
        "keys": held,
    }
    _say(facts, as_json=as_json)


def _in_folder(mine: NodeFolder, name: SpiffeId, *, new_key: bool) -> tuple[Keys, tuple[Path, ...]]:
    made = make_missing_keys(mine, name.role)
    if new_key and not mine.next_tls_key.exists():
        write_private_key(mine.next_tls_key)
        made = (*made, mine.next_tls_key)
    return keys_in(mine, name, next_tls_key=new_key), made


def _made_anew(mine: NodeFolder, name: SpiffeId) -> tuple[Keys, tuple[Path, ...]]:
    made = make_keys_anew(mine, name.role)
    return keys_in(mine.next, name), made


def _in_token(
    name: SpiffeId, tls_key: str | None, signing_key: str | None, witness_key: str | None
) -> tuple[Keys, str]:
    if tls_key is None or signing_key is None:
        raise ConfigurationError("keys in a token need both --tls-key and --signing-key")
    tls = parse_token_uri(tls_key)
    keys = keys_at(
        name,
        tls=tls,
        signing=parse_token_uri(signing_key),
        witness=None if witness_key is None else parse_token_uri(witness_key),
    )
    return keys, load_tls_key(tls).holder


@pki_app.command()
def approve(
    path: Annotated[Path, typer.Argument(metavar="REQUEST", help="The file that was sent.")],
    *,
    folder: Federation,
    patients: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Enrolled patients, which weigh a participant. Needed at first; later the number "
            "known is kept.",
        ),
    ] = None,
    histogram: Annotated[
        str | None, typer.Option(help="Of these, patients of grades 0 to 4: n,n,n,n,n.")
    ] = None,
    days: Days = 365,
    replace_keys: Annotated[
        bool,
        typer.Option(
            "--replace-keys",
            help="The node has a new signing or witness key, or another role. Keys that others "
            "take the place of are never enrolled again.",
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Default: NODE.answer.json here.")] = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Enrol a node, or renew its certificate. Run it at the coordinator's operator.

    Checks every proof in the request, shows its fingerprint for you to compare with the hospital,
    then certifies its TLS key, adds it to the allow-list (the other entries stay as they are) and
    writes an answer to send back. A running coordinator lets the node in within seconds.

    A key that replaces another is listed beside it. Once the hospital uses the new one, shut the
    old one out: `matl pki revoke NODE --pin PIN --reason replaced`.
    """
    with errors_in_one_line((ConfigurationError, InvalidInputError)):
        federation = FederationFolder(folder)
        found = parse_request(_read(path))
        target = _target(out, f"{found.spiffe_id.node_id}.answer.json")
        _compare(f"Request of {found.spiffe_id}", found.fingerprint, yes=yes)
        answer = federation.approve(
            found,
            Facts(patients, _histogram(histogram)),
            now=_now(),
            validity=timedelta(days=days),
            replace_keys=replace_keys,
        )
        document = make_answer(answer)
        write_atomically(target, [document], mode=PUBLIC_MODE)
    facts = {
        "answer": str(target),
        "node": str(found.spiffe_id),
        "pin": answer.node.pin,
        "valid until": answer.node.not_after.isoformat(),
        "fingerprint": for_people(fingerprint(document)),
    }
    _say(facts, as_json=as_json)


@pki_app.command("install")
def install_command(
    path: Annotated[Path, typer.Argument(metavar="ANSWER", help="The file that came back.")],
    *,
    folder: NodeFolderOption,
    tls_key: TokenKey = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Put an answer in place. Run it at the hospital.

    Refuses a certificate for another key than the folder's. The answer says whom to trust as the
    coordinator: compare its fingerprint with the operator, as for the request. A running daemon
    uses the new certificate at its next call.
    """
    with errors_in_one_line((ConfigurationError, InvalidInputError)):
        document = _read(path)
        answer = parse_answer(document)
        _compare(f"Answer for {answer.node.spiffe_id}", fingerprint(document), yes=yes)
        uri = None if tls_key is None else parse_token_uri(tls_key)
        node = install(NodeFolder(folder), answer, now=_now(), tls_key=uri)
    facts = {
        "node": str(node.spiffe_id),
        "coordinator": str(answer.coordinator),
        "pin": node.pin,
        "valid until": node.not_after.isoformat(),
        "folder": str(folder),
    }
    _say(facts, as_json=as_json)


@pki_app.command()
def renew(
    *,
    folder: Federation,
    new_key: Annotated[bool, typer.Option("--new-key", help="Also replace its TLS key.")] = False,
    new_authority: Annotated[
        bool,
        typer.Option(
            "--new-authority",
            help="After a theft: also replace its TLS key and the coordinators' authority. "
            "Every hospital and operator needs another answer.",
        ),
    ] = False,
    tls_key: TokenKey = None,
    days: CoordinatorDays = None,
    server_name: ServerName = None,
    as_json: Json = False,
) -> None:
    """Renew the coordinator's certificate, in its folder. Hospitals notice nothing.

    A hospital's is renewed by another `matl pki request` and `matl pki approve`. A running
    coordinator shows the new certificate to new connections within seconds.

    With `--tls-key` it is the authority's certificate that is made anew, for the key in a token
    that the authority is. Hospitals get it with their next answers.

    The certificate of a stolen TLS key stays valid beside the new one, because hospitals trust the
    authority and the name: `--new-authority` shuts it out of each node that has the next answer.
    """
    with errors_in_one_line((ConfigurationError, InvalidInputError)):
        federation = FederationFolder(folder)
        if tls_key is None:
            certificate = federation.renew(
                now=_now(),
                validity=CERTIFICATE_VALIDITY if days is None else timedelta(days=days),
                new_key=new_key,
                new_authority=new_authority,
                server_names=tuple(server_name or ()),
            )
        elif new_key or new_authority:
            raise ConfigurationError(
                "a key in a token is not replaced by --new-key or --new-authority; leave it out"
            )
        else:
            certificate = federation.renew_in_token(
                parse_token_uri(tls_key),
                now=_now(),
                validity=AUTHORITY_VALIDITY if days is None else timedelta(days=days),
                server_names=tuple(server_name or ()),
            )
    facts = {
        "node": str(federation.coordinator_id),
        "pin": spki_pin(certificate),
        "valid until": certificate.not_valid_after_utc.isoformat(),
        "certificate": str(federation.coordinator.tls.certificate_chain),
    }
    _say(facts, as_json=as_json)


@pki_app.command()
def revoke(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node, as enrolled.")],
    *,
    folder: Federation,
    reason: Annotated[str, typer.Option(help="Why; it is kept, and shown by `matl pki list`.")],
    pin: Annotated[
        str | None,
        typer.Option(help="Shut out this TLS key only, such as one that was replaced."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Shut a node out, or one of its TLS keys. Run it at the coordinator's operator.

    A running coordinator ends its calls within 5 seconds, and what it sent in a round that was
    not scored does not count. The other hospitals notice nothing. None of its keys, TLS, signing
    and witness, is ever approved again, under whatever name; to let the node in once more,
    approve a request made with `--replace-keys`.
    """
    with errors_in_one_line((ConfigurationError, InvalidInputError)):
        federation = FederationFolder(folder)
        revoked = federation.revoke(
            parse_node_id(node),
            reason=reason,
            now=_now(),
            pin=None if pin is None else parse_digest(pin),
        )
    facts = {
        "node": revoked.node_id,
        "revoked": "the node" if revoked.whole else "one key",
        "pins": sorted(revoked.pins),
        "signing key": revoked.signing_key,
        "witness key": revoked.witness_key,
        "reason": revoked.reason,
        "allowlist": str(federation.coordinator.allowlist),
    }
    _say(facts, as_json=as_json)


@pki_app.command("list")
def list_command(
    node: Annotated[
        str | None, typer.Argument(metavar="[NODE]", help="Only this node. Default: all.")
    ] = None,
    *,
    folder: Federation,
    as_json: Json = False,
) -> None:
    """List who is enrolled, by which keys and until when, and who was revoked."""
    with errors_in_one_line((ConfigurationError, InvalidInputError)):
        federation = FederationFolder(folder)
        only = None if node is None else parse_node_id(node)
        gone = [each for each in federation.revoked() if only in {None, each.node_id}]
        rows = [
            {
                "node": each.node.node_id,
                "role": each.node.role.value,
                "patients": each.node.enrolled_patients,
                "pin": pin,
                "valid_until": _until(each.certificates.get(pin)),
                "signing_key": each.node.signing_keyid,
                "witness": each.node.witness_key is not None,
            }
            for each in federation.listed()
            if only in {None, each.node.node_id}
            for pin in sorted(each.node.pins)
        ]
        revoked = [
            {
                "node": each.node_id,
                "pins": sorted(each.pins),
                "signing_key": each.signing_key,
                "witness_key": each.witness_key,
                "at": each.at.isoformat(timespec="seconds"),
                "reason": each.reason,
            }
            for each in gone
        ]
        if only is not None and not rows and not gone:
            raise ConfigurationError(
                f"{only} is not enrolled, nor was it; leave out the name to see who is"
            )
    if as_json:
        print_json({"enrolled": rows, "revoked": revoked})
        return
    headings = ("node", "role", "patients", "pin", "valid until", "signing key", "witness")
    console().print(table(headings, [[_cell(cell) for cell in row.values()] for row in rows]))
    if gone:
        console().print(
            table(
                ("revoked", "TLS", "signing", "witness", "at", "reason"),
                [
                    (
                        each.node_id,
                        _as_refused(*sorted(each.pins)),
                        _as_refused(each.signing_key),
                        _as_refused(each.witness_key),
                        f"{each.at:%Y-%m-%d %H:%M} UTC",
                        each.reason,
                    )
                    for each in gone
                ],
            )
        )


def _as_refused(*keyids: str | None) -> str:
    """Keys as ``approve`` names them when it refuses one."""
    return " ".join(each[:16] for each in keyids if each is not None) or "none"


def _until(certificate: Any) -> str:
    if certificate is None:
        return "unknown: issued elsewhere"
    return f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"


def _cell(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return " ".join(map(str, value)) or "none"
        case dict():
            return "; ".join(f"{key}: {each}" for key, each in value.items())
        case None:
            return "none"
        case _:
            return str(value)


def _say(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json({key.replace(" ", "_"): value for key, value in facts.items()})
    else:
        console().print(table(None, [(key, _cell(value)) for key, value in facts.items()]))


def _compare(what: str, digest: str, *, yes: bool) -> None:
    if yes:
        return
    typer.echo(f"{printable(what)}\n  {for_people(digest)}", err=True)
    question = "Does the other side, over a line that you trust, read out the same?"
    if not typer.confirm(question, err=True):
        raise ConfigurationError("the fingerprints differ, or were not compared; nothing was done")


def _histogram(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(each) for each in text.split(","))
    except ValueError as error:
        raise ConfigurationError(
            "--histogram takes numbers, such as 2500,700,1100,400,300"
        ) from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error


def _target(out: Path | None, default: str) -> Path:
    """Where a file goes; nothing is done whose result could not be written."""
    path = out or Path(default)
    if not path.parent.is_dir():
        raise ConfigurationError(f"there is no folder {path.parent} for {path.name}; make it first")
    return path


def _now() -> datetime:
    return datetime.now(UTC)
