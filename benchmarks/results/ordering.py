"""Which rules must be in which order on the quick studies, with room for chance.

A regression of the trust rule shows as an order that turned round, not as a tenth of a point.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from matl.simulation.study import NO_ATTACK, ArmName

TOLERANCE_POINTS: Final = 2.0
"""On 500 test images a point is five of them."""
GAIN_POINTS: Final = 10.0
RUINOUS: Final = frozenset({"sign_flip_5", "label_complement", "ipm_2"})
"""What costs FedAvg tens of points at 45 %."""


def violations(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Everything out of order, as sentences; intervals overlap before anything is said."""
    found = []
    for cell in cells:
        if cell["arm"] != ArmName.MATL:
            continue
        same = [c for c in cells if all(c[k] == cell[k] for k in _CONDITIONS)]
        by_arm = {c["arm"]: c for c in same}
        name = ", ".join(f"{cell[key]}" for key in _CONDITIONS)
        gap = cell["below_oracle_points"]
        if gap["mean"] - (gap["half_width"] or 0.0) > TOLERANCE_POINTS:
            found.append(f"{name}: MATL is {gap['mean']:.1f} points below the honest alone")
        mean = by_arm.get(ArmName.MEAN)
        if cell["attack"] in RUINOUS and mean is not None:
            gain = mean["below_oracle_points"]["mean"] - gap["mean"]
            if gain < GAIN_POINTS:
                found.append(f"{name}: MATL gains only {gain:.1f} points on FedAvg")
            if cell["hostile_excluded"]["mean"] < 0.8:
                found.append(
                    f"{name}: MATL excludes {cell['hostile_excluded']['mean']:.0%} of the hostile"
                )
        if cell["honest_excluded"]["mean"] > 0.1:
            found.append(
                f"{name}: MATL excludes {cell['honest_excluded']['mean']:.0%} of the honest"
            )
        if cell["attack"] == NO_ATTACK and mean is not None:
            lost = mean["accuracy_percent"]["mean"] - cell["accuracy_percent"]["mean"]
            if lost > TOLERANCE_POINTS:
                found.append(f"{name}: without an attacker MATL loses {lost:.1f} points to FedAvg")
    return found


_CONDITIONS: Final = ("data", "members", "hostile", "mix", "epsilon", "attack")
