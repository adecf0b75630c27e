"""How Alembic runs the history: on the connection, and in the transaction, it is given."""

from alembic import context

from matl_coordinator.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # Both engines undo table changes with the rest of a transaction.
    transactional_ddl=True,
)
# The caller's transaction, not one of ours: it also holds the lock.
context.run_migrations()
