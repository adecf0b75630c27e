"""Entries for a log, and the key that a test's log is encrypted under."""

from collections.abc import Iterable
from typing import Final, TypedDict

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from matl_common.identity.wrapping import KeyEncryptionKey, SoftwareKeyEncryptionKey
from matl_common.tlog.checkpoint import Checkpoint, log_key, sign_checkpoint
from matl_common.tlog.entry import Entry, entry_of, parse_entry
from matl_coordinator.ports import LoggedEntry, LogHead

MOMENT: Final = "2026-11-28T12:00:00.000Z"


class LogSettings(TypedDict):
    """What a store needs to know of its log."""

    log_origin: str
    log_key: KeyEncryptionKey


LOG: Final = LogSettings(
    log_origin="test.matl.internal/log", log_key=SoftwareKeyEncryptionKey(bytes(range(32)))
)


def an_entry(event: str, *, at: str = MOMENT, **facts: object) -> Entry:
    """An entry that says what happened, and more where a test wants it to."""
    return entry_of({"event": event, "at": at, **facts})


def some_entries(*events: str, at: str = MOMENT) -> list[Entry]:
    """One entry for each event."""
    return [an_entry(event, at=at) for event in events]


def events_of(logged: Iterable[LoggedEntry]) -> list[str]:
    """What each entry of a log tells; fails where one cannot be read."""
    told = [each.data for each in logged]
    return [str(parse_entry(data)["event"]) for data in told if data is not None]


def a_note(head: LogHead, *, seed: bytes = bytes(32)) -> bytes:
    """A checkpoint of the log as it is, signed with a test's key."""
    signer = Ed25519PrivateKey.from_private_bytes(seed)
    key = log_key(LOG["log_origin"], signer.public_key())
    checkpoint = Checkpoint(key.name, head.size, bytes.fromhex(head.root))
    return sign_checkpoint(checkpoint, key, signer).note.encode()
