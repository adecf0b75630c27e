"""The table that appenders take turns on, and PostgreSQL's functions for all a writer keeps."""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "log_turn",
        sa.Column("id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_log_turn"),
        sa.CheckConstraint("id <> id", name=op.f("ck_log_turn_empty")),
    )
    if op.get_context().dialect.name == "postgresql":
        _guard_writer()


def _guard_writer() -> None:
    connection = op.get_bind()
    # As in 0002: the catalogue, the tables' schema, and nothing else.
    connection.execute(
        sa.text(
            "SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true)"
        )
    )
    statements = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    # The driver's own cursor takes several statements at once, where they have no parameters.
    cursor = connection.connection.cursor()
    cursor.execute(statements)
    cursor.close()
