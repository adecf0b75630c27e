"""Ledger entries as lines: hash-chained JSON, and what may follow a crash.

A line holds its sequence number, the hash of the line before, the entry, and the
SHA-256 of all that. A crash can leave the last line incomplete, and nothing else:
any other damage is refused. Pure; the file is ``ledger.py``'s.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.ids import Digest, digest_of, parse_digest, parse_round_id
from matl_common.privacy.mechanisms import Noise
from matl_common.protocol import EvaluationTerms, PrivacyTerms
from matl_participant.core.account import (
    Abandoned,
    Account,
    Acknowledged,
    Entry,
    Halted,
    IllegalEntryError,
    Planned,
    Reserved,
    Sealed,
    after,
)

GENESIS = Digest("0" * 64)
MAX_LINE_BYTES = 1 << 16

_KINDS: Mapping[str, type[Entry]] = {
    "PLAN": Planned,
    "RESERVE": Reserved,
    "SEAL": Sealed,
    "ACK": Acknowledged,
    "ABANDON": Abandoned,
    "HALT": Halted,
}
_DIGESTS = {"plan_digest", "dataset_digest", "base_model", "update_digest", "content_digest"}
_ABSURD = (ValueError, TypeError, AttributeError, OverflowError)
_KIND_OF = {kind: name for name, kind in _KINDS.items()}


class LedgerCorruptError(IntegrityError):
    """The ledger is damaged in a way that no crash explains."""

    def __init__(self, message: str, *, line: int) -> None:
        """Keep the number of the first broken line, counted from 1."""
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Journal:
    """A ledger file, read."""

    account: Account
    head: Digest
    """Hash of the last line."""
    lines: int
    sound_bytes: int
    """Everything after this offset is an incomplete line."""
    missing_newline: bool
    """The last line is complete but for its line break."""


def format_line(entry: Entry, *, sequence: int, previous: Digest) -> tuple[bytes, Digest]:
    """Return an entry's line and its hash.

    Raises:
        IllegalEntryError: the line would be longer than a line may be.
    """
    body = _canonical(
        {
            "sequence": sequence,
            "previous": previous,
            "kind": _KIND_OF[type(entry)],
            "entry": _to_json(asdict(entry)),
        }
    )
    digest = digest_of(body)
    line = b'{"line":%b,"sha256":"%b"}\n' % (body, digest.encode())
    if len(line) > MAX_LINE_BYTES:
        raise IllegalEntryError(
            f"the entry would take {len(line)} bytes of the ledger; {MAX_LINE_BYTES} is the most"
        )
    return line, digest


def replay(data: bytes) -> Journal:
    """Read a ledger file from its first entry to its last.

    An incomplete last line was never confirmed to anybody, so no data was read and
    nothing was sent on its account. One that lacks only its line break is kept all
    the same: what may have been spent counts.

    Raises:
        LedgerCorruptError: a complete line is damaged, missing or out of order.
    """
    *lines, tail = data.split(b"\n")
    account, head = Account(), GENESIS
    for sequence, line in enumerate(lines):
        account, head = _accept(account, line, sequence=sequence, previous=head)
    sound = len(data) - len(tail)
    if tail:
        try:
            account, head = _accept(account, tail, sequence=len(lines), previous=head)
        except LedgerCorruptError:
            if _holds_whole_value(tail):
                raise
            return Journal(account, head, len(lines), sound, missing_newline=False)
        return Journal(account, head, len(lines) + 1, len(data), missing_newline=True)
    return Journal(account, head, len(lines), sound, missing_newline=False)


def _holds_whole_value(tail: bytes) -> bool:
    """Whether this is more than the beginning of a line, which is all a crash leaves."""
    try:
        json.JSONDecoder().raw_decode(tail.decode(errors="replace"))
    except RecursionError:
        # No line of ours begins with such nesting, cut off or not.
        return True
    except ValueError:
        return False
    return True


def _accept(
    account: Account, line: bytes, *, sequence: int, previous: Digest
) -> tuple[Account, Digest]:
    try:
        entry = _parse_line(line)
        expected, digest = format_line(entry, sequence=sequence, previous=previous)
        # Byte for byte: covers the hash, the chain, the number and every field at once.
        if expected != line + b"\n":
            raise InvalidInputError("its hash, its number or its predecessor is wrong")
        return after(account, entry), digest
    # A line whose hash fits may still hold values of other types, and numbers that are none.
    except (InvalidInputError, IllegalEntryError, *_ABSURD) as error:
        raise LedgerCorruptError(
            f"line {sequence + 1} of the privacy ledger is damaged ({error}). What was spent is no "
            "longer certain: do not delete the file; restore it from the newest backup, or end "
            "this hospital's part in the study",
            line=sequence + 1,
        ) from error


def _parse_line(line: bytes) -> Entry:
    try:
        document = json.loads(line)["line"]
        return _from_json(document["kind"], document["entry"])
    except (KeyError, RecursionError, *_ABSURD) as error:
        raise InvalidInputError("it is not a ledger line") from error


def _from_json(kind: str, fields: dict[str, Any]) -> Entry:
    values = dict(fields)
    values["at"] = datetime.fromisoformat(values["at"])
    for name in values.keys() & _DIGESTS:
        values[name] = parse_digest(values[name])
    if "round_id" in values:
        values["round_id"] = parse_round_id(values["round_id"])
    if "privacy" in values:
        terms = dict(values["privacy"])
        if terms["target_epsilon"] is None:
            terms["target_epsilon"] = math.inf
        terms["noise"] = _noise(terms.get("noise", Noise.GAUSSIAN.value))
        if "evaluation" in terms:
            terms["evaluation"] = EvaluationTerms(**terms["evaluation"])
        values["privacy"] = PrivacyTerms(**terms)
    return _KINDS[kind](**values)


def _to_json(fields: dict[str, Any]) -> dict[str, Any]:
    values = dict(fields, at=fields["at"].isoformat())
    # Ledgers from before there was a choice keep their bytes, and their hashes.
    if values.get("evaluations") == 0:
        del values["evaluations"]
    if "privacy" in values:
        terms = values["privacy"] = dict(values["privacy"])
        if math.isinf(terms["target_epsilon"]):
            # JSON has no infinity.
            terms["target_epsilon"] = None
        if terms["noise"] is Noise.GAUSSIAN:
            del terms["noise"]
        if terms["evaluation"] is None:
            del terms["evaluation"]
    return values


def _noise(text: str) -> Noise:
    try:
        return Noise(text)
    except ValueError as error:
        raise InvalidInputError(
            f"its noise {str(text)[:40]!r} is none that this version can account for; a newer "
            "version wrote it"
        ) from error


def _canonical(value: object) -> bytes:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
