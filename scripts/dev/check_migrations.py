"""Fail when the migrations, run from nothing, do not build the tables that the models declare.

Works on a throw-away SQLite file; the store's contract suite runs the same history on PostgreSQL.
"""

import sys
import tempfile
from pathlib import Path

from matl_coordinator.store.database import create_database_engine
from matl_coordinator.store.migrate import schema_drift, upgrade_to_head


def main() -> None:
    """Bring an empty database to the newest revision, then compare it with the models."""
    with tempfile.TemporaryDirectory() as folder:
        engine = create_database_engine(f"sqlite:///{Path(folder) / 'drift.db'}")
        upgrade_to_head(engine)
        drift = schema_drift(engine)
        engine.dispose()
    if drift:
        changes = "\n".join(f"  {change}" for change in drift)
        sys.exit(f"The tables in the models have no migration that makes them:\n{changes}")


if __name__ == "__main__":
    main()
