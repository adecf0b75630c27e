"""The coordinator's log as an auditor on its machine reads it: database and keys, no daemon."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy import Engine, make_url

from matl.compliance.control import NotTestedError
from matl.log.place import configured, with_data_keys
from matl.log.verification import Believed, opened_entries
from matl_common.errors import IntegrityError
from matl_common.tlog.entry import parse_entry
from matl_common.tlog.leaf import parse_leaf
from matl_common.tlog.sealing import DataKey, open_sealed
from matl_common.tlog.verification import StoredLeaf
from matl_coordinator.config import Config
from matl_coordinator.ports import LoggedEntry
from matl_coordinator.store.database import create_database_engine
from matl_coordinator.store.reader import LogReader
from matl_coordinator.upkeep import record

Event = Mapping[str, Any]

CANARY_EVENT: Final = "audit_canary"


@dataclass(frozen=True, slots=True)
class Canary:
    """An entry written to be found again: where it is, and the random word that it holds."""

    index: int
    word: str


class Logbook:
    """Reads and adds entries. Opens the database at first use; close it, or use it as a context."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.is_open = False

    @cached_property
    def engine(self) -> Engine:
        """Of the coordinator's own database user.

        Raises:
            NotTestedError: no study was founded there yet.
        """
        url = self.config.database_url
        if _is_missing(url):
            raise NotTestedError(
                "there is no database yet", "start the coordinator once, which founds the study"
            )
        self.is_open = True
        return create_database_engine(url)

    @cached_property
    def reader(self) -> LogReader:
        """The tables of the log.

        Raises:
            NotTestedError: there are none, or no entry in them.
            StoreError: the database does not answer.
        """
        reader = LogReader(self.engine)
        if reader.size() == 0:
            raise NotTestedError(
                "the log has no entries yet", "start the coordinator once, which founds the study"
            )
        return reader

    @cached_property
    def believed(self) -> Believed:
        """Whose signatures count, and the data keys."""
        return with_data_keys(configured(self.config), self.config, self.reader)

    @property
    def keys(self) -> Mapping[str, DataKey]:
        """The data keys there are now: a month's first entry makes one.

        Raises:
            NotTestedError: the key-encryption key is not at hand.
        """
        keys = with_data_keys(configured(self.config), self.config, self.reader).keys
        if keys is None:
            raise NotTestedError(
                "the key-encryption key of the log is not here",
                "run it as the coordinator's account, with its log.encryption_key",
            )
        return keys

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """What every entry says that can be opened, in order, as of the first look."""
        return tuple(opened_entries(self.reader.pages(), self.keys, on_damage=lambda _: None))

    def since(self, start: int) -> Iterator[Event]:
        """What entries from ``start`` on say."""
        return opened_entries(self.reader.pages(start=start), self.keys, on_damage=lambda _: None)

    def stored(self, index: int) -> StoredLeaf:
        """An entry as it lies in the table."""
        for page in self.reader.pages(start=index, end=index + 1):
            for each in page:
                return each
        raise IntegrityError(f"entry {index} was written and is not there")

    def opened(self, stored: StoredLeaf, payload: bytes | None = None) -> Event:
        """What a stored entry says, or would with another payload.

        Raises:
            IntegrityError: it does not open.
        """
        leaf = parse_leaf(stored.leaf or b"")
        key = self.keys.get(leaf.key)
        if key is None:
            raise IntegrityError(f"there is no data key {leaf.key}")
        return parse_entry(open_sealed(leaf, payload or stored.payload or b"", key).data)

    @cached_property
    def canary(self) -> Canary:
        """This audit's canary, put into the log by who asks first."""
        # Nothing is put into a log that nobody has founded.
        self.reader.size()
        word = secrets.token_hex(24)
        return Canary(self.add(CANARY_EVENT, word=word).index, word)

    def add(self, event: str, **facts: Any) -> LoggedEntry:
        """Put an entry into the log, beside its coordinator."""
        return record(self.config, event, **facts)

    def close(self) -> None:
        """Let go of the database."""
        if self.is_open:
            self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _is_missing(url: str) -> bool:
    """Whether it is a SQLite file that opening would make."""
    parsed = make_url(url)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    return is_sqlite and not (parsed.database and Path(parsed.database).exists())
