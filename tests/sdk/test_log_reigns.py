"""Never two coordinators writing at once: told by the log itself."""

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from matl.log.reigns import Reign, Reigns
from matl.log.sources import DatabaseSource
from matl.log.verification import AuditReport, Believed, verify_log
from matl_common.tlog.checkpoint import log_key
from matl_common.tlog.entry import with_fact
from matl_common.tlog.verification import LogDamagedError
from matl_coordinator.service.register import REIGN, Decision, Register
from matl_coordinator.store.database import create_database_engine
from matl_coordinator.store.reader import LogReader
from matl_coordinator.store.sql import SqlStore
from tests.logs import LOG, an_entry

LOG_KEY = log_key(LOG["log_origin"], Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key())


def reigns_of(numbers: Iterable[object]) -> tuple[Reign, ...]:
    found = Reigns()
    for index, number in enumerate(numbers):
        found.told(index, {"event": "a"} if number is None else {"event": "a", REIGN: number})
    return found.found


def test_each_coordinator_has_its_entries_in_one_piece() -> None:
    assert reigns_of([]) == ()
    assert reigns_of([None, 1, 1, None, 1, 4, 4]) == (Reign(1, 1, 4), Reign(4, 5, 6))


@pytest.mark.parametrize("numbers", [[1, 2, 1], [2, 1], [1, 2, None, 2, 1, 2]])
def test_an_entry_behind_its_writers_successor_is_damage(numbers: list[int | None]) -> None:
    with pytest.raises(LogDamagedError, match="two wrote at once") as caught:
        reigns_of(numbers)
    assert caught.value.first == numbers.index(1, 1)


def verified(url: str) -> AuditReport:
    engine = create_database_engine(url)
    try:
        reader = LogReader(engine)
        keys = reader.data_keys(LOG["log_key"])
        return verify_log(DatabaseSource(reader), Believed(LOG_KEY, keys=keys))
    finally:
        engine.dispose()


async def said(store: SqlStore, *events: str) -> None:
    register = Register(store)
    for event in events:
        written = an_entry(event)
        await register.decide(lambda _, each=written: Decision(None, (), (each,)))  # type: ignore[misc]


async def test_what_coordinators_write_one_after_the_other_is_verified_as_that(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    for number in range(3):
        with closing(SqlStore.connect(url, **LOG)) as store:
            await said(store, f"first of {number}", f"second of {number}")
    report = verified(url)
    assert (report.reigns, report.opened) == (3, 6)


async def test_a_log_that_a_replaced_coordinator_wrote_to_is_not_sound(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    with closing(SqlStore.connect(url, **LOG)) as old, closing(SqlStore.connect(url, **LOG)) as new:
        replaced = old.load().epoch
        await said(new, "in time")
        # As if the database had not refused it.
        forged = with_fact(an_entry("late"), REIGN, replaced)
        new.commit([], [forged])
        await said(new, "goes on")
    with pytest.raises(LogDamagedError, match="entry 1 is of reign 1, after entry 0 of reign 2"):
        verified(url)
