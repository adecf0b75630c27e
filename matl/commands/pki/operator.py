"""What the coordinator's operator does: found a federation, admit, renew and shut out."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography.hazmat.primitives.serialization import Encoding

from matl.commands.pki.dialogue import (
    SOFTWARE_HELD,
    compare,
    file_to_write,
    in_words,
    read_document,
    say,
)
from matl.commands.pki.options import (
    CoordinatorDays,
    Days,
    Federation,
    ServerName,
    TokenKey,
    Yes,
)
from matl.terminal import Json, console, errors_in_one_line, print_json, table
from matl_common.clock import utc_now
from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.authorities import AUTHORITY_VALIDITY, CERTIFICATE_VALIDITY
from matl_common.identity.certificates import CLOCK_SKEW, Role, SpiffeId
from matl_common.identity.enrolling import fingerprint, for_people, make_answer, parse_request
from matl_common.identity.ephemeral import create_node_authority
from matl_common.identity.federation_folder import Facts, FederationFolder
from matl_common.identity.key_places import parse_key_place
from matl_common.identity.keys import spki_pin
from matl_common.identity.node_folder import PUBLIC_MODE, TokenKeys, write_public
from matl_common.identity.pkcs11.uri import parse_token_uri
from matl_common.ids import parse_digest, parse_federation_id, parse_node_id


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
        now = utc_now()
        certificate = create_node_authority(
            parse_key_place(key),
            name,
            not_before=now - CLOCK_SKEW,
            not_after=now + timedelta(days=days),
            server_names=tuple(server_name or ()),
        )
        write_public(file_to_write(out, ""), certificate.public_bytes(Encoding.PEM))
    say({"file": str(out), "for": str(name), "pin": spki_pin(certificate)}, as_json=as_json)


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
            now=utc_now(),
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
    say(facts, as_json=as_json)


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
        found = parse_request(read_document(path))
        target = file_to_write(out, f"{found.spiffe_id.node_id}.answer.json")
        compare(f"Request of {found.spiffe_id}", found.fingerprint, yes=yes)
        answer = federation.approve(
            found,
            Facts(patients, _histogram(histogram)),
            now=utc_now(),
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
    say(facts, as_json=as_json)


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
                now=utc_now(),
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
                now=utc_now(),
                validity=AUTHORITY_VALIDITY if days is None else timedelta(days=days),
                server_names=tuple(server_name or ()),
            )
    facts = {
        "node": str(federation.coordinator_id),
        "pin": spki_pin(certificate),
        "valid until": certificate.not_valid_after_utc.isoformat(),
        "certificate": str(federation.coordinator.tls.certificate_chain),
    }
    say(facts, as_json=as_json)


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
            now=utc_now(),
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
    say(facts, as_json=as_json)


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
    console().print(table(headings, [[in_words(cell) for cell in row.values()] for row in rows]))
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


def _histogram(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(each) for each in text.split(","))
    except ValueError as error:
        raise ConfigurationError(
            "--histogram takes numbers, such as 2500,700,1100,400,300"
        ) from error
