"""What each user of the database can do to the log, tried as that user on a real server."""

import subprocess
from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from matl_common.errors import ConfigurationError
from matl_common.ids import NodeId
from matl_common.tlog.merkle import leaf_hash, merkle_root
from matl_coordinator.ports import PutStudy, PutUpdate, StoreError
from matl_coordinator.store import guards
from matl_coordinator.store.database import create_database_engine, writing
from matl_coordinator.store.migrate import schema_drift
from matl_coordinator.store.sql import SqlStore
from tests.contracts.samples import a_study, an_update
from tests.logs import LOG, a_note, an_entry, events_of
from tests.postgres import execute, fresh_database, run_script
from tests.store.roles import (
    OWNER,
    READER,
    RETENTION,
    ROLES,
    WRITER,
    connected,
    disarm,
    prepare,
    url_of,
)

pytestmark = pytest.mark.postgres

OLD, NEW = "2019-01-31T23:59:59.999Z", "2026-11-01T00:00:00.000Z"
LINE = "\N{EM DASH} test/witness/hospital_a AAAAAAAA\n".encode()
OLDER = "2018-12-31T23:59:59.999Z"
DENIED, KEPT, STALE, WRONG = "42501", "23001", "40001", "22023"
CHILD = "log_entries_2019_01"
STUDY = ("study", "models", "rounds", "updates", "trust", "writer")
TABLES = ("log_nodes", "log_entries", "log_keys", "log_checkpoints", "log_cosignatures")


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[str]:
    """Entries of two months and a cosigned checkpoint, written by the writer."""
    with fresh_database(postgres_url) as url:
        prepare(url)
        with closing(SqlStore.connect(url_of(url, WRITER), **LOG)) as store:
            store.load()
            store.commit([PutStudy(a_study())], [an_entry("old", at=OLD), an_entry("new", at=NEW)])
            assert store.put_checkpoint(2, a_note(store.log_head()))
            store.put_cosignature(2, NodeId("hospital_a"), LINE)
        yield url


def outcome(url: str, role: str | None, *statements: str) -> str | None:
    """The error's SQLSTATE, or nothing where all statements are carried out."""
    with connected(url, role) as connection:
        try:
            for statement in statements:
                connection.execute(text(statement))
        except DBAPIError as error:
            state: str = getattr(error.orig, "sqlstate", "")
            return state
        return None


CHANGES = (
    *(f"DELETE FROM {name}" for name in TABLES),
    *(f"TRUNCATE {name} CASCADE" for name in TABLES),
    *(f"DROP TABLE {name} CASCADE" for name in TABLES),
    *(f"ALTER TABLE {name} DISABLE TRIGGER USER" for name in TABLES),
    *(f"ALTER TABLE {name} DISABLE TRIGGER log_keep_rows" for name in TABLES),
    *(f"ALTER TABLE {name} ENABLE REPLICA TRIGGER log_keep_rows" for name in TABLES),
    *(f"DROP TRIGGER log_keep_table ON {name}" for name in TABLES),
    "UPDATE log_nodes SET hash = sha256(hash)",
    "UPDATE log_entries SET payload = leaf",
    "UPDATE log_keys SET name = '2019-01.2', wrapped_by = 'me'",
    "UPDATE log_keys SET month = '2019-02'",
    "UPDATE log_checkpoints SET note = ''",
    "UPDATE log_cosignatures SET line = ''",
    f"UPDATE {CHILD} SET payload = leaf",
    f"DELETE FROM {CHILD}",
    f"TRUNCATE {CHILD}",
    f"DROP TABLE {CHILD}",
    f"DROP TRIGGER log_keep_table ON {CHILD}",
    f"ALTER TABLE {CHILD} DISABLE TRIGGER ALL",
    f"ALTER TABLE {CHILD} DISABLE TRIGGER log_keep_rows",
    f"ALTER TABLE {CHILD} DISABLE TRIGGER log_keep_table",
    f"ALTER TABLE log_entries DETACH PARTITION {CHILD}",
    "ALTER TABLE log_nodes DROP COLUMN hash",
    "ALTER TABLE log_nodes DROP CONSTRAINT pk_log_nodes",
    "ALTER TRIGGER log_keep_rows ON log_nodes RENAME TO gone",
    *(f"ALTER TABLE {name} RENAME TO gone" for name in (*TABLES, CHILD)),
    "DROP FUNCTION log_append",
    "DROP INDEX ix_log_keys_month",
)


@pytest.mark.parametrize("statement", CHANGES)
@pytest.mark.parametrize("role", [OWNER, None])
def test_owner_and_superuser_are_stopped_by_triggers(
    database: str, role: str | None, statement: str
) -> None:
    assert outcome(database, role, statement) == KEPT


@pytest.mark.parametrize("statement", CHANGES)
@pytest.mark.parametrize("role", [WRITER, READER, RETENTION])
def test_nobody_else_may_change_anything(database: str, role: str, statement: str) -> None:
    assert outcome(database, role, statement) == DENIED


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO log_nodes VALUES (0, 2, sha256(''))",
        "INSERT INTO log_entries VALUES (2, '2019-01', '', '')",
        f"SELECT leaf FROM {CHILD}",
        "SELECT log_make_partition('2019-02')",
        "SELECT log_root(2)",
        "INSERT INTO log_checkpoints VALUES (1, '')",
        "INSERT INTO log_cosignatures VALUES (2, 'hospital_b', '')",
        "INSERT INTO log_keys VALUES ('2026-12.1', '2026-12', 'x', '')",
        "INSERT INTO log_turn VALUES (1)",
        "LOCK TABLE log_turn IN ACCESS SHARE MODE",
        "LOCK TABLE log_nodes IN SHARE MODE",
        "SELECT log_append_order('x', 2, '', '')",
        "CREATE TABLE mine (x integer)",
        "CREATE FUNCTION log_lock(integer) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE OR REPLACE FUNCTION log_floor(OUT y int, OUT c int) LANGUAGE sql AS 'SELECT 0, 0'",
        "SET session_replication_role = replica",
        f"SET ROLE {OWNER}",
        "DROP EVENT TRIGGER matl_log_keep_objects",
        "ALTER EVENT TRIGGER matl_log_keep_guards DISABLE",
        "UPDATE alembic_version SET version_num = '0'",
        "DELETE FROM study",
    ],
)
@pytest.mark.parametrize("role", [WRITER, READER, RETENTION])
def test_nobody_gets_round_what_he_may_call(database: str, role: str, statement: str) -> None:
    assert outcome(database, role, statement) == DENIED


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        (READER, "SELECT log_lock()"),
        *((each, f"SELECT * FROM {name}") for each in (READER, RETENTION) for name in STUDY),
        (READER, "SELECT log_append(2, ARRAY[''::bytea], ARRAY[''::bytea])"),
        (READER, "UPDATE study SET document = ''"),
        (READER, "SELECT log_put_checkpoint(2, '')"),
        (READER, "SELECT log_put_cosignature(2, 'hospital_b', '')"),
        (READER, "SELECT log_put_key('x', 'x', 'x', '')"),
        (RETENTION, "SELECT log_append(2, ARRAY[''::bytea], ARRAY[''::bytea])"),
        (RETENTION, "UPDATE writer SET epoch = 9"),
        (RETENTION, "SELECT log_put_checkpoint(2, '')"),
        (RETENTION, "SELECT log_put_cosignature(2, 'hospital_b', '')"),
        (WRITER, "SELECT log_drop_month('2019-01', 7, 1, 2, '', '')"),
        (WRITER, "SELECT log_erase_key('2019-01', 7, 2, '', '')"),
        (WRITER, "SELECT log_rewrap_keys('{}', '{}', 'x', 2, '', '')"),
        (OWNER, "SET session_replication_role = replica"),
        (OWNER, "DROP EVENT TRIGGER matl_log_keep_objects"),
    ],
)
def test_each_user_has_its_own_work(database: str, role: str, statement: str) -> None:
    assert outcome(database, role, statement) == DENIED


@pytest.mark.parametrize(
    "statement",
    [
        "DROP FUNCTION log_refuse_change CASCADE",
        "DROP FUNCTION log_refuse_key_change CASCADE",
        "CREATE OR REPLACE FUNCTION log_refuse_change() RETURNS trigger LANGUAGE sql AS ''",
        "CREATE OR REPLACE FUNCTION log_refuse_key_change() RETURNS trigger LANGUAGE sql AS ''",
    ],
)
@pytest.mark.parametrize("role", [OWNER, WRITER, READER, RETENTION])
def test_what_triggers_call_is_a_superusers(database: str, role: str, statement: str) -> None:
    assert outcome(database, role, statement) == (KEPT if role == OWNER else DENIED)


BEFORE_CHANGES = "BEFORE UPDATE OR DELETE ON log_nodes FOR EACH ROW"
REFUSED = "EXECUTE FUNCTION log_refuse_change()"
NOTHING = "LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'"
REWRITES = (
    "ALTER TABLE log_entries ALTER COLUMN payload TYPE bytea USING leaf",
    "ALTER TABLE log_nodes ALTER COLUMN hash TYPE bytea USING sha256(hash)",
    "ALTER TABLE log_keys ALTER COLUMN wrapped TYPE bytea USING NULL",
    "ALTER TABLE log_nodes SET UNLOGGED",
)
MASKS = (
    "CREATE RULE swallow AS ON INSERT TO log_nodes DO INSTEAD NOTHING",
    "ALTER TABLE log_entries ENABLE ROW LEVEL SECURITY",
)
REDEFINITIONS = (
    f"CREATE OR REPLACE TRIGGER log_keep_rows {BEFORE_CHANGES} WHEN (false) {REFUSED}",
    f"CREATE TRIGGER log_too BEFORE INSERT ON log_entries FOR EACH ROW {REFUSED}",
    "CREATE OR REPLACE FUNCTION log_lock() RETURNS bigint LANGUAGE sql AS 'SELECT 10000000000'",
    "ALTER FUNCTION log_append SECURITY INVOKER",
    "ALTER FUNCTION log_append RENAME TO gone",
    "ALTER FUNCTION log_append SET search_path = pg_temp",
    f"CREATE FUNCTION log_nothing() RETURNS trigger {NOTHING}",
)
ELSEWHERE = (
    "CREATE POLICY nobody ON log_entries USING (false)",
    "CREATE INDEX slow ON log_nodes ((1 / (node_index - 7)))",
    "ALTER TABLE log_nodes ADD CHECK (node_index < 9)",
    "REVOKE EXECUTE ON FUNCTION log_append FROM matl_log_writer",
    "GRANT DELETE ON log_nodes TO PUBLIC",
    "DROP TABLE writer",
    "CREATE TABLE log_entries_2019_02 PARTITION OF log_entries FOR VALUES IN ('2019-02')",
    "CREATE TEMPORARY TABLE mine (x integer)",
    "DROP FUNCTION matl_log_refuse_drop CASCADE",
    "DROP OWNED BY matl_log_owner",
)


@pytest.mark.parametrize("statement", [*REWRITES, *MASKS, *REDEFINITIONS, *ELSEWHERE])
def test_the_owner_defines_nothing(database: str, statement: str) -> None:
    assert outcome(database, OWNER, statement) == KEPT


@pytest.mark.parametrize("statement", [*REWRITES, *MASKS])
def test_nor_does_a_superuser_rewrite_or_hide_rows_by_mistake(
    database: str, statement: str
) -> None:
    assert outcome(database, None, statement) == KEPT


def test_nor_does_whoever_has_the_owners_rights_or_was_given_what_it_owned(database: str) -> None:
    became = "SET LOCAL SESSION AUTHORIZATION passing"
    member = ("CREATE ROLE passing", f"GRANT {OWNER} TO passing", became)
    given = ("CREATE ROLE passing", f"REASSIGN OWNED BY {OWNER} TO passing", became)
    for made in (member, given):
        assert outcome(database, None, *made, MASKS[0]) == KEPT


def test_whoever_may_define_nothing_is_told_so_before_migrating(database: str) -> None:
    with connected(database, None) as connection:
        assert guards.may_migrate(connection)
        for statement in (
            "CREATE ROLE passing",
            f"GRANT {OWNER} TO passing",
            "GRANT CREATE ON SCHEMA public TO passing",
            "SET LOCAL SESSION AUTHORIZATION passing",
        ):
            connection.execute(text(statement))
        assert not guards.may_migrate(connection)


def test_what_others_define_in_the_database_is_their_own_affair(database: str) -> None:
    theirs = (
        "CREATE ROLE neighbour",
        "CREATE SCHEMA apart AUTHORIZATION neighbour",
        "REVOKE USAGE ON SCHEMA public FROM PUBLIC",
        "SET LOCAL SESSION AUTHORIZATION neighbour",
        "CREATE TABLE apart.log_nodes (x integer)",
        "ALTER TABLE apart.log_nodes ALTER COLUMN x TYPE bigint USING 1",
        "CREATE RULE theirs AS ON DELETE TO apart.log_nodes DO INSTEAD NOTHING",
        "DROP TABLE apart.log_nodes",
    )
    assert outcome(database, None, *theirs) is None


def test_a_superuser_migrates_under_all_guards(database: str) -> None:
    migration = (
        "ALTER TABLE study ADD COLUMN more integer",
        "CREATE TABLE log_more (x integer)",
        "CREATE OR REPLACE FUNCTION log_lock() RETURNS bigint LANGUAGE sql AS 'SELECT 10000000000'",
        "ALTER TABLE log_nodes ADD COLUMN more integer",
    )
    assert outcome(database, None, *migration) is None


def test_a_superuser_does_not_drop_what_triggers_call(database: str) -> None:
    assert outcome(database, None, "DROP FUNCTION log_refuse_change CASCADE") == KEPT


@pytest.mark.parametrize("role", [WRITER, READER, RETENTION])
def test_everyone_reads_the_whole_log(database: str, role: str) -> None:
    with closing(SqlStore.connect(url_of(database, role), **LOG)) as store:
        assert events_of(store.log_entries(start=0, limit=9))[:2] == ["old", "new"]
        assert store.log_head().size >= 2


@pytest.mark.parametrize("statement", CHANGES)
def test_a_replica_session_does_not_get_past_the_triggers(database: str, statement: str) -> None:
    assert outcome(database, None, "SET session_replication_role = replica", statement) == KEPT


@pytest.mark.parametrize(
    ("statement", "state"),
    [
        ("SELECT log_append(1, ARRAY[{leaf}], ARRAY[''::bytea])", STALE),
        ("SELECT log_append(3, ARRAY[{leaf}], ARRAY[''::bytea])", STALE),
        ("SELECT log_append(NULL, ARRAY[{leaf}], ARRAY[''::bytea])", STALE),
        ("SELECT log_append(log_lock(), ARRAY[{leaf}], ARRAY[''::bytea, ''])", WRONG),
        ("SELECT log_append(log_lock(), ARRAY[''::bytea], ARRAY[''::bytea])", WRONG),
        ("SELECT log_append(log_lock(), ARRAY[{leaf}, NULL], ARRAY[''::bytea, ''])", WRONG),
        (
            "SELECT log_append(log_lock(), ARRAY['{{\"by\"\\:\"2026-11'::bytea], ARRAY[''::bytea])",
            WRONG,
        ),
        (
            "SELECT log_append(log_lock(), ARRAY['{{\"at\"\\:\"2026-13'::bytea], ARRAY[''::bytea])",
            WRONG,
        ),
    ],
)
def test_an_append_that_does_not_fit_is_refused(database: str, statement: str, state: str) -> None:
    leaf = """'{"at"\\:"2026-11-01'::bytea"""
    assert outcome(database, WRITER, statement.format(leaf=leaf)) == state


def test_a_month_goes_only_where_the_same_transaction_says_so(postgres_database: str) -> None:
    prepare(postgres_database)
    with closing(SqlStore.connect(url_of(postgres_database, WRITER), **LOG)) as store:
        store.load()
        old = [an_entry("old", at=OLD), an_entry("older", at=OLDER)]
        store.commit([], [*old, an_entry("month_dropped", at=NEW)])

    def logged(event: str) -> str:
        leaf = f"""'{{"at"\\:"2026-11-28","event"\\:"{event}"}}'\\:\\:bytea"""
        return f"SELECT log_append(3, ARRAY[{leaf}], ARRAY['x'\\:\\:bytea])"

    drop, another = f"DROP TABLE {CHILD}", "log_entries_2018_12"
    # The last transaction said so, and this one says nothing or something else.
    assert outcome(postgres_database, None, drop) == KEPT
    assert outcome(postgres_database, None, logged("x"), drop) == KEPT
    said = logged("month_dropped")
    assert outcome(postgres_database, None, said, f"{drop}, {another}") == KEPT
    assert outcome(postgres_database, None, said, "DROP TABLE log_keys") == KEPT
    assert outcome(postgres_database, None, said, drop) is None
    putting_away = "SELECT log_drop_partition('2019-01')"
    assert outcome(postgres_database, OWNER, putting_away) == KEPT
    assert outcome(postgres_database, OWNER, said, drop) == KEPT
    assert outcome(postgres_database, OWNER, said, putting_away) is None


def test_the_writer_cannot_put_tables_of_its_own_in_the_way(database: str) -> None:
    with connected(database, WRITER) as connection:
        connection.execute(text("CREATE TEMPORARY TABLE log_nodes (LIKE log_nodes)"))
        connection.execute(text("SET search_path = pg_temp, public"))
        assert connection.execute(text("SELECT log_lock()")).scalar_one() == 2


def test_the_tables_are_those_of_the_schema_whoever_owns_them(database: str) -> None:
    engine = create_database_engine(database)
    drift = [each for each in schema_drift(engine) if "log_entries_" not in str(each)]
    engine.dispose()
    assert drift == []


def test_running_the_script_again_changes_nothing(database: str) -> None:
    def rights() -> list[object]:
        with connected(database, None) as connection:
            tables = (
                "SELECT relname, relowner, relacl::text FROM pg_class WHERE relname LIKE 'log%'"
            )
            functions = "SELECT proname, proowner, proacl::text FROM pg_proc WHERE proname ~ 'log_'"
            return [
                sorted(map(str, connection.execute(text(each)))) for each in (tables, functions)
            ]

    # Once for the months that were made since.
    run_script(database, ROLES)
    before = rights()
    run_script(database, ROLES)
    assert rights() == before


def test_a_daemon_is_told_what_its_database_does_not_prevent(postgres_database: str) -> None:
    with closing(SqlStore.connect(postgres_database, **LOG)) as store:
        (warning,) = store.weaknesses()
        assert "owns the log's tables" in warning
    prepare(postgres_database)
    with closing(SqlStore.connect(url_of(postgres_database, WRITER), **LOG)) as store:
        assert store.weaknesses() == ()


FLOOR = "SELECT years, cosignatures FROM log_floor()"


def floor_of(url: str) -> tuple[int, int]:
    with connected(url, None) as connection:
        years, cosignatures = connection.execute(text(FLOOR)).one()
        return years, cosignatures


def test_the_script_keeps_what_it_was_told_and_takes_more(postgres_database: str) -> None:
    prepare(postgres_database)
    assert floor_of(postgres_database) == (7, 1)
    run_script(postgres_database, ROLES, retention_years="9", cosignatures="3")
    assert "9 years and 3 cosignatures" in run_script(postgres_database, ROLES)
    run_script(postgres_database, ROLES, cosignatures="4")
    assert floor_of(postgres_database) == (9, 4)


@pytest.mark.parametrize("less", [{"retention_years": "8"}, {"cosignatures": "2"}])
def test_the_script_takes_less_only_by_force(postgres_database: str, less: dict[str, str]) -> None:
    prepare(postgres_database, retention_years="9", cosignatures="3")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run_script(postgres_database, ROLES, **less)
    assert "insists on more already" in caught.value.stdout
    assert floor_of(postgres_database) == (9, 3)
    # What was there before is there still.
    with closing(SqlStore.connect(url_of(postgres_database, WRITER), **LOG)) as store:
        assert store.weaknesses() == ()
    run_script(postgres_database, ROLES, **less, force="1")
    assert floor_of(postgres_database) in {(8, 3), (9, 2)}


def test_the_script_warns_of_a_floor_that_is_none(postgres_database: str) -> None:
    prepare(postgres_database)
    assert "WARNING" not in run_script(postgres_database, ROLES, retention_years="7")
    short = run_script(postgres_database, ROLES, retention_years="5", force="1")
    assert "WARNING: HIPAA" in short
    alone = run_script(postgres_database, ROLES, cosignatures="0", force="1")
    assert "no hospital has cosigned" in alone


REPLACED = "CREATE OR REPLACE TRIGGER log_keep_rows BEFORE"
ARMED = "ALTER TABLE log_nodes ENABLE ALWAYS TRIGGER log_keep_rows"
OTHER = "EXECUTE FUNCTION log_refuse_key_change()"
REPLACEMENTS = (
    f"{REPLACED} UPDATE OR DELETE ON log_nodes FOR EACH ROW WHEN (false) {REFUSED}",
    f"{REPLACED} UPDATE ON log_nodes FOR EACH ROW {REFUSED}",
    f"{REPLACED} UPDATE OF level OR DELETE ON log_nodes FOR EACH ROW {REFUSED}",
    f"{REPLACED} UPDATE OR DELETE ON log_nodes FOR EACH ROW {OTHER}",
)
EVENT_TRIGGERS = (
    "matl_log_keep_definitions",
    "matl_log_keep_guards",
    "matl_log_keep_objects",
    "matl_log_keep_values",
)


@pytest.mark.parametrize("name", EVENT_TRIGGERS)
def test_a_daemon_is_told_of_an_event_trigger_that_is_not_as_it_was_made(
    postgres_database: str, name: str
) -> None:
    prepare(postgres_database)
    with closing(SqlStore.connect(url_of(postgres_database, WRITER), **LOG)) as store:
        for change in (f"ALTER EVENT TRIGGER {name} ENABLE", f"DROP EVENT TRIGGER {name}"):
            execute(postgres_database, change)
            (warning,) = store.weaknesses()
            assert name in warning
        run_script(postgres_database, ROLES)
        assert store.weaknesses() == ()


NONE = "'SELECT to_char(now(), NULL) WHERE false'"
GUARDS = ("log_keep_rows", "log_keep_table", "log_keep_key")


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        *((each, "log_") for each in (*MASKS, *REDEFINITIONS)),
        *((f"{each}; {ARMED}", "log_keep_rows on log_nodes") for each in REPLACEMENTS),
        *((f"ALTER TABLE {name} DISABLE TRIGGER USER", name) for name in TABLES),
        *((f"DROP TRIGGER {guard} ON log_keys", guard) for guard in GUARDS),
        (f"DROP TRIGGER log_keep_table ON {CHILD}", CHILD),
        (f"ALTER TABLE {CHILD} DISABLE TRIGGER log_keep_rows", CHILD),
        (f"ALTER TABLE {CHILD} RENAME TO gone", "gone"),
        ("ALTER TABLE log_turn RENAME TO gone", "log_turn is missing"),
        ("ALTER TABLE log_nodes SET UNLOGGED", "crash"),
        (
            f"CREATE OR REPLACE FUNCTION log_unguarded() RETURNS SETOF text LANGUAGE sql AS {NONE}",
            "log_",
        ),
    ],
)
def test_a_daemon_is_told_of_every_guard_that_is_not_as_it_was_made(
    database: str, statement: str, told: str
) -> None:
    with connected(database, None) as superuser:
        for name in EVENT_TRIGGERS:
            superuser.execute(text(f"ALTER EVENT TRIGGER {name} DISABLE"))
        assert guards.weaknesses_of_tables(superuser) == ()
        superuser.exec_driver_sql(statement)
        warnings = guards.weaknesses_of_tables(superuser)
        assert any(told in each for each in warnings), warnings


def test_a_writer_does_not_migrate_but_says_who_can(postgres_database: str) -> None:
    prepare(postgres_database)
    execute(postgres_database, "UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(ConfigurationError, match="matl-coordinator migrate"):
        SqlStore.connect(url_of(postgres_database, WRITER), **LOG)


def test_a_writer_that_kept_no_place_fails_without_a_gap(postgres_database: str) -> None:
    prepare(postgres_database)
    with closing(SqlStore.connect(url_of(postgres_database, WRITER), **LOG)) as store:
        store.load()
        with pytest.raises(StoreError):
            store.commit([PutUpdate(an_update(9))], [an_entry("lost", at=OLD)])
        store.load()
        for number in range(5):
            store.commit([], [an_entry(f"{number}", at=OLD)] * (number + 1))
        logged = store.log_entries(start=0, limit=99)
        assert [each.index for each in logged] == [*range(15)]
        root = merkle_root([bytes.fromhex(each.leaf_hash) for each in logged])
        assert store.log_head().root == root.hex()


def test_a_superuser_can_do_anything_and_the_signed_root_shows_it(postgres_database: str) -> None:
    prepare(postgres_database)
    with closing(SqlStore.connect(url_of(postgres_database, WRITER), **LOG)) as store:
        store.load()
        store.commit([], [an_entry("admitted", at=NEW), an_entry("refused", at=NEW)])
        signed = store.log_head().root
        changed = "replace(encode(leaf, 'escape'), 'refused', 'allowed')::bytea"
        engine = create_database_engine(postgres_database)
        with writing(engine) as connection:
            connection.execute(text("DROP EVENT TRIGGER matl_log_keep_guards"))
            disarm(connection)
            connection.execute(text(f"UPDATE log_entries SET leaf = {changed}"))
        engine.dispose()
        leaves = store_leaves(postgres_database)
        assert b"allowed" in leaves[1]
        assert merkle_root([leaf_hash(leaf) for leaf in leaves]).hex() != signed


def store_leaves(url: str) -> list[bytes]:
    with connected(url, None) as connection:
        rows = connection.execute(text("SELECT leaf FROM log_entries ORDER BY leaf_index"))
        return [bytes(leaf) for (leaf,) in rows]
