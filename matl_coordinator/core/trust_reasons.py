"""Why a hospital is trusted as it is, in a sentence its staff can read.

Nothing here changes a score.
"""

from __future__ import annotations

from matl_coordinator.core.trust_record import (
    TrustPolicy,
    TrustRecord,
    TrustState,
    rounds_to_readmission,
)


def reason_for(record: TrustRecord, policy: TrustPolicy, *, disagrees: bool) -> str:
    """One sentence on a record just scored; ``disagrees``: with the other hospitals."""
    parts = record.components
    if parts is None:
        return record.reason
    verdict = {
        TrustState.TRUSTED: "trusted",
        TrustState.MARGINAL: "reduced weight",
        TrustState.QUARANTINED: "excluded",
    }[record.state]
    if record.operator_hold:
        return f"{verdict} until an operator releases it: {_against(record, policy)}"
    if record.state is TrustState.QUARANTINED and parts.quality > 0.5:
        wanted = rounds_to_readmission(record, policy)
        return (
            f"excluded for now: {_rounds(record.rounds_clear)} of {_number(wanted)} good ones "
            f"needed to return, z = {parts.z:+.1f}"
        )
    if parts.quality < 0.5 or parts.harm:
        return f"{verdict}: {_against(record, policy)}"
    if disagrees:
        return f"{verdict}: points against the other hospitals, cosine {parts.peer_cosine:+.2f}"
    if record.state is TrustState.MARGINAL:
        return f"{verdict}: too little evidence yet, accumulated z = {parts.accumulated_z:+.1f}"
    return (
        f"{verdict}: agrees with the holdout reference, accumulated z = {parts.accumulated_z:+.1f}"
    )


def _against(record: TrustRecord, policy: TrustPolicy) -> str:
    parts = record.components
    if parts is None:
        return "three or more quarantines"
    if record.rounds_against:
        return (
            f"{_rounds(record.rounds_against)} against the holdout reference, "
            f"z = {parts.z:+.1f}, accumulated {parts.accumulated_z:+.1f}"
        )
    if record.sleeper_sum > policy.sleeper_limit:
        return f"persistently helps the holdout set less than others do, z = {parts.z:+.1f}"
    return f"past rounds against the holdout reference, accumulated z = {parts.accumulated_z:+.1f}"


def _number(count: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[count] if count < len(words) else str(count)


def _rounds(count: int) -> str:
    return f"{_number(count)} round{'' if count == 1 else 's'}"
