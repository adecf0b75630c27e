"""PostgreSQL's functions of the log (``migrations/versions/*.sql``), called.

They are the only way in which the database's user may write the log. SQLite has none.
"""

from sqlalchemy import Connection

POSTGRES = "postgresql"


def call_log_function(connection: Connection, name: str, *arguments: object) -> None:
    """Call a function for what it does."""
    # Past SQLAlchemy, which would look at every element of every array; %b sends bytes as they
    # are and not as text.
    places = ", ".join("%b" if isinstance(each, bytes | list) else "%s" for each in arguments)
    connection.exec_driver_sql(f"SELECT {name}({places})", arguments)
