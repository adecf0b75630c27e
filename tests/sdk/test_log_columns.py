"""A superuser changes every column that the log's tables have, and verifying names the place.

The columns come from the database's catalogue: one that is new is missed here until it has a case.
"""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Connection, make_url, text

from matl_common.ids import NodeId
from matl_common.tlog.names import log_origin
from matl_coordinator.store.database import create_database_engine, reading
from matl_coordinator.store.sql import SqlStore
from tests.coordinator.harness import Site, make_site
from tests.coordinator.test_checkpoints import cosigned
from tests.logs import LOG, an_entry
from tests.postgres import execute
from tests.sdk.test_audit_commands import LOG_KEY_FILE, Place, config_file

HOSPITALS = {f"hospital_{letter}": 1000 for letter in "abc"}
OCTOBER = "2026-10-31T23:59:59.999Z"
ENTRIES = 12
CHECKPOINTS = (5, 9)
TABLES = ("log_nodes", "log_entries", "log_keys", "log_checkpoints", "log_cosignatures", "log_turn")


@dataclass(frozen=True)
class Change:
    """What a superuser does to a column, and what verifying says of it."""

    statements: str
    told: str


CHANGES: dict[str, list[Change]] = {
    "log_nodes.level": [
        Change("UPDATE log_nodes SET level = 40 WHERE level = 1 AND node_index = 2", "4 to 5"),
        Change("UPDATE log_nodes SET level = 40 WHERE level = 0 AND node_index = 11", "entries"),
    ],
    "log_nodes.node_index": [
        Change("UPDATE log_nodes SET node_index = 99 WHERE level = 2 AND node_index = 1", "4 to 7"),
        Change(
            "INSERT INTO log_nodes SELECT 5, 0, hash FROM log_nodes WHERE level = 3",
            "node 0 of level 5",
        ),
        Change(
            "INSERT INTO log_nodes SELECT 1, 6, hash FROM log_nodes WHERE level = 3",
            "node 6 of level 1",
        ),
    ],
    "log_nodes.hash": [
        Change("UPDATE log_nodes SET hash = {zeros} WHERE level = 0 AND node_index = 3", "entry 3"),
        Change("UPDATE log_nodes SET hash = {zeros} WHERE level = 3 AND node_index = 0", "0 to 7"),
    ],
    "log_entries.leaf_index": [
        Change("UPDATE log_entries SET leaf_index = 99 WHERE leaf_index = 3", "does not know"),
        Change("UPDATE log_entries SET leaf_index = leaf_index + 50", "does not know"),
    ],
    "log_entries.month": [
        Change(
            "UPDATE log_entries SET month = '2026-10' WHERE leaf_index = 9",
            "entry 9 is filed under 2026-10",
        ),
    ],
    "log_entries.leaf": [
        Change("UPDATE log_entries SET leaf = {zeros} WHERE leaf_index = 4", "entry 4 was changed"),
    ],
    "log_entries.payload": [
        Change("UPDATE log_entries SET payload = {zeros} WHERE leaf_index = 4", "of entry 4"),
        Change(
            "UPDATE log_entries SET payload = (SELECT payload FROM log_entries "
            "WHERE leaf_index = 5) WHERE leaf_index = 4",
            "of entry 4",
        ),
    ],
    "log_keys.name": [
        Change("UPDATE log_keys SET name = '2026-10.9' WHERE month = '2026-10'", "entry 0"),
        Change("UPDATE log_keys SET name = 'x' WHERE month = '2026-11'", "data key x is filed"),
    ],
    "log_keys.month": [
        Change(
            "UPDATE log_keys SET month = '2026-12' WHERE name = '2026-11.1'",
            "data key 2026-11.1 is filed under 2026-12",
        ),
    ],
    "log_keys.wrapped_by": [
        Change(
            "UPDATE log_keys SET wrapped_by = 'me' WHERE name = '2026-11.1'",
            "data key 2026-11.1 is said to be wrapped by 'me'",
        ),
        Change("UPDATE log_keys SET wrapped_by = 'me'", "data key 2026-10.1 is said"),
    ],
    "log_keys.wrapped": [
        Change("UPDATE log_keys SET wrapped = NULL WHERE name = '2026-10.1'", "entry 0 cannot"),
        Change(
            "UPDATE log_keys SET wrapped = {zeros} WHERE name = '2026-11.1'",
            "data key 2026-11.1 is none of this log's",
        ),
        Change("UPDATE log_keys SET wrapped = {zeros}", "data key 2026-10.1 is none"),
        Change(
            "UPDATE log_keys SET wrapped = (SELECT wrapped FROM log_keys WHERE name = '2026-10.1')",
            "leaf 6 does not open",
        ),
    ],
    "log_checkpoints.size": [
        Change("UPDATE log_checkpoints SET size = 6 WHERE size = 5", "a checkpoint of 5 entries"),
        Change("UPDATE log_checkpoints SET size = 1000000 WHERE size = 9", "filed under 1000000"),
    ],
    "log_checkpoints.note": [
        Change("UPDATE log_checkpoints SET note = {zeros} WHERE size = 5", "filed under 5"),
        Change(
            "UPDATE log_checkpoints SET note = (SELECT note FROM log_checkpoints WHERE size = 5) "
            "WHERE size = 9",
            "filed under 9",
        ),
    ],
    "log_cosignatures.size": [
        Change(
            "UPDATE log_cosignatures SET size = 13 WHERE size = 9; "
            "UPDATE log_cosignatures SET size = 9 WHERE size = 5",
            "filed under 9",
        ),
        Change("UPDATE log_cosignatures SET size = 7 WHERE size = 5", "filed under 7"),
    ],
    "log_cosignatures.node_id": [
        Change(
            "UPDATE log_cosignatures SET node_id = 'hospital_z' "
            "WHERE size = 5 AND node_id = 'hospital_b'",
            "filed under 5 and hospital_z",
        ),
    ],
    "log_cosignatures.line": [
        Change(
            "UPDATE log_cosignatures SET line = {zeros} WHERE node_id = 'hospital_b' AND size = 9",
            "filed under 9 and hospital_b",
        ),
        Change(
            "UPDATE log_cosignatures SET line = (SELECT line FROM log_cosignatures WHERE size = 5 "
            "AND node_id = 'hospital_b') WHERE node_id = 'hospital_b' AND size = 9",
            "filed under 9",
        ),
    ],
}

HARMLESS: dict[str, tuple[str, str]] = {
    "log_turn.id": (
        "The table has no rows and takes none; appending locks it and reads nothing of it.",
        "INSERT INTO log_turn VALUES (1)",
    ),
}


async def make_history(site: Site, store: SqlStore) -> None:
    checkpoints = site.checkpoints(store)
    for number in range(ENTRIES):
        at = {"at": OCTOBER} if number < 6 else {}
        store.commit([], [an_entry("happened", node="hospital_a", number=number, **at)])
        if number + 1 in CHECKPOINTS:
            for node in sorted(HOSPITALS):
                await cosigned(site, checkpoints, NodeId(node))


@dataclass(frozen=True)
class Sound:
    """A log, and how to get another copy of it."""

    site: Site
    url: str

    def copy(self, name: str) -> str:
        if self.url.startswith("sqlite"):
            path = Path(self.url.removeprefix("sqlite:///"))
            # With what is still in the journal beside it.
            with (
                closing(sqlite3.connect(path)) as source,
                closing(sqlite3.connect(path.with_name(name))) as target,
            ):
                source.backup(target)
            return f"sqlite:///{path.with_name(name)}"
        server = make_url(self.url).set(database="postgres")
        execute(
            server.render_as_string(hide_password=False),
            f"CREATE DATABASE {name} TEMPLATE {make_url(self.url).database}",
        )
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def discard(self, url: str) -> None:
        if url.startswith("sqlite"):
            for end in ("", "-wal", "-shm"):
                Path(url.removeprefix("sqlite:///") + end).unlink(missing_ok=True)
        else:
            server = make_url(url).set(database="postgres").render_as_string(hide_password=False)
            execute(server, f"DROP DATABASE {make_url(url).database} WITH (FORCE)")


@pytest.fixture(scope="module", params=["sqlite", pytest.param("pg", marks=pytest.mark.postgres)])
def sound(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sound]:
    site = make_site(tmp_path_factory.mktemp("site"), sizes=HOSPITALS, byzantine=1)
    url = site.config.database_url
    if request.param == "pg":
        server: str = request.getfixturevalue("postgres_url")
        execute(server, "CREATE DATABASE log_columns TEMPLATE template0")
        url = make_url(server).set(database="log_columns").render_as_string(hide_password=False)
    store = SqlStore.connect(
        url, log_origin=log_origin(site.allowlist.federation), log_key=LOG["log_key"]
    )
    store.load()
    asyncio.run(make_history(site, store))
    store.close()
    (site.config.state_dir / "log-encryption.key").write_bytes(LOG_KEY_FILE)
    found = Sound(site, url)
    yield found
    found.discard(url)


@pytest.fixture
def place(sound: Sound) -> Iterator[Place]:
    url = sound.copy("log_columns_copy")
    config = config_file(sound.site)
    config.write_text(f'database = "{url}"\n{config.read_text()}')
    yield Place(sound.site, config, url)
    sound.discard(url)


def columns_of(url: str) -> set[str]:
    """Of every table of the log, as the database itself knows them; months are parts of one."""
    engine = create_database_engine(url)
    with reading(engine) as connection:
        if url.startswith("sqlite"):
            query = (
                "SELECT m.name || '.' || c.name FROM sqlite_master AS m, pragma_table_info(m.name) "
                "AS c WHERE m.type = 'table' AND m.name LIKE 'log\\_%' ESCAPE '\\'"
            )
        else:
            query = (
                "SELECT relname || '.' || attname FROM pg_attribute JOIN pg_class ON "
                "pg_class.oid = attrelid WHERE relname LIKE 'log\\_%' AND relkind IN ('r', 'p') "
                "AND NOT relispartition AND attnum > 0 AND NOT attisdropped "
                "AND relnamespace = current_schema()::regnamespace"
            ).replace("::", "\\:\\:")
        found = set(connection.execute(text(query)).scalars())
    engine.dispose()
    return found


def disarmed(place: Place, statements: str) -> None:
    """Do it with nothing in the way that a superuser can put aside."""
    is_sqlite = place.url.startswith("sqlite")
    zeros = "zeroblob(32)" if is_sqlite else "decode(repeat('00', 32), 'hex')"

    def change(connection: Connection) -> None:
        if is_sqlite:
            connection.execute(text("PRAGMA ignore_check_constraints = ON"))
        else:
            for name in TABLES:
                connection.execute(text(f"ALTER TABLE {name} DISABLE TRIGGER ALL"))
            connection.execute(text("ALTER TABLE log_turn DROP CONSTRAINT ck_log_turn_empty"))
        for statement in statements.format(zeros=zeros).split("; "):
            assert connection.execute(text(statement)).rowcount > 0

    place.intrude(change)


def test_every_column_of_the_logs_tables_has_a_case(sound: Sound) -> None:
    assert columns_of(sound.url) == {*CHANGES, *HARMLESS}
    assert {each.partition(".")[0] for each in columns_of(sound.url)} == set(TABLES)


def test_a_log_that_nobody_changed_is_sound(place: Place) -> None:
    found = place.verify("--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["opened"] == ENTRIES


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("column", "number"), [(name, i) for name, each in CHANGES.items() for i in range(len(each))]
)
def test_a_change_of_any_column_is_found_and_its_place_named(
    place: Place, column: str, number: int
) -> None:
    change = CHANGES[column][number]
    disarmed(place, change.statements)
    found = place.verify()
    assert found.exit_code == 1, found.output
    assert change.told in found.stderr


@pytest.mark.hostile
@pytest.mark.parametrize("column", HARMLESS)
def test_what_is_called_harmless_changes_nothing_that_is_read(place: Place, column: str) -> None:
    _, statement = HARMLESS[column]
    before = exported(place)
    disarmed(place, statement)
    assert exported(place) == before
    # Last, since it is put on record itself.
    found = place.verify("--json")
    assert found.exit_code == 0, found.output


def exported(place: Place) -> dict[Path, bytes]:
    folder = place.site.folder / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    done = place.run("export", str(folder), "--coordinator-config", str(place.config))
    assert done.exit_code == 0, done.output
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}
