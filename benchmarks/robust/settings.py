"""Which federations are attacked, and by what. Values; runs nothing."""

import math
from typing import Any, Final

from matl.attacks import ATTACKS, Room
from matl.simulation.datasets import DataSet
from matl.simulation.study import NO_ATTACK, TUTORIAL_PATIENTS, Study

EPSILON: Final = 1.0
ALPHA: Final = 0.5
LARGE: Final = 20
HOSTILE: Final = {LARGE: 9, len(TUTORIAL_PATIENTS): 2}
_WRONG_LENGTH: Final = frozenset({"too_long", "too_short", "truncated"})
"""Refused by their size before anybody looks at a value; the tests show that."""

HEAD: Final = {"recipe": "head", "rounds": 20, "steps": 2, "learning_rate": 24.0}
"""On 48 whitened principal components of the public images, without spare rounds."""


def federation(data_set: str, members: int, *, alpha: float, private: bool) -> Study:
    """A federation with as many hostile hospitals as are claimed, whose attack is still open."""
    hospitals: dict[str, Any] = {"alpha": alpha}
    if members == len(TUTORIAL_PATIENTS):
        hospitals["patients"] = TUTORIAL_PATIENTS
    else:
        hospitals["count"] = members
    return Study.model_validate(
        {
            "data": {"set": data_set},
            "hospitals": hospitals,
            "training": HEAD if private else {},
            "privacy": {"epsilon": EPSILON if private else math.inf},
            "hostile": {"count": HOSTILE[members]},
        }
    )


def federations(data_set: DataSet) -> list[Study]:
    """Every federation of a data set."""
    return [
        federation(data_set, members, alpha=alpha, private=private)
        for private in (False, True)
        for members in HOSTILE
        for alpha in (math.inf, ALPHA)
    ]


def under(study: Study, attack: str) -> Study:
    """The same federation under an attack.

    Raises:
        ValidationError: the attack does not fit it.
    """
    table = study.model_dump()
    table["hostile"]["attack"] = attack
    return Study.model_validate(table)


def attacks_on(study: Study, *, seed: int) -> list[str]:
    """Every attack that makes sense there; those against privacy noise need some."""
    return [NO_ATTACK] + [
        name
        for name, entry in ATTACKS.items()
        if name not in _WRONG_LENGTH
        and (study.is_private or entry.room is not Room.PRIVATE)
        # Malformed updates are refused whatever the split.
        and (seed == 0 or entry.room is not Room.PROTOCOL)
    ]
