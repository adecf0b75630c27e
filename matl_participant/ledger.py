"""The durable privacy ledger: what a study has cost, written down before it is spent.

One append-only file per data set and study, one writer. Every method that returns has
its entry on the disk; one that raises leaves the ledger unusable until it is opened
again, because only reading it back can tell whether the entry is there. What the
entries mean is ``core/account.py``; nothing here reads patient data.
"""

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Protocol, Self

from matl_common.durable import PRIVATE_FILE_MODE, fsync_directory
from matl_common.errors import MatlError
from matl_common.ids import Digest, RoundId, digest_of
from matl_participant.core.account import (
    Abandoned,
    Account,
    Acknowledged,
    Entry,
    Halted,
    Planned,
    Reserved,
    Sealed,
    after,
)
from matl_participant.core.journal import LedgerCorruptError, format_line, replay
from matl_participant.core.spending import (
    DatasetLimit,
    Shared,
    Summary,
    summarise,
    why_over_budget,
)

LEDGER_SUFFIX = ".ledger.jsonl"
_STUDY_DIGEST_CHARACTERS = 16


class LedgerBusyError(MatlError):
    """Another process writes this ledger."""


class LedgerUnusableError(MatlError):
    """An entry could not be made durable, or may be durable without our knowing."""


class BudgetExhaustedError(MatlError):
    """A reservation would pass the study's or the data set's budget; the study is now halted."""


class LedgerStorage(Protocol):
    """The bytes of one ledger, held by one writer."""

    def read(self) -> bytes:
        """Everything in the file."""

    def append(self, data: bytes) -> None:
        """Add bytes at the end; they may be lost, wholly or in part, before ``sync``."""

    def truncate(self, size: int) -> None:
        """Keep the first ``size`` bytes; may be undone by a crash before ``sync``."""

    def sync(self) -> None:
        """When this returns, the content is on the disk."""

    def sync_name(self) -> None:
        """When this returns, the file's name is on the disk."""

    def close(self) -> None:
        """Let another writer in."""


class FileStorage:
    """A ledger file, locked for as long as it is open."""

    def __init__(self, path: Path) -> None:
        """Open the file, or create it together with its folder.

        Raises:
            LedgerBusyError: another process has it open.
        """
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = path.parent
        self._descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, PRIVATE_FILE_MODE
        )
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise LedgerBusyError(
                f"the privacy ledger {path.name} is in use; stop the other participant, or give "
                "this one its own state directory"
            ) from error

    def read(self) -> bytes:
        """Everything in the file."""
        size = os.fstat(self._descriptor).st_size
        return os.pread(self._descriptor, size, 0)

    def append(self, data: bytes) -> None:
        """Add bytes at the end."""
        remaining = memoryview(data)
        while remaining:
            remaining = remaining[os.write(self._descriptor, remaining) :]

    def truncate(self, size: int) -> None:
        """Keep the first ``size`` bytes."""
        os.ftruncate(self._descriptor, size)

    def sync(self) -> None:
        """Flush the content."""
        os.fsync(self._descriptor)

    def sync_name(self) -> None:
        """Flush the folder, and the name of every folder above it: any may be new."""
        fsync_directory(self._folder)
        fsync_directory(self._folder.parent)
        for ancestor in self._folder.parent.parents:
            # Whoever may not read a folder did not make it, and its names are old.
            with suppress(PermissionError):
                fsync_directory(ancestor)

    def close(self) -> None:
        """Release the lock with the descriptor."""
        os.close(self._descriptor)


def ledger_path(folder: Path, *, dataset: str, study_id: str) -> Path:
    """Where the ledger of a data set and a study lies; study ids are free text."""
    study = digest_of(study_id.encode())[:_STUDY_DIGEST_CHARACTERS]
    return folder / f"{dataset}-{study}{LEDGER_SUFFIX}"


def _alone() -> Shared:
    return Shared()


class Ledger:
    """The single writer of one ledger."""

    def __init__(
        self, storage: LedgerStorage, *, read_shared: Callable[[], Shared] = _alone
    ) -> None:
        """Read a ledger back, dropping an incomplete last line.

        Args:
            storage: the ledger's bytes, which nobody else writes.
            read_shared: reads the other ledgers of the hospital; asked before every
                reservation, since a study may have spent since.

        Raises:
            LedgerCorruptError: the file is damaged beyond that.
            LedgerUnusableError: the disk refused.
        """
        # Owned by this object; nobody else writes the storage.
        self._storage = storage
        self._usable = True
        self._read_shared = read_shared
        self._shared = read_shared()
        journal = replay(storage.read())
        self._account, self._head, self._lines = journal.account, journal.head, journal.lines
        self._do(lambda: storage.truncate(journal.sound_bytes))
        if journal.missing_newline:
            self._do(lambda: storage.append(b"\n"))
        # What was read may have been in a cache only; from here on it is relied upon.
        self._do(storage.sync)
        self._do(storage.sync_name)

    @property
    def account(self) -> Account:
        """What the entries on disk amount to."""
        return self._account

    @property
    def head(self) -> Digest:
        """Hash of the last line; moves with every entry."""
        return self._head

    def summary(self) -> Summary:
        """Summarise the account; changes nothing.

        Raises:
            IllegalEntryError: there is no plan yet.
        """
        return summarise(self._account, self._shared)

    @property
    def shared(self) -> Shared:
        """The other studies, as they were at the last reservation or at the opening."""
        return self._shared

    def plan(self, planned: Planned) -> None:
        """Freeze what the study may cost."""
        self._write(planned)

    def reserve(
        self,
        *,
        at: datetime,
        round_id: RoundId,
        steps: int,
        base_model: Digest,
        evaluations: int = 0,
    ) -> None:
        """Charge an attempt with all it may do to the data; only when this returns may it be read.

        Raises:
            BudgetExhaustedError: it would pass the budget; HALT was written instead.
            IllegalEntryError: an attempt is open, or the round was sealed before.
        """
        entry = Reserved(at, round_id, steps, base_model, evaluations)
        after(self._account, entry)
        self._shared = self._read_shared()
        why = why_over_budget(
            self._account, steps=steps, evaluations=evaluations, shared=self._shared
        )
        if why is not None:
            self._write(Halted(at, f"the privacy budget is spent: {why}"))
            raise BudgetExhaustedError(f"the privacy budget does not allow round {round_id}: {why}")
        self._write(entry)

    def seal(
        self, *, at: datetime, round_id: RoundId, update_digest: Digest, content_digest: Digest
    ) -> None:
        """Fix the one update of a round; only when this returns may it be sent."""
        self._write(Sealed(at, round_id, update_digest, content_digest))

    def acknowledge(
        self, *, at: datetime, round_id: RoundId, update_digest: Digest, log_index: int
    ) -> None:
        """Note the coordinator's receipt."""
        self._write(Acknowledged(at, round_id, update_digest, log_index))

    def abandon(self, *, at: datetime, round_id: RoundId, reason: str) -> None:
        """Give up the open attempt; nothing is refunded."""
        self._write(Abandoned(at, round_id, reason))

    def halt(self, *, at: datetime, reason: str) -> None:
        """End this study here for good."""
        self._write(Halted(at, reason))

    def close(self) -> None:
        """Release the file."""
        self._usable = False
        self._storage.close()

    def __enter__(self) -> Self:
        """Return the open ledger."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the file."""
        self.close()

    def _write(self, entry: Entry) -> None:
        account = after(self._account, entry)
        line, head = format_line(entry, sequence=self._lines, previous=self._head)
        self._do(lambda: self._storage.append(line))
        self._do(self._storage.sync)
        self._account, self._head, self._lines = account, head, self._lines + 1

    def _do(self, write: Callable[[], None]) -> None:
        if not self._usable:
            raise LedgerUnusableError("the privacy ledger is closed; restart the participant")
        try:
            write()
        except OSError as error:
            self._usable = False
            raise LedgerUnusableError(
                f"the privacy ledger could not be written ({os.strerror(error.errno or 0)}); free "
                "or repair the disk and restart: what counts is what the file then holds"
            ) from error


def open_ledger(
    folder: Path, *, dataset: str, study_id: str, limit: DatasetLimit | None = None
) -> Ledger:
    """Open the ledger of a data set and a study, creating it on the first day.

    Args:
        folder: of all ledgers of this hospital; those on the same patients compose.
        dataset: the data set's name.
        study_id: free text.
        limit: what all studies together may cost the data set's patients.

    Raises:
        LedgerBusyError: another process has it open.
        LedgerCorruptError: the file, or another study's, is damaged.
        LedgerUnusableError: the disk refused.
    """
    path = ledger_path(folder, dataset=dataset, study_id=study_id)

    def read_shared() -> Shared:
        others = (read_account(each) for each in ledger_files(folder) if each != path)
        return Shared(limit, tuple(others))

    storage = FileStorage(path)
    try:
        return Ledger(storage, read_shared=read_shared)
    except BaseException:
        with suppress(OSError):
            storage.close()
        raise


def ledger_files(folder: Path) -> tuple[Path, ...]:
    """Every ledger in a folder, in a fixed order."""
    return tuple(sorted(folder.glob(f"*{LEDGER_SUFFIX}")))


def read_account(path: Path) -> Account:
    """What a ledger's entries amount to, without locking or changing anything.

    Raises:
        LedgerCorruptError: the file is damaged; the message names it.
    """
    try:
        return replay(path.read_bytes()).account
    except LedgerCorruptError as error:
        raise LedgerCorruptError(f"{path.name}: {error}", line=error.line) from error


def read_accounts(
    folder: Path, *, limit: DatasetLimit | None = None
) -> tuple[tuple[Account, Shared], ...]:
    """Every account in a folder that has a plan, and the others beside it; changes nothing.

    Raises:
        LedgerCorruptError: a file is damaged; the message names it.
    """
    accounts = [read_account(path) for path in ledger_files(folder)]
    return tuple(
        (account, Shared(limit, tuple(accounts[:at] + accounts[at + 1 :])))
        for at, account in enumerate(accounts)
        if account.plan is not None
    )


def read_summaries(folder: Path, *, limit: DatasetLimit | None = None) -> tuple[Summary, ...]:
    """Summarise every ledger in a folder, without locking or changing anything.

    Raises:
        LedgerCorruptError: a file is damaged; the message names it.
    """
    return tuple(summarise(*each) for each in read_accounts(folder, limit=limit))
