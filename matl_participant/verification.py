"""Whether the privacy ledgers of a hospital can be relied upon.

Reads the files as they are, beside a running daemon too, and changes nothing: what a
daemon would repair or refuse at its next start is only told.
"""

from dataclasses import dataclass
from pathlib import Path

from matl_participant.core.evidence import why_behind
from matl_participant.core.journal import Journal, LedgerCorruptError, replay
from matl_participant.files import StateFolder
from matl_participant.ledger import ledger_files


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found about one ledger file."""

    file: str
    study_id: str | None
    """``None`` where the file has no readable plan."""
    entries: int
    """Sound entries from the first on."""
    head: str
    """Hash of the last of them; compare it with one noted earlier."""
    problem: str | None
    """What is wrong and what to do; ``None``: nothing."""
    line: int | None = None
    """The first broken line, counted from 1."""
    note: str = ""


def verify_ledgers(state: StateFolder) -> tuple[Verdict, ...]:
    """Check the chain and every entry of each ledger, and what was kept beside it."""
    return tuple(_verify(path, state) for path in ledger_files(state.ledger))


def _verify(path: Path, state: StateFolder) -> Verdict:
    data = path.read_bytes()
    try:
        journal = replay(data)
    except LedgerCorruptError as error:
        # Up to the broken line everything replays, or that line would not be the first.
        sound = replay(b"".join(data.splitlines(keepends=True)[: error.line - 1]))
        return Verdict(
            path.name, _study_of(sound), sound.lines, sound.head, str(error), line=error.line
        )
    plan = journal.account.plan
    evidence = state.study_as_it_is(plan.study_id).evidence() if plan else ()
    return Verdict(
        path.name,
        _study_of(journal),
        journal.lines,
        journal.head,
        why_behind(journal.account, evidence),
        note=_note(journal, size=len(data)),
    )


def _study_of(journal: Journal) -> str | None:
    return journal.account.plan.study_id if journal.account.plan else None


def _note(journal: Journal, *, size: int) -> str:
    if journal.sound_bytes < size:
        return (
            "the last line is incomplete: nothing was done on its account, and the next start "
            "drops it"
        )
    return "" if journal.lines else "nothing was entered yet"
