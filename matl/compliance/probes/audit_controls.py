"""164.312(b) and 308(a)(1)(ii)(D): the log is whole, complete, nobody's to change, and read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection, make_url, select, text
from sqlalchemy.exc import DBAPIError

from matl.compliance.control import BrokenControlError, NotTestedError, Outcome, passed
from matl.compliance.probes.emergency import moment_of, newest_within
from matl.compliance.registry import Probes
from matl.compliance.site import CoordinatorSite, Site, at_coordinator
from matl.log.sources import DatabaseSource
from matl.log.verification import verify_log
from matl_common.errors import IntegrityError
from matl_coordinator.store.anchor import log_anchor
from matl_coordinator.store.database import create_database_engine, reading
from matl_coordinator.store.guards import SQLITE_WARNING, weaknesses
from matl_coordinator.store.schema import models, rounds, updates

DENIED: Final = "42501"
REVIEW_EVENT: Final = "activity_reviewed"
LONGEST_UNREVIEWED: Final = timedelta(days=30)

_COLUMNS: Final = {
    "log_entries": "payload",
    "log_nodes": "hash",
    "log_checkpoints": "note",
    "log_cosignatures": "line",
    "log_keys": "wrapped",
}
# Rights are looked at before rows: of those that a user has after all, none is touched.
_STATEMENTS: Final = tuple(
    statement
    for table, column in _COLUMNS.items()
    for statement in (
        f"UPDATE {table} SET {column} = {column} WHERE false",
        f"DELETE FROM {table} WHERE false",
        f"TRUNCATE {table} CASCADE",
    )
)


def integrity(site: Site) -> Outcome:
    """Go over the whole log, and compare it with the checkpoint kept beside."""
    here = at_coordinator(site)
    kept = log_anchor(here.state_dir).read()
    believed = replace(here.log.believed, notes=() if kept is None else (kept,))
    try:
        found = verify_log(DatabaseSource(here.log.reader), believed)
    except IntegrityError as error:
        raise BrokenControlError(
            str(error), "see what log.md says of damage, and compare with hospitals' checkpoints"
        ) from error
    if found.witnessed_size == 0:
        # Hospitals cosign only while the coordinator runs: this must not keep it from starting.
        raise NotTestedError(
            "it is whole, but no quorum of hospitals has cosigned any of it: the coordinator could "
            "show everybody another log",
            "enrol hospitals with a witness_key, and let them run",
        )
    tally = found.tally
    return passed(
        f"{tally.size} entries, root {tally.root.hex()[:16]}…, {found.opened} opened; "
        f"{tally.checkpoints} checkpoints agree, up to {found.signed_size}; a quorum has cosigned "
        f"{found.witnessed_size}; {'the' if kept else 'no'} checkpoint kept beside "
        f"{'is one of them' if kept else 'was there'}"
    )


def roles(site: Site) -> Outcome:
    """Try to change the log as every user there is a URL of."""
    here = at_coordinator(site)
    # First, so that a database without users is refused before anything is founded in it.
    urls = database_urls(here)
    here.log.reader.size()
    told = []
    for url in urls:
        refused_as(url, _STATEMENTS)
        told.append(make_url(url).username or "the local user")
    engine = here.log.engine
    with reading(engine) as connection:
        found = weaknesses(connection)
    if found:
        raise BrokenControlError(found[0], "run deploy/postgresql/roles.sql as a superuser")
    return judge_asked(
        f"{len(_STATEMENTS)} statements each refused with {DENIED} to {', '.join(told)}; triggers "
        "and functions are as they were made",
        here.registry.probes,
    )


def judge_asked(found: str, probes: Probes) -> Outcome:
    """What to say where nobody who was asked may change the log. Pure.

    Raises:
        NotTestedError: not everybody was asked.
    """
    unasked = [
        key
        for key, url in (
            ("reader_database", probes.reader_database),
            ("retention_database", probes.retention_database),
        )
        if not url
    ]
    if unasked:
        raise NotTestedError(
            f"{found}; nobody else was asked",
            f"give the URLs of the other users: [probes] {', '.join(unasked)}",
        )
    return passed(found)


def completeness(site: Site) -> Outcome:
    """Compare what the tables hold with what the log tells."""
    here = at_coordinator(site)
    with reading(here.log.engine) as connection:
        phases = {int(row.round_id): str(row.phase) for row in connection.execute(select(rounds))}
        query = select(updates.c.round_id, updates.c.node_id, updates.c.status)
        held = [(int(r), str(n), str(s)) for r, n, s in connection.execute(query)]
        released = set(connection.scalars(select(models.c.round_id)))
    lacking = untold(phases, held, released, here.log.events)
    if lacking:
        # What the coordinator does while an audit runs may be younger than the first look.
        lacking = untold(phases, held, released, here.log.since(0))
    if lacking:
        more = f", and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise BrokenControlError(
            f"the log does not tell: {'; '.join(lacking[:5])}{more}",
            "find out who wrote these rows: the coordinator writes both in one transaction",
        )
    return passed(
        f"{len(phases)} rounds, {len(held)} updates and {len(released)} models, each with entries"
    )


def untold(
    phases: Mapping[int, str],
    held: Iterable[tuple[int, str, str]],
    released: Iterable[int],
    events: Iterable[Mapping[str, Any]],
) -> list[str]:
    """What rounds, updates and models the log lacks an entry of. Pure.

    Args:
        phases: of each round.
        held: round, node and status of each update.
        released: the rounds that models are of; 0 for the study's first.
        events: what the log's entries say.
    """
    told = {(each.get("event"), each.get("round"), each.get("node")) for each in events}
    of_round = {(event, number) for event, number, _ in told}
    lacking = []
    for number, phase in sorted(phases.items()):
        wanted = ["round_scheduled"]
        if phase == "released":
            wanted += ["collection_closed", "round_scored", "model_aggregated", "model_released"]
        if phase == "aborted":
            wanted += ["round_aborted"]
        lacking += [
            f"{event} of round {number}" for event in wanted if (event, number) not in of_round
        ]
    for number, node, status in sorted(held):
        wanted = ["update_declared"]
        if status == "admitted":
            wanted += ["update_admitted"]
        lacking += [
            f"{event} of {node} in round {number}"
            for event in wanted
            if (event, number, node) not in told
        ]
    for number in sorted(released):
        event = "model_released" if number else "study_founded"
        if (event, number or None) not in of_round:
            lacking.append(f"the model of round {number}")
    return lacking


def review(site: Site) -> Outcome:
    """Look for a review of the activity within 30 days."""
    here = at_coordinator(site)
    last = newest_within(
        LONGEST_UNREVIEWED,
        here.log.events,
        kind=REVIEW_EVENT,
        now=here.now,
        never="nobody has said that the activity was reviewed",
        remedy="review the activity, and say so: verify_hipaa.py --record-review 'what was looked "
        "at'",
    )
    age = here.now - moment_of(last)
    return passed(
        f"the last one was {age.days} days ago, by {last.get('account')}, of entries up to "
        f"{last.get('entries')}"
    )


def database_urls(site: CoordinatorSite) -> tuple[str, ...]:
    """Of every database user that is known here, the coordinator's own first.

    Raises:
        BrokenControlError: the database has no users.
    """
    if not site.config.is_on_postgres:
        raise BrokenControlError(
            SQLITE_WARNING.partition(";")[0],
            "use PostgreSQL with deploy/postgresql/roles.sql, and give its URL: --audit-db",
        )
    probes = site.registry.probes
    urls = (site.config.database_url, probes.reader_database, probes.retention_database)
    return tuple(each for each in urls if each)


def refused_as(url: str, statements: Iterable[str], *, also: frozenset[str] = frozenset()) -> None:
    """See that a user may run none of these statements; nothing is ever committed.

    Args:
        url: of the user.
        statements: that must be refused with 42501.
        also: further SQLSTATEs that refuse as well.

    Raises:
        BrokenControlError: one was not refused, or by something else than the user's rights.
    """
    engine = create_database_engine(url)
    user = make_url(url).username or "the local user"
    try:
        with reading(engine) as connection:
            for statement in statements:
                state = _state_of(connection, statement)
                if state != DENIED and state not in also:
                    how = "is carried out" if state is None else f"is refused with {state} only"
                    raise BrokenControlError(
                        f"as {user}, {statement} {how}",
                        "see who granted that; run deploy/postgresql/roles.sql as a superuser, "
                        "and connect as matl_log_writer",
                    )
    finally:
        engine.dispose()


def state_as(url: str, statement: str) -> str | None:
    """The SQLSTATE that a user's statement is refused with; ``None`` where it is not."""
    engine = create_database_engine(url)
    try:
        with reading(engine) as connection:
            return _state_of(connection, statement)
    finally:
        engine.dispose()


def _state_of(connection: Connection, statement: str) -> str | None:
    """The SQLSTATE a statement is refused with; ``None`` where it is not. Undone in any case."""
    attempt = connection.begin_nested()
    try:
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        connection.execute(text(statement))
    except DBAPIError as error:
        return str(getattr(error.orig, "sqlstate", None) or "no SQLSTATE")
    finally:
        attempt.rollback()
    return None
