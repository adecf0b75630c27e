"""When a round should bring an operator, and what that operator is told to do.

Nothing here logs or counts; the conductor does.
"""

from __future__ import annotations

from dataclasses import dataclass

from matl_coordinator.core.power import ALARM_RATIO, ByzantinePower

BYZANTINE_POWER, CARTEL = "byzantine_power", "cartel"
KINDS = (BYZANTINE_POWER, CARTEL)


@dataclass(frozen=True, slots=True)
class Alarm:
    """One thing that passed its bound."""

    kind: str
    """A bounded label: one of ``KINDS``."""
    figure: float
    bound: float
    reason: str
    remedy: str


_LOOK = "see matl participants and matl audit tail for who and why"


def alarms_of(power: ByzantinePower, *, cartel_share: float) -> tuple[Alarm, ...]:
    """What in a round calls for an operator.

    Args:
        power: of the round.
        cartel_share: weight of nearly identical updates above which to alarm.
    """
    raised = []
    if power.is_alarming:
        raised.append(
            Alarm(
                BYZANTINE_POWER,
                power.ratio,
                ALARM_RATIO,
                power.sentence(),
                f"{_LOOK}; quarantine whom you distrust (matl quarantine NODE --reason TEXT), or "
                "stop with matl pause --reason TEXT until the hospitals have been asked",
            )
        )
    if power.cartel_share > cartel_share:
        raised.append(
            Alarm(
                CARTEL,
                power.cartel_share,
                cartel_share,
                power.sentence(),
                f"{_LOOK}; they share one weight already: ask whether they are one hospital, or "
                "one copies the others, and quarantine the copies",
            )
        )
    return tuple(raised)
