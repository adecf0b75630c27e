"""What a node does: make its keys, ask for a certificate, put the answer in place."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from matl.commands.pki.dialogue import (
    SOFTWARE_HELD,
    compare,
    file_to_write,
    read_document,
    say,
)
from matl.commands.pki.options import NodeFolderOption, TokenKey, Yes
from matl.terminal import Json, errors_in_one_line
from matl_common.clock import utc_now
from matl_common.durable import write_atomically
from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.enrolling import (
    Keys,
    fingerprint,
    for_people,
    make_request,
    parse_answer,
    parse_request,
)
from matl_common.identity.held_keys import KeyKind, generate_key, load_tls_key
from matl_common.identity.installing import install
from matl_common.identity.key_places import parse_key_place
from matl_common.identity.node_folder import (
    PUBLIC_MODE,
    NodeFolder,
    keys_at,
    keys_in,
    make_keys_anew,
    make_missing_keys,
    write_private_key,
)
from matl_common.identity.pkcs11.uri import TokenUri, parse_token_uri
from matl_common.ids import parse_federation_id, parse_node_id


class Client(StrEnum):
    """Whom a request can be for."""

    PARTICIPANT = "participant"
    OPERATOR = "operator"
    FRONT_END = "front-end"


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
    say(facts, as_json=as_json)


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
        path = file_to_write(out, f"{name.node_id}.request.json")
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
    say(facts, as_json=as_json)


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
        document = read_document(path)
        answer = parse_answer(document)
        compare(f"Answer for {answer.node.spiffe_id}", fingerprint(document), yes=yes)
        uri = None if tls_key is None else parse_token_uri(tls_key)
        node = install(NodeFolder(folder), answer, now=utc_now(), tls_key=uri)
    facts = {
        "node": str(node.spiffe_id),
        "coordinator": str(answer.coordinator),
        "pin": node.pin,
        "valid until": node.not_after.isoformat(),
        "folder": str(folder),
    }
    say(facts, as_json=as_json)
