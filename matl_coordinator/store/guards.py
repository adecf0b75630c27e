"""What the database itself keeps a user from doing to the log, and what it does not.

Nothing here guards anything: PostgreSQL's roles and triggers do (``deploy/postgresql/roles.sql``).
"""

import re
from pathlib import Path

from sqlalchemy import Connection, text

_POSTGRES = "postgresql"

SQLITE_WARNING = (
    "SQLite has no roles: whoever can write the database's file can rewrite the log, and only the "
    "checkpoints that hospitals cosign will show it; use PostgreSQL in production"
)

_MAY_MIGRATE = text("""
    SELECT coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)
       AND NOT EXISTS (SELECT FROM pg_class
                        WHERE oid = to_regclass('alembic_version')
                          AND NOT pg_has_role(relowner, 'USAGE'))
       AND (NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'matl_log_keep_definitions')
            OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user))
""")

_RIGHTS = text("""
    SELECT current_user AS name, pg_has_role(relowner, 'USAGE') AS owns
      FROM pg_class WHERE oid = to_regclass('log_nodes')
""")

# As roles.sql makes them, which is no part of this package.
_EVENT_TRIGGERS = (
    ("matl_log_keep_definitions", "ddl_command_start", "matl_log_refuse_owner"),
    ("matl_log_keep_guards", "ddl_command_end", "matl_log_refuse_disarming"),
    ("matl_log_keep_objects", "sql_drop", "matl_log_refuse_drop"),
    ("matl_log_keep_values", "table_rewrite", "matl_log_refuse_rewrite"),
)
_KEPT = text("""
    SELECT evtname, evtevent, proname
      FROM pg_event_trigger
      JOIN pg_proc ON pg_proc.oid = evtfoid
      JOIN pg_roles ON pg_roles.oid = proowner
     WHERE evtenabled = 'A' AND pronamespace = current_schema()::regnamespace AND rolsuper
""")

_UNGUARDED = text("SELECT * FROM log_unguarded()")

_FUNCTIONS = text("""
    SELECT proname,
           prosrc,
           prosecdef,
           proconfig IS NOT NULL,
           coalesce(proconfig = ARRAY['search_path=' || quote_ident(current_schema())
                                      || ', pg_temp'], true)
      FROM pg_proc
     WHERE pronamespace = current_schema()::regnamespace AND starts_with(proname, 'log_')
""")
_HISTORY = Path(__file__).parent / "migrations" / "versions"
_MADE = re.compile(
    r"^CREATE (?:OR REPLACE )?FUNCTION (\w+)(.*?) AS \$\$(.*?)\$\$;", re.DOTALL | re.MULTILINE
)
_CHOSEN = "log_floor"
"""Its body is what an administrator gave to roles.sql."""


def may_migrate(connection: Connection) -> bool:
    """Whether the database's user may make and change the tables."""
    if connection.dialect.name != _POSTGRES:
        return True
    return bool(connection.execute(_MAY_MIGRATE).scalar_one())


def weaknesses(connection: Connection) -> tuple[str, ...]:
    """What an operator should know of how well the log is kept from its own writer."""
    if connection.dialect.name != _POSTGRES:
        return (SQLITE_WARNING,)
    rights = connection.execute(_RIGHTS).one()
    if rights.owns:
        owner_warning = (
            f"the database user {rights.name} owns the log's tables, so whoever has its password "
            "can rewrite the log; run deploy/postgresql/roles.sql and connect as matl_log_writer"
        )
        return (owner_warning,)
    kept = {tuple(row) for row in connection.execute(_KEPT)}
    if lost := [event[0] for event in _EVENT_TRIGGERS if event not in kept]:
        event_warning = (
            "the event triggers that keep the log from its owner are not as they were made "
            f"({', '.join(lost)}); run deploy/postgresql/roles.sql as a superuser"
        )
        return (event_warning, *weaknesses_of_tables(connection))
    return weaknesses_of_tables(connection)


def weaknesses_of_tables(connection: Connection) -> tuple[str, ...]:
    """What of PostgreSQL's guards of the log's tables, and of its functions, was changed."""
    return tuple(
        f"what keeps the log in the database is not as it was made: {what}; see who changed it, "
        "put it back as a superuser, and run 'matl audit verify'"
        for what in (*_changed_functions(connection), *connection.scalars(_UNGUARDED))
    )


def _changed_functions(connection: Connection) -> list[str]:
    found: dict[str, list[tuple[object, ...]]] = {}
    for name, *made in connection.execute(_FUNCTIONS):
        found.setdefault(name, []).append((None if name == _CHOSEN else made[0], *made[1:]))
    shipped = _shipped_functions()
    changed = (
        name for name in found.keys() | shipped.keys() if found.get(name) != [shipped.get(name)]
    )
    return [f"the function {name}" for name in sorted(changed)]


def _shipped_functions() -> dict[str, tuple[object, ...]]:
    """Each function as the migrations leave it, like a row of ``_FUNCTIONS``."""
    shipped: dict[str, tuple[object, ...]] = {}
    for file in sorted(_HISTORY.glob("*.sql")):
        for name, head, source in _MADE.findall(file.read_text(encoding="utf-8")):
            own_path = "SET search_path" in head
            body = None if name == _CHOSEN else source
            shipped[name] = (body, "SECURITY DEFINER" in head, own_path, True)
    return shipped
