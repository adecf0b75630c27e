"""What operators are told about a configuration's protection, and where it asks for more.

Said at start, shown by ``matl status`` and logged, so that nobody relies on more. Nothing
here decides about a round.
"""

from __future__ import annotations

from dataclasses import dataclass

from matl_coordinator.config import Config
from matl_coordinator.core.claim import Mode, claimed_tolerance


@dataclass(frozen=True, slots=True)
class Protection:
    """How updates are judged and aggregated, and what that withstands."""

    mode: Mode
    rule: str
    """All stages of the aggregation in order, with every parameter."""
    claim: str
    """Against how many hostile hospitals, given what."""
    warnings: tuple[str, ...] = ()
    """Where the configuration asks for more than can be claimed."""


def protection_of(config: Config, *, enrolled: int, warnings: tuple[str, ...] = ()) -> Protection:
    """The protection of a coordinator with so many enrolled hospitals.

    Args:
        config: checked.
        enrolled: participants on the allow-list.
        warnings: found elsewhere, kept in front.
    """
    mode = Mode.PEERS if config.holdout is None else Mode.ROOT
    claim = claimed_tolerance(mode, enrolled)
    sentence = f"{mode.value.upper()}: {claim.sentence}"
    if mode is Mode.PEERS:
        sentence += "; no update is scored on a holdout set and no model evaluated"
    if config.rounds.byzantine > claim.f:
        remedy = "enrol more hospitals"
        if mode is Mode.PEERS:
            remedy = f"set holdout.images, or {remedy}"
        beyond = (
            f"rounds.byzantine is {config.rounds.byzantine}, and {mode.value.upper()} with "
            f"{enrolled} hospitals claims nothing above {claim.f}; {remedy}"
        )
        warnings = (*warnings, beyond)
    return Protection(mode, config.rounds.aggregator.describe(), sentence, warnings)
