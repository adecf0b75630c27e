"""What is told of a PostgreSQL that cannot be reached: which of a few things it is, and no more."""

import pytest
from sqlalchemy import URL, make_url

from matl_coordinator.ports import StoreError
from matl_coordinator.store.database import create_database_engine, reading
from matl_coordinator.store.failures import word_for
from matl_coordinator.store.limits import TimeLimits

SECRET = "hunter2"
HASTY = TimeLimits(
    connect_seconds=2.0, lock_seconds=0.3, statement_seconds=1.0, silence_seconds=1.0
)


def told(url: URL) -> str:
    """Of a connection that cannot be made."""
    driver_free = url.set(drivername="postgresql")
    engine = create_database_engine(driver_free.render_as_string(hide_password=False), limits=HASTY)
    with pytest.raises(StoreError) as caught, reading(engine):
        pass
    return str(caught.value)


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"password": SECRET}, "authentication"),
        ({"username": "authentication failed"}, "authentication"),
        ({"database": SECRET}, "no such database"),
        ({"query": {"sslmode": "verify-full", "sslrootcert": f"/{SECRET}.crt"}}, "TLS"),
        ({"port": 1}, "refused"),
        ({"host": None, "query": {"host": f"/nonexistent/{SECRET}"}}, "refused"),
    ],
)
def test_the_word_says_why_a_server_does_not_let_the_coordinator_in(
    postgres_database: str, change: dict[str, object], word: str
) -> None:
    url = make_url(postgres_database)
    said = told(url.set(**change))  # type: ignore[arg-type]  # each key has a type of its own
    assert said == (
        f"the postgresql database did not confirm (OperationalError: {word}); "
        "see that it is reachable and has room"
    )


# As psycopg 3.3 and libpq 18 say it.
@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("failed to resolve host 'db': [Errno -2] Name or service not known", "name unknown"),
        ("failed to resolve host 'db': [Errno -3] Temporary failure in name", "name unknown"),
        ("connection timeout expired", "timed out"),
        ('connection to server at "db", port 5432 failed: Connection timed out', "timed out"),
        ('FATAL:  no pg_hba.conf entry for host "::1", SSL encryption', "authentication"),
        ("connection failed: fe_sendauth: no password supplied", "authentication"),
        ("SSL error: certificate verify failed", "TLS"),
        ('server certificate for "db" does not match host name "other"', "TLS"),
        ("FATAL:  connection requires a valid client certificate", "TLS"),
    ],
)
def test_what_the_driver_says_has_a_word(text: str, word: str) -> None:
    assert word_for(text) == word


@pytest.mark.parametrize(
    "text",
    [
        "",
        'connection to server at "certificate", port 5432 failed: No route to host',
        "failed: user 'authentication failed' of database \"SSL error\"",
        "consuming input failed: SSL connection has been closed unexpectedly",
        "consuming input failed: SSL error: unexpected eof while reading",
        "FATAL:  the database system is starting up",
        'FATAL:  Passwort-Authentifizierung für Benutzer "matl" fehlgeschlagen',
    ],
)
def test_neither_a_name_nor_an_end_of_a_session_is_taken_for_a_cause(text: str) -> None:
    assert word_for(text) is None
