"""How Alembic runs the history: on the connection, and in the transaction, it is given."""

from alembic import context

from matl_coordinator.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
)
# The caller's transaction, not one of ours: it also holds the lock.
context.run_migrations()
