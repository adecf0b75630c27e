"""Names of things: federations, nodes, rounds and content digests.

Values only. Nothing here knows what a node, a round or a file is used for.
"""

import hashlib
import re
from pathlib import Path
from typing import NewType

from typing_extensions import Buffer

from matl_common.errors import InvalidInputError

FederationId = NewType("FederationId", str)
NodeId = NewType("NodeId", str)
RoundId = NewType("RoundId", int)
Digest = NewType("Digest", str)

_FEDERATION_ID = re.compile(r"[a-z][a-z0-9-]{0,61}[a-z0-9]")
_NODE_ID = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def parse_federation_id(text: str) -> FederationId:
    """Accept a federation's name, which is also a DNS label.

    Raises:
        InvalidInputError: the text is not 2 to 63 characters of ``a-z 0-9 -`` that begin
            with a letter and do not end with ``-``.
    """
    if not _FEDERATION_ID.fullmatch(text):
        raise InvalidInputError(
            f"{text[:80]!r} is not a federation id; use 2 to 63 lower-case letters, digits or "
            "'-', beginning with a letter and not ending with '-'"
        )
    return FederationId(text)


def parse_node_id(text: str) -> NodeId:
    """Accept a node name: a lower-case letter, then at most 62 of ``a-z 0-9 _ -``.

    Raises:
        InvalidInputError: the text is anything else.
    """
    if not _NODE_ID.fullmatch(text):
        raise InvalidInputError(
            f"{text[:80]!r} is not a node id; use a lower-case letter followed by at most "
            "62 lower-case letters, digits, '_' or '-'"
        )
    return NodeId(text)


def parse_round_id(number: int) -> RoundId:
    """Accept a round number, counted from 1.

    Raises:
        InvalidInputError: the number is below 1.
    """
    if number < 1:
        raise InvalidInputError(f"{number} is not a round number; rounds count from 1")
    return RoundId(number)


def parse_digest(text: str) -> Digest:
    """Accept a SHA-256 digest written as 64 lower-case hexadecimal characters.

    Raises:
        InvalidInputError: the text is anything else.
    """
    if not _DIGEST.fullmatch(text):
        raise InvalidInputError(
            f"{text[:80]!r} is not a SHA-256 digest; expected 64 lower-case hexadecimal characters"
        )
    return Digest(text)


def digest_of(data: Buffer) -> Digest:
    """SHA-256 of the bytes, in hexadecimal."""
    return Digest(hashlib.sha256(data).hexdigest())


def digest_of_file(path: Path) -> Digest:
    """SHA-256 of a file's content, read in bounded memory."""
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest())
