"""What the database itself keeps a user from doing to the log, and what it does not.

Nothing here guards anything: PostgreSQL's roles and triggers do (``deploy/postgresql/roles.sql``).
"""

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
""")

_RIGHTS = text("""
    SELECT current_user AS name,
           pg_has_role(relowner, 'USAGE') AS owns,
           EXISTS (SELECT FROM pg_event_trigger
                    WHERE evtname = 'matl_log_keep_objects' AND evtenabled = 'A') AS kept
      FROM pg_class WHERE oid = to_regclass('log_nodes')
""")


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
    if not rights.kept:
        drop_warning = (
            "nothing keeps the owner of the log's tables from dropping them; run "
            "deploy/postgresql/roles.sql as a superuser"
        )
        return (drop_warning,)
    return ()
