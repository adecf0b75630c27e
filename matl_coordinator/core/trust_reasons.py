"""Why a hospital is trusted as it is, in a sentence its staff can read.

Nothing here changes a score.
"""

from __future__ import annotations

from matl_coordinator.core.trust_record import (
    Components,
    TrustPolicy,
    TrustRecord,
    TrustState,
    rounds_to_readmission,
)

_VERDICTS = {
    TrustState.TRUSTED: "trusted",
    TrustState.MARGINAL: "reduced weight",
    TrustState.QUARANTINED: "excluded",
}


def reason_for(record: TrustRecord, policy: TrustPolicy, *, disagrees: bool) -> str:
    """One sentence on a record just scored; ``disagrees``: with the other hospitals."""
    parts = record.components
    if parts is None:
        return record.reason
    sentence = _reason(record, parts, policy, disagrees=disagrees)
    if parts.clones and record.state is not TrustState.QUARANTINED:
        updates = "update" if parts.clones == 1 else "updates"
        sentence += f"; shares its weight with {parts.clones} nearly identical {updates}"
    return sentence


def violation_reason(record: TrustRecord, violation: str) -> str:
    """One sentence on a record just lowered because of what the hospital sent."""
    verb = "excluded" if record.state is TrustState.QUARANTINED else "trust lowered"
    return f"{verb}: {violation}"


def _reason(record: TrustRecord, parts: Components, policy: TrustPolicy, *, disagrees: bool) -> str:
    verdict = _VERDICTS[record.state]
    against = _against(record, parts, policy)
    if record.operator_hold:
        return f"{verdict} until an operator releases it: {against}"
    if record.state is TrustState.QUARANTINED and parts.quality > 0.5:
        return f"excluded for now: {_return(record, parts, policy)}"
    if parts.mode == "peers":
        return f"{verdict}: {_beside_peers(parts, policy, disagrees=disagrees)}"
    if policy.composite == "matl-paper":
        return f"{verdict}: {_composite(parts)}"
    if disagrees and not parts.harm and not record.rounds_against:
        return f"{verdict}: points against the other hospitals, cosine {parts.peer_cosine:+.2f}"
    if parts.quality < 0.5 or parts.harm:
        return f"{verdict}: {against}"
    if record.state is TrustState.MARGINAL:
        return f"{verdict}: too little evidence yet, accumulated z = {parts.accumulated_z:+.1f}"
    return (
        f"{verdict}: agrees with the holdout reference, accumulated z = {parts.accumulated_z:+.1f}"
    )


def _return(record: TrustRecord, parts: Components, policy: TrustPolicy) -> str:
    wanted = rounds_to_readmission(record, policy)
    if record.rounds_clear >= wanted:
        return f"trust {record.trust:.2f} must pass {policy.readmit_from:.2f} to return"
    said = f"{_rounds(record.rounds_clear)} of {_number(wanted)} good ones needed to return"
    return said if parts.mode == "peers" else f"{said}, z = {parts.z:+.1f}"


def _beside_peers(parts: Components, policy: TrustPolicy, *, disagrees: bool) -> str:
    cosine = f"cosine {parts.peer_cosine:+.2f}"
    if disagrees:
        return f"points against the other hospitals, {cosine}; there is no holdout set"
    if parts.quality <= policy.initial:
        return f"the other hospitals neither confirm nor contradict it, {cosine}"
    return f"points the same way as the other hospitals, {cosine}; there is no holdout set"


def _composite(parts: Components) -> str:
    return (
        f"composite of MATL's paper {parts.composite or 0.0:.2f}, from PoGQ {parts.pogq:.2f}, "
        f"diversity {parts.tcdm or 0.0:.2f} and entropy {parts.entropy or 0.0:.2f}"
    )


def _against(record: TrustRecord, parts: Components, policy: TrustPolicy) -> str:
    if parts.mode == "peers":
        return "the operator's order, or three or more quarantines"
    if parts.profile_harm and parts.z > policy.harm_z and parts.profile_z is not None:
        return (
            "its updates lack what its enrolled label mix predicts for class "
            f"{parts.profile_class}, z = {parts.profile_z:+.1f}"
        )
    if record.rounds_against:
        return (
            f"{_rounds(record.rounds_against)} against the holdout reference, "
            f"z = {parts.z:+.1f}, accumulated {parts.accumulated_z:+.1f}"
        )
    if record.sleeper_sum > policy.sleeper_limit:
        return f"persistently helps the holdout set less than others do, z = {parts.z:+.1f}"
    if parts.accumulated_z > 0:
        return (
            f"helps the holdout set too little so far, accumulated z = {parts.accumulated_z:+.1f}"
        )
    return f"past rounds against the holdout reference, accumulated z = {parts.accumulated_z:+.1f}"


def _number(count: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[count] if count < len(words) else str(count)


def _rounds(count: int) -> str:
    return f"{_number(count)} round{'' if count == 1 else 's'}"
