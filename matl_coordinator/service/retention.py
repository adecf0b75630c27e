"""Putting away what the log says, by order and on record.

A month's leaves and payloads may be dropped once its retention is over, and only under a
checkpoint that covers all of them and that a quorum of hospitals has cosigned: what the log was
is then fixed by signatures that nobody here can make. A month's data key may be erased after the
same time. Hashes stay, so every proof still verifies. Each of these is an entry of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.identity.wrapping import KeyEncryptionKey
from matl_common.ids import Digest
from matl_common.tlog.checkpoint import verify_checkpoint
from matl_common.tlog.entry import Entry
from matl_common.tlog.merkle import root_from
from matl_common.tlog.note import VerifierKey
from matl_common.tlog.orders import (
    MONTH_DROPPED,
    MONTH_KEY_ERASED,
    Order,
    all_erased,
    all_gone,
)
from matl_common.tlog.policy import NO_QUORUM, Policy, assess
from matl_coordinator.core.retention import Compliance, RetentionError, check_expired, kept_until
from matl_coordinator.ports import CheckpointRecord, LoggedEntry
from matl_coordinator.service.checkpoints import with_cosignatures
from matl_coordinator.service.entries import Fact, entry


@dataclass(frozen=True, slots=True)
class LogMonth:
    """What the log still has of a month."""

    month: str
    entries: int
    last_index: int
    is_readable: bool
    """Whether its data key is still there."""


@dataclass(frozen=True, slots=True)
class MonthStanding:
    """A month, and until when it is kept."""

    held: LogMonth
    kept_until: datetime
    is_expired: bool


@dataclass(frozen=True, slots=True)
class Cover:
    """A checkpoint that a quorum has cosigned."""

    size: int
    root: Digest
    cosigners: tuple[str, ...]


class RetentionStore(Protocol):
    """The log's tables, for whoever may put parts of them away. Calls block.

    Every change appends ``entry`` in the same transaction, and is durable when it returns.
    """

    def months(self) -> tuple[LogMonth, ...]:
        """Every month that has leaves, oldest first."""
        ...

    def runs(self, month: str) -> list[range]:
        """Where a month's leaves lie."""
        ...

    def orders(self) -> list[Order]:
        """Every order that was given so far and can be read."""
        ...

    def cosigned_checkpoints(self, *, above: int) -> Iterator[CheckpointRecord]:
        """Those of more than ``above`` leaves that have a cosignature, newest first."""
        ...

    def log_node(self, level: int, index: int) -> bytes:
        """A stored hash of the tree."""
        ...

    def drop_month(self, month: str, *, years: int, cosignatures: int, entry: Entry) -> LoggedEntry:
        """Remove a month's leaves, payloads and data keys.

        Raises:
            RetentionError: the database keeps it longer, or knows no such checkpoint.
        """
        ...

    def erase_key(self, month: str, *, years: int, entry: Entry) -> LoggedEntry:
        """Remove a month's data keys.

        Raises:
            RetentionError: the database keeps it longer.
        """
        ...

    def rewrap_keys(self, key: KeyEncryptionKey, *, entry: Entry) -> LoggedEntry:
        """Wrap every data key with another key-encryption key."""
        ...


class Retention:
    """Puts away months of one log."""

    def __init__(
        self,
        *,
        store: RetentionStore,
        log_key: VerifierKey,
        policy: Policy,
        years: int,
        compliance: Compliance,
        account: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._log_key = log_key
        self._policy = policy
        self._years = years
        self._compliance = compliance
        self._account = account
        self._clock = clock

    def months(self) -> tuple[MonthStanding, ...]:
        """How every month stands that the log still has.

        Raises:
            StoreError: the store cannot be read.
        """
        now = self._clock()
        standings: list[MonthStanding] = []
        for held in self._store.months():
            until = kept_until(held.month, years=self._years)
            standings.append(MonthStanding(held, until, now >= until))
        return tuple(standings)

    def drop_month(self, month: str, *, reason: str) -> LoggedEntry:
        """Drop a month; returns the entry that says so.

        Raises:
            InvalidInputError: it is not a month, or no reason is given.
            RetentionError: it is kept longer, is not there, or no quorum covers it.
            IntegrityError: a cosignature does not verify, or a checkpoint is of another log.
            StoreError: the store did not confirm.
        """
        now = self._clock()
        _check_reason(reason)
        check_expired(month, years=self._years, now=now)
        held = next((each for each in self._store.months() if each.month == month), None)
        if held is None:
            raise RetentionError(f"the log has no entries of {month}")
        cover = self._cover(held)
        cosigners: list[Fact] = list(cover.cosigners)
        written = entry(
            MONTH_DROPPED,
            at=now,
            account=self._account,
            month=month,
            entries=held.entries,
            last_index=held.last_index,
            checkpoint_size=cover.size,
            checkpoint_root=cover.root,
            cosigners=cosigners,
            reason=reason,
            **self._standing(self._store.runs(month)),
        )
        return self._store.drop_month(
            month, years=self._years, cosignatures=len(cosigners), entry=written
        )

    def erase_key(self, month: str, *, reason: str) -> LoggedEntry:
        """Make a month's entries unreadable for ever; returns the entry that says so.

        Raises:
            InvalidInputError: it is not a month, or no reason is given.
            RetentionError: it is kept longer, or its key is not there.
            StoreError: the store did not confirm.
        """
        now = self._clock()
        _check_reason(reason)
        check_expired(month, years=self._years, now=now)
        written = entry(
            MONTH_KEY_ERASED,
            at=now,
            account=self._account,
            month=month,
            reason=reason,
            **self._standing(),
        )
        return self._store.erase_key(month, years=self._years, entry=written)

    def rewrap_keys(self, key: KeyEncryptionKey, *, reason: str) -> LoggedEntry:
        """Put every data key under another key-encryption key; returns the entry that says so.

        Raises:
            InvalidInputError: no reason is given.
            IntegrityError: a data key is not under the present one.
            StoreError: the store did not confirm.
        """
        _check_reason(reason)
        written = entry(
            "log_keys_rewrapped",
            at=self._clock(),
            account=self._account,
            wrapped_by=key.name,
            holder=key.holder,
            reason=reason,
        )
        return self._store.rewrap_keys(key, entry=written)

    def _standing(self, runs: Iterable[range] = ()) -> dict[str, Fact]:
        """By what rule an order is given, and what is put away by all so far and these runs."""
        orders = self._store.orders()
        gone: list[Fact] = [[each.start, each.stop - 1] for each in all_gone(orders, runs=runs)]
        return {
            "retention_years": self._years,
            "compliance": str(self._compliance),
            "gone": gone,
            "erased": {**all_erased(orders)},
        }

    def _cover(self, held: LogMonth) -> Cover:
        if self._policy.quorum == NO_QUORUM:
            raise RetentionError(
                "no hospital is enrolled as a witness, so nothing would show what the log was; "
                "entries cannot be dropped"
            )
        for record in self._store.cosigned_checkpoints(above=held.last_index):
            signed = verify_checkpoint(with_cosignatures(record), [self._log_key])
            assessment = assess(signed, self._policy)
            if not assessment.quorum_met:
                continue
            checkpoint = signed.checkpoint
            if root_from(checkpoint.size, self._store.log_node) != checkpoint.root:
                raise IntegrityError(
                    f"the log's first {checkpoint.size} leaves are not those of the checkpoint "
                    "that hospitals cosigned: the log was rewritten; nothing is dropped"
                )
            return Cover(
                checkpoint.size, Digest(checkpoint.root.hex()), tuple(sorted(assessment.cosigned))
            )
        raise RetentionError(
            f"no checkpoint of more than {held.last_index} leaves has a quorum of cosignatures; "
            "wait until the hospitals have cosigned one"
        )


def _check_reason(reason: str) -> None:
    if not reason.strip():
        raise InvalidInputError("say why: the log keeps the reason for good")
