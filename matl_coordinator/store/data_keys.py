"""The keys that the log's entries are encrypted with: one a month, wrapped in the database.

A month's first entry makes its key, in the transaction that appends the entry. Keys are
unwrapped once and kept in memory by what wraps them, so a key that was erased is not used
again by a daemon that still knows it. A row that does not unwrap is somebody else's: it is
reported and passed over, and appending goes on under another name. Nothing here begins or ends
a transaction.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, bindparam, func, insert, select

from matl_common.errors import ConfigurationError, IntegrityError
from matl_common.identity.pkcs11.session import TokenError
from matl_common.identity.wrapping import KeyEncryptionKey
from matl_common.tlog.sealing import DATA_KEY_BYTES, DataKey, data_key
from matl_coordinator.ports import ForeignRow, StoreError
from matl_coordinator.store.functions import POSTGRES, call_log_function
from matl_coordinator.store.schema import log_keys, stored_bytes

# Made once: every commit asks it.
_HELD = (
    select(log_keys.c.name, log_keys.c.wrapped)
    .where((log_keys.c.month == bindparam("of_month")) & log_keys.c.wrapped.is_not(None))
    .order_by(func.length(log_keys.c.name).desc(), log_keys.c.name.desc())
)


class DataKeys:
    """Data keys under one key-encryption key."""

    def __init__(
        self, key: KeyEncryptionKey, *, report: Callable[[ForeignRow], None] = lambda _: None
    ) -> None:
        """``report`` is told of each row that somebody else wrote, once."""
        self._key = key
        self._report = report
        self._unwrapped: dict[tuple[str, bytes], DataKey] = {}
        # By name and what wraps it, why it does not unwrap.
        self._foreign: dict[tuple[str, bytes], str] = {}

    def check(self, connection: Connection) -> None:
        """See that this key-encryption key is the database's, before anything is written.

        Raises:
            ConfigurationError: there are keys, and another key-encryption key has wrapped all.
        """
        stranger = self._stranger(connection)
        if stranger is not None:
            name, wrapped_by = stranger
            raise ConfigurationError(
                f"the log's data key {name} was wrapped by key-encryption key {wrapped_by}, and "
                f"log.encryption_key is {self._key.name}; restore the key that belongs to this "
                "database"
            )

    def _stranger(self, connection: Connection) -> tuple[str, str] | None:
        """A data key and what wrapped it, where this key-encryption key has wrapped none."""
        columns = select(log_keys.c.name, log_keys.c.wrapped_by, log_keys.c.wrapped)
        held = columns.where(log_keys.c.wrapped.is_not(None)).order_by(log_keys.c.name)
        rows = connection.execute(held).all()
        # All of them, so that each that is somebody else's is reported at a start.
        opened = [self._opened(row.name, stored_bytes(row.wrapped)) for row in rows]
        # A row that says it is this key's and does not unwrap was changed, which verifying tells.
        is_own = any(row.wrapped_by == self._key.name for row in rows) or any(opened)
        return None if is_own or not rows else (rows[0].name, rows[0].wrapped_by)

    def damage(self, connection: Connection) -> str | None:
        """What is wrong with the first row that is not as this software writes it."""
        for row in connection.execute(select(log_keys).order_by(log_keys.c.name)):
            if row.name.rpartition(".")[0] != row.month:
                return f"data key {row.name} is filed under {row.month}: its row was changed"
            if row.wrapped is None:
                continue
            wrapped = stored_bytes(row.wrapped)
            if self._opened(row.name, wrapped) is None:
                return (
                    f"data key {row.name} is none of this log's: {self._foreign[row.name, wrapped]}"
                )
            if row.wrapped_by != self._key.name:
                return (
                    f"data key {row.name} is said to be wrapped by {row.wrapped_by!r}, and "
                    f"{self._key.name} unwraps it: its row was changed"
                )
        return None

    def current(self, connection: Connection, month: str) -> DataKey:
        """The key for entries of a month, made where there is none or it was erased.

        Raises:
            IntegrityError: another key-encryption key has wrapped all there are.
            StoreError: the token of the key-encryption key cannot be used for now.
        """
        for row in connection.execute(_HELD, {"of_month": month}):
            opened = self._opened(row.name, stored_bytes(row.wrapped))
            if opened is not None:
                return opened
        # Rather than beside the keys of a log that was put under another one meanwhile.
        if self._stranger(connection) is not None:
            raise IntegrityError(
                f"no data key of the log unwraps with key-encryption key {self._key.name}; start "
                "again with the one that took its place"
            )
        given = select(func.count()).select_from(log_keys).where(log_keys.c.month == month)
        name = f"{month}.{connection.execute(given).scalar_one() + 1}"
        key = os.urandom(DATA_KEY_BYTES)
        with _key_at_hand():
            wrapped = self._key.wrap(key)
        if connection.dialect.name == POSTGRES:
            call_log_function(connection, "log_put_key", name, month, self._key.name, wrapped)
        else:
            connection.execute(
                insert(log_keys).values(
                    name=name, month=month, wrapped_by=self._key.name, wrapped=wrapped
                )
            )
        self._unwrapped[name, wrapped] = data_key(name, key)
        return self._unwrapped[name, wrapped]

    def read(self, connection: Connection, names: Iterable[str]) -> dict[str, DataKey]:
        """Keys by name, without those that were erased or are somebody else's.

        Raises:
            StoreError: as ``current``.
        """
        rows = connection.execute(
            select(log_keys.c.name, log_keys.c.wrapped).where(
                log_keys.c.name.in_(sorted(names)) & log_keys.c.wrapped.is_not(None)
            )
        ).all()
        found = ((row.name, self._opened(row.name, stored_bytes(row.wrapped))) for row in rows)
        return {name: key for name, key in found if key is not None}

    def rewrapped(self, connection: Connection, key: KeyEncryptionKey) -> dict[str, bytes]:
        """Every data key that was not erased, wrapped with another key, by name.

        Raises:
            IntegrityError: another key-encryption key than the present one has wrapped it.
            StoreError: as ``current``, for either key.
        """
        held = select(log_keys.c.name, log_keys.c.wrapped).where(log_keys.c.wrapped.is_not(None))
        rows = connection.execute(held.order_by(log_keys.c.name))
        with _key_at_hand():
            return {row.name: key.wrap(self._key.unwrap(bytes(row.wrapped))) for row in rows}

    def _opened(self, name: str, wrapped: bytes) -> DataKey | None:
        place = name, wrapped
        if place in self._foreign:
            return None
        if place not in self._unwrapped:
            try:
                with _key_at_hand():
                    unwrapped = self._key.unwrap(wrapped)
            except IntegrityError as error:
                self._foreign[place] = str(error)
                self._report(ForeignRow(log_keys.name, name, str(error)))
                return None
            self._unwrapped[place] = data_key(name, unwrapped)
        return self._unwrapped[place]


@contextmanager
def _key_at_hand() -> Iterator[None]:
    """A token that is away is to its log what a database is that does not answer.

    Raises:
        StoreError: the key-encryption key cannot be used for now.
    """
    try:
        yield
    except (TokenError, ConfigurationError) as error:
        raise StoreError(f"the log's encryption key cannot be used: {error}") from error
