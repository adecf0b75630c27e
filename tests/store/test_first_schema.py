"""A database of the first released tables goes forward: the log's bytes stay, the study goes on."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import asyncio
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config as History
from sqlalchemy import Connection, Engine, func, insert, inspect, select, update

from matl_common.ids import Digest, NodeId
from matl_coordinator.core.rounds import Round
from matl_coordinator.ports import ModelRecord, StudyRecord, UpdateRecord
from matl_coordinator.store import log, migrate
from matl_coordinator.store.database import create_database_engine, reading, writing
from matl_coordinator.store.migrate import schema_drift, schema_version
from matl_coordinator.store.reader import LogReader
from matl_coordinator.store.schema import log_entries, log_turn, metadata, writer
from tests.coordinator.harness import (
    NODES,
    Site,
    events_of,
    final_model,
    honest_update,
    make_site,
    next_round,
    play,
    running,
    seal,
    send,
    together,
)

FIRST = min(migrate.revisions())
"""The first release's tables; what there was before was never released."""
RECORDS: dict[str, type] = {
    "study": StudyRecord,
    "rounds": Round,
    "updates": UpdateRecord,
    "models": ModelRecord,
}


@dataclass(frozen=True)
class Recorded:
    """A site whose study was left in round 2, and all rows of its database."""

    site: Site
    rows: dict[str, list[dict[str, Any]]]
    root: str
    leaves: list[bytes | None]


async def left_in_round_2(site: Site) -> None:
    async with running(site) as coordinator:

        async def take_part(node: NodeId) -> None:
            for number in (0, 1) if node != NODES[2] else (0,):
                start = await next_round(coordinator, node, have_round=number)
                assert start is not None
                update_ = seal(site, node, start, coordinator.plan, honest_update(node, start))
                await send(coordinator, node, update_)

        await together(*map(take_part, NODES))
        # It is there, so that the round opens.
        assert await next_round(coordinator, NODES[2], have_round=1) is not None


async def rest_of_the_study(site: Site) -> tuple[Digest, list[str]]:
    async with running(site) as coordinator:
        await play(coordinator)
        told = [str(each["event"]) for each in events_of(coordinator.store)]
        return await final_model(coordinator), told


def a_site(folder: Path) -> Site:
    folder.mkdir()
    return make_site(folder, study={"rounds": 3}, collect_seconds=3600.0)


def as_recorded_before(table: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row without the fields that have a default: those that records got later."""
    if table not in RECORDS:
        return row
    later = {each.name for each in fields(RECORDS[table]) if each.default is not MISSING}
    documents = [
        {key: value for key, value in record.items() if key not in later or value}
        for record in json.loads(row["document"])
    ]
    return row | {"document": json.dumps(documents)}


@contextmanager
def engine_of(url: str) -> Iterator[Engine]:
    engine = create_database_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    site = a_site(tmp_path_factory.mktemp("recorded") / "site")
    asyncio.run(left_in_round_2(site))
    with engine_of(site.config.database_url) as engine:
        reader = LogReader(engine)
        leaves = [each.leaf for page in reader.pages() for each in page]
        with reading(engine) as connection:
            rows = {
                table.name: [
                    as_recorded_before(table.name, dict(row))
                    for row in connection.execute(select(table)).mappings()
                ]
                for table in metadata.sorted_tables
                if table is not log_turn
            }
        return Recorded(site, rows, root_of(engine), leaves)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Digest:
    return asyncio.run(rest_of_the_study(a_site(tmp_path_factory.mktemp("whole") / "site")))[0]


def root_of(engine: Engine) -> str:
    with reading(engine) as connection:
        return log.read_head(connection).root


def make_first_tables(engine: Engine) -> None:
    history = History()
    folder = Path(migrate.__file__).parent / "migrations"
    history.set_main_option("script_location", str(folder).replace("%", "%%"))
    with writing(engine) as connection:
        history.attributes["connection"] = connection
        command.upgrade(history, FIRST)


def put_rows(connection: Connection, recorded: Recorded) -> None:
    if connection.dialect.name == "postgresql":
        for month in sorted({str(row["month"]) for row in recorded.rows[log_entries.name]}):
            connection.execute(select(func.log_make_partition(month)))
    for table in metadata.sorted_tables:
        rows = recorded.rows.get(table.name)
        if rows and table is writer:
            connection.execute(update(writer).values(epoch=rows[0]["epoch"]))
        elif rows:
            connection.execute(insert(table), rows)


def test_a_study_that_began_on_the_first_tables_goes_on_and_its_log_is_the_same_to_the_byte(
    database_url: str, recorded: Recorded, undisturbed: Digest, tmp_path: Path
) -> None:
    with engine_of(database_url) as engine:
        make_first_tables(engine)
        with writing(engine) as connection:
            put_rows(connection, recorded)
            assert schema_version(connection) == FIRST != migrate.head()
            assert log_turn.name not in inspect(connection).get_table_names()
        assert root_of(engine) == recorded.root
        assert "abort_reason" not in recorded.rows["rounds"][0]["document"], "a later field"
    migrate.upgrade_apart(database_url)
    with engine_of(database_url) as engine:
        # Months are tables of their own on PostgreSQL, and none of the schema's.
        drift = [str(each) for each in schema_drift(engine) if "log_entries_2" not in str(each)]
        assert drift == []
        with reading(engine) as connection:
            assert schema_version(connection) == migrate.head()
        reader = LogReader(engine)
        assert root_of(engine) == recorded.root
        assert [each.leaf for page in reader.pages() for each in page] == recorded.leaves
    state = shutil.copytree(recorded.site.config.state_dir, tmp_path / "state")
    config = recorded.site.config.model_copy(update={"database": database_url, "state_dir": state})
    model, told = asyncio.run(rest_of_the_study(replace(recorded.site, config=config)))
    assert model == undisturbed
    assert told.count("model_released") == 3
