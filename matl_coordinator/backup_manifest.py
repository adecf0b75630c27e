"""What a backup says of itself: one signed statement, over the digest of every other file in it.

The files are listed in ``SHA256SUMS``, which ``sha256sum --check`` reads, and the statement in
``manifest.json`` holds that list's digest. Nothing here looks at the files themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import TypeAdapter, ValidationError

from matl_common import signing
from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.ids import Digest, parse_digest

MANIFEST: Final = "manifest.json"
SUMS: Final = "SHA256SUMS"
DATABASE: Final = "database.sqlite"
FORMAT: Final = 1
_PAYLOAD_TYPE: Final = "application/vnd.matl.backup.v1"
_LINE: Final = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+){0,3})")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was backed up, by whom, and what it takes to use it.

    Attributes:
        format: of the backup; this software reads ``FORMAT``.
        version: of the software that wrote it.
        schema: version of the database's tables.
        made_at: when the database stood like this.
        federation: the federation's name.
        study: the study's name.
        node: the coordinator's name.
        log_origin: the log's name.
        log_size: entries of the log.
        log_root: RFC 6962 root hash over them.
        encryption_key: name of the key without which no entry can be read; not in the backup.
        round: number of the newest round; 0 before the first.
        phase: where it stood; empty before the first.
        has_spool: whether the updates admitted in an open round are there.
        sums: SHA-256 of ``SHA256SUMS``.
    """

    format: int
    version: str
    schema: str
    made_at: datetime
    federation: str
    study: str
    node: str
    log_origin: str
    log_size: int
    log_root: Digest
    encryption_key: str
    round: int
    phase: str
    has_spool: bool
    sums: Digest


_MANIFEST = TypeAdapter(Manifest)


def sign_manifest(manifest: Manifest, signer: signing.Signer) -> bytes:
    """The manifest as a signed file.

    Raises:
        TokenError: the key's token cannot be used.
    """
    said = asdict(manifest) | {"made_at": manifest.made_at.isoformat()}
    payload = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    return signing.encode_envelope(signing.sign(_PAYLOAD_TYPE, payload, signer)) + b"\n"


def open_manifest(data: bytes, public_key: ec.EllipticCurvePublicKey) -> Manifest:
    """A manifest that this key has signed.

    Raises:
        IntegrityError: it has not, or the statement is none.
        InvalidInputError: the bytes are no signed statement, or of a format that is not known.
    """
    payload = signing.verify(signing.parse_envelope(data), public_key, _PAYLOAD_TYPE)
    if (found := _format_in(payload)) != FORMAT:
        raise InvalidInputError(
            f"the backup has format {found}, and this software reads {FORMAT}; restore it with the "
            "version that wrote it, or a newer one"
        )
    try:
        return _MANIFEST.validate_json(payload)
    except ValidationError as error:
        raise IntegrityError("the backup's manifest is signed, and says nothing usable") from error


def encode_sums(sums: Mapping[str, Digest]) -> bytes:
    """The list of files as ``sha256sum`` writes it."""
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(sums.items())).encode()


def parse_sums(data: bytes) -> dict[str, Digest]:
    """The list of files.

    Raises:
        InvalidInputError: a line is none, names what no backup holds, or comes twice.
    """
    found: dict[str, Digest] = {}
    for line in data.decode("ascii", errors="replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None or match[2] in found or ".." in match[2].split("/"):
            raise InvalidInputError(f"{SUMS} has the line {line[:100]!r}, which no backup has")
        found[match[2]] = parse_digest(match[1])
    return found


def _format_in(payload: bytes) -> object:
    try:
        said = json.loads(payload)
    except ValueError:
        return None
    return said.get("format") if isinstance(said, dict) else None
