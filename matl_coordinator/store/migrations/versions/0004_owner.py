"""PostgreSQL's functions for all that still changed a table's definition, or the study's writer."""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        _guard_owner()


def _guard_owner() -> None:
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
