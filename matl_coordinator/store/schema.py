"""The tables, the same on SQLite and PostgreSQL.

A record is one JSON document; only what a query looks for, or a constraint holds
on to, is a column beside it. Nothing here runs a statement.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

# Names that every database gives alike, so that a later migration can address them.
metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

# Order by bytes everywhere: a language's order would differ between the databases.
_Name = Text().with_variant(Text(collation="C"), "postgresql")

# One row, present from the first migration on: who may write.
writer = Table(
    "writer",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)

# By round, 0 for the study's first: an unchanged model may be released again.
models = Table(
    "models",
    metadata,
    Column("round_id", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", Text, nullable=False, index=True),
    Column("document", Text, nullable=False),
    CheckConstraint("round_id >= 0", name="counted_from_zero"),
)

study = Table(
    "study",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("document", Text, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)

rounds = Table(
    "rounds",
    metadata,
    Column("round_id", BigInteger, primary_key=True, autoincrement=False),
    Column("phase", Text, nullable=False),
    Column("document", Text, nullable=False),
    CheckConstraint("round_id >= 1", name="counted_from_one"),
)

# The reference is checked when a transaction ends, so that changes come in any order.
updates = Table(
    "updates",
    metadata,
    Column(
        "round_id",
        BigInteger,
        ForeignKey("rounds.round_id", deferrable=True, initially="DEFERRED"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("node_id", _Name, primary_key=True),
    Column("status", Text, nullable=False),
    Column("document", Text, nullable=False),
)

# Without a reference: an operator may quarantine a hospital before the first round.
trust = Table(
    "trust",
    metadata,
    Column("round_id", BigInteger, primary_key=True, autoincrement=False),
    Column("document", Text, nullable=False),
)

# Every complete node of the log's tree; level 0 holds the leaves. Rows are only ever
# inserted, and never numbered by a sequence: a rolled-back one would leave a gap.
log_nodes = Table(
    "log_nodes",
    metadata,
    Column("level", BigInteger, primary_key=True, autoincrement=False),
    Column("node_index", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
    CheckConstraint("level >= 0 AND node_index >= 0", name="address"),
    CheckConstraint("length(hash) = 32", name="hash_bytes"),
)

# The keys that encrypt payloads, one a month and wrapped. Erasing one leaves its row, so that
# its name is never given again, and everything under it unreadable.
log_keys = Table(
    "log_keys",
    metadata,
    Column("name", _Name, primary_key=True),
    Column("month", _Name, nullable=False, index=True),
    Column("wrapped_by", Text, nullable=False),
    Column("wrapped", LargeBinary, nullable=True),
)

# Apart from the tree: what an entry says may be put away one day, its hash never. PostgreSQL keeps
# each month in a table of its own, which log_append makes, and wants the month in the key.
log_entries = Table(
    "log_entries",
    metadata,
    Column("leaf_index", BigInteger, primary_key=True, autoincrement=False),
    Column("month", _Name, primary_key=True),
    Column("leaf", LargeBinary, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    CheckConstraint("leaf_index >= 0", name="address"),
    postgresql_partition_by="LIST (month)",
)

# What the log signed, and what witnesses added. Neither is part of the tree: a cosignature that
# were logged would ask for the next.
log_checkpoints = Table(
    "log_checkpoints",
    metadata,
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("note", LargeBinary, nullable=False),
    CheckConstraint("size >= 0", name="counted"),
)

log_cosignatures = Table(
    "log_cosignatures",
    metadata,
    Column(
        "size",
        BigInteger,
        ForeignKey("log_checkpoints.size"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("node_id", _Name, primary_key=True),
    Column("line", LargeBinary, nullable=False),
)

# PostgreSQL's appenders take turns by locking it; nobody but its owner may. It never has a row.
log_turn = Table(
    "log_turn",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    CheckConstraint("id <> id", name="empty"),
)


def stored_bytes(value: bytes | str) -> bytes:
    """A LargeBinary column's bytes; SQLite holds whatever was put there, of whatever kind."""
    return value.encode() if isinstance(value, str) else bytes(value)
