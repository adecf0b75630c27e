"""164.312(a)(2)(ii): reading the log without its coordinator."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from matl.compliance.control import BrokenControlError, NotTestedError, Outcome, passed
from matl.compliance.logbook import Event
from matl.compliance.site import Site, at_coordinator
from matl_common.identity.key_places import load_wrapping_key
from matl_common.tlog.entry import parse_entry
from matl_coordinator.upkeep import opened_store

DRILL_EVENT: Final = "entries_decrypted"
LONGEST: Final = timedelta(days=365)


def emergency(site: Site) -> Outcome:
    """Open an entry as the break-glass command does, without its order and its entry."""
    here = at_coordinator(site)
    canary = here.log.canary
    with opened_store(here.config) as store:
        (found,) = store.log_entries(start=canary.index, limit=1)
        if found.data is None or parse_entry(found.data).get("word") != canary.word:
            raise BrokenControlError(
                f"entry {canary.index} does not open from the database: {found.damage or 'erased'}",
                "restore the key-encryption key that wraps the data keys; without it nobody reads "
                "the log any more",
            )
        holder = load_wrapping_key(here.config.log_encryption_key).holder
    return passed(
        f"entry {canary.index} opens with database and key-encryption key alone ({holder}), the "
        "coordinator unasked"
    )


def drill(site: Site) -> Outcome:
    """Look for a breaking of the glass within a year."""
    here = at_coordinator(site)
    last = newest_within(
        LONGEST,
        here.log.events,
        kind=DRILL_EVENT,
        now=here.now,
        never="the glass was never broken, not even as a drill",
        remedy="stop the coordinator and practise: matl audit decrypt --from 0 --to 0 "
        "--reason drill",
    )
    age = here.now - moment_of(last)
    return passed(f"the last one was {age.days} days ago, by {last.get('account')}")


def newest_within(
    longest: timedelta,
    events: Sequence[Event],
    *,
    kind: str,
    now: datetime,
    never: str,
    remedy: str,
) -> Event:
    """The newest of what has to come again and again. Pure.

    Args:
        longest: how long it may be since the last one, or since the log began.
        events: what the log's entries say, in order.
        kind: of the entries that are looked for.
        now: when it is asked.
        never: what to say where there is none.
        remedy: what to do then.

    Raises:
        BrokenControlError: it is overdue.
        NotTestedError: there was none yet, and the log is too young for that to be overdue.
    """
    found = [each for each in events if each.get("event") == kind]
    if found:
        age = now - moment_of(found[-1])
        if age > longest:
            raise BrokenControlError(f"the last one was {age.days} days ago", remedy)
        return found[-1]
    if events and now - moment_of(events[0]) <= longest:
        due = moment_of(events[0]) + longest
        raise NotTestedError(f"{never}; the log is younger than that: due by {due.date()}", remedy)
    raise BrokenControlError(never, remedy)


def moment_of(event: Event) -> datetime:
    """When an entry was written."""
    return datetime.fromisoformat(str(event["at"]))
