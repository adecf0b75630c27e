"""What operators are told about a configuration's protection, and where it asks for more.

Said at start, shown by ``matl status`` and logged, so that nobody relies on more. Nothing
here decides about a round.
"""

from __future__ import annotations

from dataclasses import dataclass

from matl_common.attestation.evidence import Verdict
from matl_common.modes import SIMULATED, MATLMode
from matl_coordinator.config import Config
from matl_coordinator.core.claim import claimed_tolerance
from matl_coordinator.service.founding import RECOMMENDED_HOLDOUT


@dataclass(frozen=True, slots=True)
class Protection:
    """How updates are judged and aggregated, and what that withstands."""

    mode: MATLMode
    rule: str
    """All stages of the aggregation in order, with every parameter."""
    claim: str
    """Against how many hostile hospitals, given what."""
    warnings: tuple[str, ...] = ()
    """Where the configuration asks for more than can be claimed."""
    is_simulated: bool = False
    """Whether the evidence of MODE2 is SIMULATED, which proves nothing."""

    @property
    def mode_name(self) -> str:
        """The mode for machines to read, who must not take a SIMULATED one for MODE2."""
        return f"{self.mode.value}{SIMULATED}" if self.is_simulated else self.mode.value


def protection_of(
    config: Config,
    *,
    enrolled: int,
    warnings: tuple[str, ...] = (),
    attested: Verdict | None = None,
) -> Protection:
    """The protection of a coordinator with so many enrolled hospitals.

    Args:
        config: checked.
        enrolled: participants on the allow-list.
        warnings: found elsewhere, kept in front.
        attested: what this coordinator's own evidence showed, in MODE2.
    """
    mode = config.mode
    tolerated = claimed_tolerance(mode, enrolled).f
    if config.rounds.byzantine > tolerated:
        remedy = "enrol more hospitals"
        if mode is MATLMode.MODE0:
            remedy = f"set holdout.images, or {remedy}"
        beyond = (
            f"rounds.byzantine is {config.rounds.byzantine}, and {mode.value.upper()} with "
            f"{enrolled} hospitals claims nothing above {tolerated}; {remedy}"
        )
        warnings = (*warnings, beyond)
    claim = _claim(config, mode, f=min(tolerated, config.rounds.byzantine), enrolled=enrolled)
    sentence = f"{mode.value.upper()}{_attested(attested)}: {claim}"
    return Protection(
        mode,
        config.rounds.aggregator.describe(),
        sentence,
        warnings,
        is_simulated=attested is not None and attested.simulated,
    )


def _attested(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    if verdict.simulated:
        return " (SIMULATED attestation, proves nothing)"
    return f" (attested by {verdict.technology.value}, measurement {verdict.measurement[:16]}…)"


def _claim(config: Config, mode: MATLMode, *, f: int, enrolled: int) -> str:
    """What may be said of this configuration, and on what condition."""
    if mode is MATLMode.MODE0:
        return (
            f"without a holdout set up to {f} of {enrolled} hospitals may be hostile; similar "
            "hospitals and an honest majority among their updates are assumed; no update is "
            "scored on a holdout set and no model evaluated"
        )
    if config.trust.composite == "matl-paper":
        return (
            "no claim: trust.composite matl-paper scores hospitals as MATL's paper does, for "
            "comparison, and the test against the holdout set decides nothing"
        )
    return (
        f"up to {f} of {enrolled} hospitals may be hostile, given a clean root set of at least "
        f"{RECOMMENDED_HOLDOUT} images and authenticated members; the trust rule carries this, "
        "whatever rounds.rule is"
    )
