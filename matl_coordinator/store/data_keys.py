"""The keys that the log's entries are encrypted with: one a month, wrapped in the database.

A month's first entry makes its key, in the transaction that appends the entry. Keys are
unwrapped once and kept in memory by what wraps them, so a key that was erased is not used
again by a daemon that still knows it. Nothing here begins or ends a transaction.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, func, insert, select

from matl_common.errors import ConfigurationError
from matl_common.identity.pkcs11.session import TokenError
from matl_common.identity.wrapping import KeyEncryptionKey
from matl_common.tlog.sealing import DATA_KEY_BYTES, DataKey, data_key
from matl_coordinator.ports import StoreError
from matl_coordinator.store.schema import log_keys


class DataKeys:
    """Data keys under one key-encryption key."""

    def __init__(self, key: KeyEncryptionKey) -> None:
        self._key = key
        self._unwrapped: dict[tuple[str, bytes], DataKey] = {}

    def check(self, connection: Connection) -> None:
        """See that every key there is can be unwrapped, before anything is written.

        Raises:
            ConfigurationError: another key-encryption key has wrapped one.
        """
        others = select(log_keys.c.name, log_keys.c.wrapped_by).where(
            log_keys.c.wrapped.is_not(None) & (log_keys.c.wrapped_by != self._key.name)
        )
        found = connection.execute(others.order_by(log_keys.c.name).limit(1)).one_or_none()
        if found is not None:
            raise ConfigurationError(
                f"the log's data key {found.name} was wrapped by key-encryption key "
                f"{found.wrapped_by}, and log.encryption_key is {self._key.name}; "
                "restore the key that belongs to this database"
            )

    def current(self, connection: Connection, month: str) -> DataKey:
        """The key for entries of a month, made where there is none or it was erased.

        Raises:
            IntegrityError: another key-encryption key has wrapped it.
            StoreError: the token of the key-encryption key cannot be used for now.
        """
        newest = (
            select(log_keys.c.name, log_keys.c.wrapped)
            .where((log_keys.c.month == month) & log_keys.c.wrapped.is_not(None))
            .order_by(func.length(log_keys.c.name).desc(), log_keys.c.name.desc())
            .limit(1)
        )
        found = connection.execute(newest).one_or_none()
        if found is not None:
            return self._opened(found.name, bytes(found.wrapped))
        given = select(func.count()).select_from(log_keys).where(log_keys.c.month == month)
        name = f"{month}.{connection.execute(given).scalar_one() + 1}"
        with _key_at_hand():
            wrapped = self._key.wrap(os.urandom(DATA_KEY_BYTES))
        connection.execute(
            insert(log_keys).values(
                name=name, month=month, wrapped_by=self._key.name, wrapped=wrapped
            )
        )
        return self._opened(name, wrapped)

    def read(self, connection: Connection, names: Iterable[str]) -> dict[str, DataKey]:
        """Keys by name, without those that were erased.

        Raises:
            IntegrityError: another key-encryption key has wrapped one.
            StoreError: as ``current``.
        """
        rows = connection.execute(
            select(log_keys.c.name, log_keys.c.wrapped).where(
                log_keys.c.name.in_(sorted(names)) & log_keys.c.wrapped.is_not(None)
            )
        ).all()
        return {row.name: self._opened(row.name, bytes(row.wrapped)) for row in rows}

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

    def _opened(self, name: str, wrapped: bytes) -> DataKey:
        if (name, wrapped) not in self._unwrapped:
            with _key_at_hand():
                unwrapped = self._key.unwrap(wrapped)
            self._unwrapped[name, wrapped] = data_key(name, unwrapped)
        return self._unwrapped[name, wrapped]


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
