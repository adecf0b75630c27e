"""A log whose key is in a token that comes and goes."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from matl_common.identity.pkcs11.wrapping import create_token_key
from matl_coordinator.ports import StoreError
from matl_coordinator.store.sql import SqlStore
from tests.logs import LOG, an_entry, events_of
from tests.softhsm import TokenFolder

pytestmark = pytest.mark.hsm

OCTOBER, NOVEMBER = "2026-10-31T23:59:59.999Z", "2026-11-01T00:00:00.000Z"


@pytest.fixture
def store(tmp_path: Path, tokens: TokenFolder) -> Iterator[SqlStore]:
    key = create_token_key(tokens.uri("hsm"))
    url = f"sqlite:///{tmp_path / 'log.db'}"
    with closing(SqlStore.connect(url, log_origin=LOG["log_origin"], log_key=key)) as connected:
        connected.load()
        yield connected


def events(store: SqlStore) -> list[str]:
    return events_of(store.log_entries(start=0, limit=99))


def test_nothing_is_logged_while_a_new_months_key_cannot_be_wrapped(
    store: SqlStore, tokens: TokenFolder
) -> None:
    store.commit([], [an_entry("a", at=OCTOBER)])
    with tokens.taken_away():
        tokens.restart()
        store.commit([], [an_entry("b", at=OCTOBER)])
        with pytest.raises(StoreError, match=r"encryption key cannot be used.*is not there"):
            store.commit([], [an_entry("c", at=NOVEMBER)])
        store.load()
        with pytest.raises(StoreError, match="is not there"):
            store.commit([], [an_entry("c", at=NOVEMBER)])
        assert events(store) == ["a", "b"]
    store.load()
    store.commit([], [an_entry("d", at=NOVEMBER)])
    assert events(store) == ["a", "b", "d"]
    assert store.log_head().size == 3


def test_a_session_that_was_lost_between_two_months_is_not_noticed(
    store: SqlStore, tokens: TokenFolder
) -> None:
    store.commit([], [an_entry("a", at=OCTOBER)])
    tokens.restart()
    store.commit([], [an_entry("b", at=NOVEMBER)])
    assert events(store) == ["a", "b"]
