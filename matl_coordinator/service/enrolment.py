"""Who is enrolled: put on record at every start, and followed while the coordinator runs.

Whoever has the log has every hospital's public keys, and when they changed. A file that cannot
be used changes nothing: nobody gets in by it, and nobody whom it was meant to keep out is let
in again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import structlog

from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.allowlist import (
    AllowedNode,
    Allowlist,
    encode_allowlist,
    parse_allowlist,
    read_allowlist,
)
from matl_common.ids import NodeId, digest_of
from matl_common.tlog.entry import Entry
from matl_coordinator.core.rounds import NodeRemoved, Phase, Round, advance
from matl_coordinator.ports import Change, Meter, PutRound, PutStudy, State
from matl_coordinator.roster import Roster
from matl_coordinator.service.entries import entry, round_entries
from matl_coordinator.service.following import follow
from matl_coordinator.service.register import Decision, Register

PIECE_CHARACTERS = 48 << 10
"""Of an allow-list in one entry; escapes and everything else have room beside them."""

MAX_REASON = 500

log = structlog.get_logger(__name__)


async def log_allowlist(
    register: Register, allowlist: Allowlist, *, clock: Callable[[], datetime]
) -> None:
    """Log the allow-list that every later decision goes by.

    Raises:
        StoreError: the store did not confirm.
    """
    written = tuple(allowlist_entries(allowlist, at=clock()))
    await register.decide(lambda _: Decision(None, (), written))


def allowlist_entries(allowlist: Allowlist, *, at: datetime) -> Iterator[Entry]:
    """Who is enrolled, with which keys and how many patients, in as many parts as it takes."""
    text = encode_allowlist(allowlist).decode()
    digest = digest_of(text.encode())
    starts = range(0, len(text), PIECE_CHARACTERS)
    for number, start in enumerate(starts, start=1):
        yield entry(
            "allowlist_read",
            at=at,
            digest=digest,
            allowlist=text[start : start + PIECE_CHARACTERS],
            part=number,
            parts=len(starts),
        )


@dataclass(frozen=True, slots=True)
class Changes:
    """How one allow-list differs from the one before."""

    added: tuple[NodeId, ...]
    removed: tuple[NodeId, ...]
    changed: dict[NodeId, tuple[str, ...]]
    """What is different about nodes that are in both."""
    withdrawn: dict[NodeId, str]
    """Whose updates no longer count in a round that was not scored, and why."""

    def __bool__(self) -> bool:
        """Whether there is any difference."""
        return bool(self.added or self.removed or self.changed)


def changes_between(before: Allowlist, after: Allowlist) -> Changes:
    """Compare two allow-lists of one federation."""
    both = before.nodes.keys() & after.nodes.keys()
    pairs = {node: (before.nodes[node], after.nodes[node]) for node in sorted(both)}
    removed = tuple(sorted(before.nodes.keys() - both))
    withdrawn = dict.fromkeys(removed, "no longer enrolled")
    for node, (old, new) in pairs.items():
        if new.role is not old.role:
            withdrawn[node] = "enrolled in another role"
        elif new.signing_keyid != old.signing_keyid:
            # The log's reader checks signatures by the list on record when a round is scored.
            withdrawn[node] = "enrolled with another signing key"
    return Changes(
        added=tuple(sorted(after.nodes.keys() - both)),
        removed=removed,
        changed={node: found for node, pair in pairs.items() if (found := _differences(*pair))},
        withdrawn=withdrawn,
    )


def _differences(old: AllowedNode, new: AllowedNode) -> tuple[str, ...]:
    names = (field.name for field in fields(AllowedNode))
    return tuple(name for name in names if getattr(old, name) != getattr(new, name))


class EnrolmentFile:
    """Follows ``allowlist.toml``. Runs on the register's event loop.

    A list that does not suit the study, such as one with too few hospitals for its quorum,
    enrols nobody new; whoever it leaves out is shut out nevertheless, and where the study then
    cannot go on by its own rules, it is paused.
    """

    def __init__(
        self,
        *,
        path: Path,
        roster: Roster,
        register: Register,
        meter: Meter,
        check: Callable[[Allowlist], None],
        clock: Callable[[], datetime],
    ) -> None:
        """``check`` raises ConfigurationError for a list that does not suit the study."""
        self._path = path
        self._roster = roster
        self._register = register
        self._meter = meter
        self._check = check
        self._clock = clock
        self._asked = asyncio.Event()
        # What the file held when it was last judged, or why it could not be read.
        self._seen: bytes | str | None = None
        # Refusals that the log has yet to take.
        self._refusals: list[Entry] = []

    def read_now(self) -> None:
        """Do not wait for the next poll."""
        self._asked.set()

    async def run(self) -> None:
        """Follow the file until cancelled."""
        await follow(
            self.look,
            asked=self._asked,
            meter=self._meter,
            file="allowlist",
            not_logged="allowlist_not_logged",
            not_followed="allowlist_not_followed",
        )

    async def look(self) -> None:
        """Read the file, and do what follows from it and from earlier readings.

        Raises:
            StoreError: the log did not take it; the next look tries again.
        """
        found: bytes | str
        try:
            found = await asyncio.to_thread(read_allowlist, self._path)
        except ConfigurationError as error:
            found = str(error)
        if found != self._seen:
            self._seen = found
            self._judge(found)
        await self._log_refusals()
        await self._record()

    def _judge(self, found: bytes | str) -> None:
        """Put a list in force as far as it can be; must not wait for anything."""
        if isinstance(found, str):
            self._refuse(found)
            return
        try:
            wanted = parse_allowlist(found)
            if wanted.federation != self._roster.admitting.federation:
                raise ConfigurationError(f"it is for federation {wanted.federation}")
        except (ConfigurationError, InvalidInputError) as error:
            self._refuse(str(error))
            return
        try:
            self._check(wanted)
        except ConfigurationError as error:
            self._refuse(str(error))
            wanted = self._roster.admitting.restricted_to(wanted)
        else:
            self._meter.file_refused("allowlist", refused=False)
        if encode_allowlist(wanted) != encode_allowlist(self._roster.admitting):
            self._roster.admit(wanted)

    def _refuse(self, reason: str) -> None:
        reason = reason[:MAX_REASON]
        log.error(
            "allowlist_refused",
            path=str(self._path),
            reason=reason,
            remedy="the list read before is in force; mend the file, nothing needs a restart",
        )
        self._meter.file_refused("allowlist", refused=True)
        self._refusals.append(entry("allowlist_refused", at=self._clock(), reason=reason))

    async def _log_refusals(self) -> None:
        while self._refusals:
            written = (self._refusals[0],)
            await self._register.decide(partial(_log, written))
            del self._refusals[0]

    async def _record(self) -> None:
        """Put the list in force on record, with what it does to the open round."""
        wanted = self._roster.admitting
        if self._roster.on_record is wanted:
            return
        changes = changes_between(self._roster.on_record, wanted)
        broken = self._does_not_suit(wanted)
        recorded, _ = await self._register.decide(
            lambda state: self._recorded(state, wanted, changes, broken)
        )
        if not recorded:
            return  # A round is being aggregated by the list before; it will soon be over.
        self._roster.record(wanted)
        log.info(
            "allowlist_changed",
            added=list(changes.added),
            removed=list(changes.removed),
            changed=sorted(changes.changed),
        )
        if broken is not None:
            log.error("study_paused", reason=broken, remedy="mend the allow-list, then matl resume")

    def _does_not_suit(self, allowlist: Allowlist) -> str | None:
        try:
            self._check(allowlist)
        except ConfigurationError as error:
            return str(error)[:MAX_REASON]
        return None

    def _recorded(
        self, state: State, wanted: Allowlist, changes: Changes, broken: str | None
    ) -> Decision[bool]:
        rnd, now = state.round, self._clock()
        if rnd is not None and rnd.phase is Phase.AGGREGATING:
            return Decision(False)
        put: list[Change] = []
        written = [
            *allowlist_entries(wanted, at=now),
            entry(
                "enrolment_changed",
                at=now,
                added=list(changes.added) or None,
                removed=list(changes.removed) or None,
                changed={node: list(each) for node, each in changes.changed.items()} or None,
            ),
        ]
        if rnd is not None:
            after, told = _without(rnd, changes, at=now)
            written += told
            put += [PutRound(after)] if told else []
        if broken is not None and state.study is not None and not state.study.paused:
            put.append(PutStudy(replace(state.study, paused=True, pause_reason=broken)))
            written.append(entry("study_paused", at=now, reason=broken))
        return Decision(True, tuple(put), tuple(written))


def _log(written: tuple[Entry, ...], _: State) -> Decision[None]:
    return Decision(None, (), written)


def _without(rnd: Round, changes: Changes, *, at: datetime) -> tuple[Round, list[Entry]]:
    """The round without the hospitals that were withdrawn, while that still can be."""
    written: list[Entry] = []
    if rnd.phase not in (Phase.COLLECTING, Phase.SCORING):
        return rnd, written
    for node, reason in changes.withdrawn.items():
        if node in rnd.pending_nodes | rnd.admitted_nodes:
            event = NodeRemoved(node, reason)
            rnd = advance(rnd, event)
            written += round_entries(rnd, event, at=at)
    return rnd, written
