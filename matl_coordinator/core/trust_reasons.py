"""Why a hospital is trusted as it is, in a sentence its staff can read.

Nothing here changes a score.
"""

from __future__ import annotations

from matl_coordinator.core.trust_record import (
    Components,
    TrustPolicy,
    TrustRecord,
    TrustState,
    following,
    rounds_to_readmission,
)

_WORTH_SAYING = 0.995
"""Share of its weight below which a hospital is told."""

_VERDICTS = {
    TrustState.TRUSTED: "trusted",
    TrustState.MARGINAL: "reduced weight",
    TrustState.QUARANTINED: "excluded",
}


def cause_of(record: TrustRecord, policy: TrustPolicy) -> str:
    """Why a record just scored entered quarantine, as a phrase."""
    parts = record.components
    if parts is None or parts.mode == "peers":
        return _too_low(record, policy)
    if policy.composite == "matl-paper":
        return _composite(parts)
    if parts.quality > 0.5 and not parts.harm:
        return _too_low(record, policy)
    return _against(record, parts, policy)


def reason_for(
    record: TrustRecord, policy: TrustPolicy, *, disagrees: bool, entered: bool = False
) -> str:
    """One sentence on a record just scored.

    Args:
        record: with its state and, in quarantine, with the cause of it.
        policy: the constants.
        disagrees: with the other hospitals.
        entered: this round led into quarantine.
    """
    parts = record.components
    if parts is None:
        return record.reason
    if entered:
        return f"{_verdict(record)}: {record.quarantine_cause}"
    sentence = _reason(record, parts, policy, disagrees=disagrees)
    share = following(record, policy)
    if share < _WORTH_SAYING and record.state is not TrustState.QUARANTINED:
        how = "goes against" if record.beyond < 0.0 else "hardly goes along with"
        sentence += (
            f"; keeps {share:.0%} of its weight: beyond the gradients it {how} the holdout "
            f"set's own training, cosine {record.beyond:+.3f} over the rounds"
        )
    if parts.clones and record.state is not TrustState.QUARANTINED:
        updates = "update" if parts.clones == 1 else "updates"
        sentence += f"; shares its weight with {parts.clones} nearly identical {updates}"
    return sentence


def violation_reason(record: TrustRecord, violation: str) -> str:
    """One sentence on a record just lowered because of what the hospital sent."""
    if record.state is not TrustState.QUARANTINED:
        return f"trust lowered: {violation}"
    if record.operator_hold and record.quarantine_cause not in ("", violation):
        return f"{_verdict(record)}: {record.quarantine_cause}; now {violation}"
    return f"{_verdict(record)}: {violation}"


def _verdict(record: TrustRecord) -> str:
    held = " until an operator releases it" if record.operator_hold else ""
    return f"{_VERDICTS[record.state]}{held}"


def _reason(record: TrustRecord, parts: Components, policy: TrustPolicy, *, disagrees: bool) -> str:
    verdict = _VERDICTS[record.state]
    if record.operator_hold:
        cause = record.quarantine_cause or "an operator's order, or quarantines before"
        now = _standing(record, parts, policy, disagrees=disagrees)
        return f"{_verdict(record)}: {cause}; now {now}"
    if record.state is TrustState.QUARANTINED and parts.quality > 0.5:
        return f"excluded for now: {_return(record, parts, policy)}"
    return f"{verdict}: {_standing(record, parts, policy, disagrees=disagrees)}"


def _standing(
    record: TrustRecord, parts: Components, policy: TrustPolicy, *, disagrees: bool
) -> str:
    """What this round and those before it say, whatever state that left."""
    if parts.mode == "peers":
        return _beside_peers(parts, policy, disagrees=disagrees)
    if policy.composite == "matl-paper":
        return _composite(parts)
    if disagrees and not parts.harm and not record.rounds_against:
        return f"points against the other hospitals, cosine {parts.peer_cosine:+.2f}"
    if parts.quality < 0.5 or parts.harm:
        return _against(record, parts, policy)
    if record.state is TrustState.MARGINAL:
        return f"too little evidence yet, accumulated z = {parts.accumulated_z:+.1f}"
    return f"agrees with the holdout reference, accumulated z = {parts.accumulated_z:+.1f}"


def _too_low(record: TrustRecord, policy: TrustPolicy) -> str:
    return f"its trust of {record.trust:.2f} is below {policy.excluded_below:.2f}"


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
    if parts.profile_harm and parts.z > policy.harm_z and parts.profile_z is not None:
        return (
            "its updates lack what its enrolled label mix predicts for class "
            f"{parts.profile_class}, z = {parts.profile_z:+.1f}"
        )
    if parts.recent_z < policy.recent_harm_z and parts.accumulated_z > 0:
        return (
            f"late rounds against the holdout reference, z = {parts.z:+.1f}, "
            f"together {parts.recent_z:+.1f}"
        )
    if record.rounds_against:
        return (
            f"{_rounds(record.rounds_against)} against the holdout reference, "
            f"z = {parts.z:+.1f}, accumulated {parts.accumulated_z:+.1f}"
        )
    if parts.projection == 0.0 and parts.standard_error == 0.0 and not parts.harm:
        return "its update changes nothing that the holdout set can see"
    if record.sleeper_sum > policy.sleeper_limit:
        return f"persistently helps the holdout set less than others do, z = {parts.z:+.1f}"
    if parts.accumulated_z >= 0:
        return (
            f"helps the holdout set too little so far, accumulated z = {parts.accumulated_z:+.1f}"
        )
    return f"past rounds against the holdout reference, accumulated z = {parts.accumulated_z:+.1f}"


def _number(count: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[count] if count < len(words) else str(count)


def _rounds(count: int) -> str:
    return f"{_number(count)} round{'' if count == 1 else 's'}"
