"""Whether a ledger is behind what has demonstrably happened.

A file restored from a backup, or cut at its end, is a sound chain that has forgotten
something. What gives it away is evidence kept elsewhere: the coordinator's signed
receipts, and sealed updates. Pure; nothing here reads a file.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from matl_common.ids import Digest, RoundId
from matl_participant.core.account import Account


@dataclass(frozen=True, slots=True)
class Evidence:
    """Something that exists only if a round was charged before."""

    round_id: RoundId
    update_digest: Digest | None
    """The update that a receipt names; ``None`` where only the round is certain."""


def why_behind(account: Account, evidence: Iterable[Evidence]) -> str | None:
    """Say which charges the ledger has forgotten, or nothing."""
    unknown = sorted({each.round_id for each in evidence if not _knows(account, each)})
    if not unknown:
        return None
    return (
        f"there are receipts or sealed updates for rounds {unknown} that the privacy ledger does "
        "not know: it was emptied, cut or replaced by an older copy. Restore the newest copy; what "
        "was spent is spent"
    )


def _knows(account: Account, evidence: Evidence) -> bool:
    attempts = account.attempts_at(evidence.round_id)
    if evidence.update_digest is None:
        return bool(attempts)
    return any(attempt.update_digest == evidence.update_digest for attempt in attempts)
