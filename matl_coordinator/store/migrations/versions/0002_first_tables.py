"""The first tables: writer, study, rounds, updates, trust, models and the log.

Before them, and before any release, was a log without encryption; a database of that time is
refused.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = None

_NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    writer = op.create_table(
        "writer",
        sa.Column("id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_writer"),
        sa.CheckConstraint("id = 1", name=op.f("ck_writer_one_row")),
    )
    op.bulk_insert(writer, [{"id": 1, "epoch": 0}])
    op.create_table(
        "study",
        sa.Column("id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_study"),
        sa.CheckConstraint("id = 1", name=op.f("ck_study_one_row")),
    )
    op.create_table(
        "models",
        sa.Column("round_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("round_id", name="pk_models"),
        sa.CheckConstraint("round_id >= 0", name=op.f("ck_models_counted_from_zero")),
    )
    op.create_index("ix_models_digest", "models", ["digest"])
    _create_round_tables()
    _create_log_tables()
    if op.get_context().dialect.name == "postgresql":
        _guard_log()


def _create_round_tables() -> None:
    op.create_table(
        "rounds",
        sa.Column("round_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("round_id", name="pk_rounds"),
        sa.CheckConstraint("round_id >= 1", name=op.f("ck_rounds_counted_from_one")),
    )
    op.create_table(
        "updates",
        sa.Column("round_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("node_id", _NAME, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("round_id", "node_id", name="pk_updates"),
        sa.ForeignKeyConstraint(
            ["round_id"],
            ["rounds.round_id"],
            name="fk_updates_round_id",
            deferrable=True,
            initially="DEFERRED",
        ),
    )
    op.create_table(
        "trust",
        sa.Column("round_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("round_id", name="pk_trust"),
    )


def _create_log_tables() -> None:
    op.create_table(
        "log_nodes",
        sa.Column("level", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("node_index", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("level", "node_index", name="pk_log_nodes"),
        sa.CheckConstraint("level >= 0 AND node_index >= 0", name=op.f("ck_log_nodes_address")),
        sa.CheckConstraint("length(hash) = 32", name=op.f("ck_log_nodes_hash_bytes")),
    )
    op.create_table(
        "log_keys",
        sa.Column("name", _NAME, nullable=False),
        sa.Column("month", _NAME, nullable=False),
        sa.Column("wrapped_by", sa.Text, nullable=False),
        sa.Column("wrapped", sa.LargeBinary, nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_log_keys"),
    )
    op.create_index("ix_log_keys_month", "log_keys", ["month"])
    op.create_table(
        "log_entries",
        sa.Column("leaf_index", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("month", _NAME, nullable=False),
        sa.Column("leaf", sa.LargeBinary, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("leaf_index", "month", name="pk_log_entries"),
        sa.CheckConstraint("leaf_index >= 0", name=op.f("ck_log_entries_address")),
        postgresql_partition_by="LIST (month)",
    )
    op.create_table(
        "log_checkpoints",
        sa.Column("size", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("note", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("size", name="pk_log_checkpoints"),
        sa.CheckConstraint("size >= 0", name=op.f("ck_log_checkpoints_counted")),
    )
    op.create_table(
        "log_cosignatures",
        sa.Column("size", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("node_id", _NAME, nullable=False),
        sa.Column("line", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("size", "node_id", name="pk_log_cosignatures"),
        sa.ForeignKeyConstraint(
            ["size"], ["log_checkpoints.size"], name="fk_log_cosignatures_size"
        ),
    )


def _guard_log() -> None:
    connection = op.get_bind()
    # The catalogue is always searched first; whatever else was in the path never is.
    connection.execute(
        sa.text(
            "SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true)"
        )
    )
    statements = Path(__file__).with_name("0002_log.sql").read_text(encoding="utf-8")
    # The driver's own cursor takes several statements at once, where they have no parameters.
    cursor = connection.connection.cursor()
    cursor.execute(statements)
    cursor.close()
