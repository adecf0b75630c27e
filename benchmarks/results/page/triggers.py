# ruff: noqa: E501  # The page's own lines.
"""Table 2, attacks that leave accuracy alone: how often a trigger works in the released model."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.results.page.cells import (
    claimed,
    federation,
    of_kind,
    place,
    share,
    span,
    where,
)
from benchmarks.results.page.markdown import (
    Cell,
    epsilon_words,
    mix_words,
    percent,
    shown,
    table,
)
from matl.simulation.study import ArmName

ATTACKS: Final = ("backdoor", "replacement")
_TAKEN: Final = 0.5
"""Of the images with a trigger: a model that takes more has learned it."""


def triggers(studies: Mapping[str, Any]) -> str:
    """The table; empty where nothing was run."""
    cells = trigger_cells(studies)
    if not cells:
        return ""
    arms = list(dict.fromkeys(c["arm"] for c in cells))
    keys = ("attack", "epsilon", "members", "hostile", "mix")
    rows = []
    found = dict.fromkeys(tuple(c[key] for key in keys) for c in cells)
    # By attack, ε, hospitals, classes, and then by the number of hostile ones.
    for group in sorted(found, key=lambda group: (*group[:3], group[4], group[3])):
        own = where(cells, **dict(zip(keys, group, strict=True)))
        first = own[0]
        row = [first["attack"], epsilon_words(first["epsilon"]), share(first)]
        row += [mix_words(first["mix"]), str(len(first["seeds"]))]
        rows.append(row + [_entry(where(own, arm=arm)) for arm in arms])
    return f"""
### Triggers

*Success*: the share of test images with the trigger that the released model takes for the attackers' class. Each entry is
success, then accuracy in percent without the trigger, then rounds held if there were any. Empty: not run.

{table(["attack", "ε", "hostile", "classes", "seeds", *arms], rows)}
"""


def trigger_cells(studies: Mapping[str, Any]) -> list[Cell]:
    """Of every rule that models were released by or held under such an attack."""
    return [
        cell
        for study in of_kind(studies, "robust").values()
        for cell in study["cells"]
        if cell["attack"] in ATTACKS and cell["arm"] != ArmName.ORACLE
    ]


def _entry(cells: Sequence[Cell]) -> str:
    if not cells:
        return ""
    cell = cells[0]
    success = percent(cell, "backdoor_success") or "none released"
    held = cell.get("held_rounds", {"mean": 0.0})["mean"]
    waiting = f", {span(cell, 'held_rounds')} held" if held else ""
    return f"{success} / {shown(cell, 'accuracy_percent', 1)}{waiting}"


def what_rules_resist(studies: Mapping[str, Any]) -> str:
    """Of the places where MATL's model learned the trigger, in how many that of another rule did.

    Places with no more hostile hospitals than MATL claims, mean over seeds.
    """
    cells = _within_claim(studies)
    ours = where(cells, arm=ArmName.MATL)
    learned = [c for c in ours if _has_learned(c)]
    if not learned:
        return ""
    places = [(*federation(c).values(), c["attack"]) for c in learned]
    rules: dict[str, list[bool]] = {}
    for cell in cells:
        if cell["arm"] != ArmName.MATL and (*federation(cell).values(), cell["attack"]) in places:
            rules.setdefault(cell["arm"], []).append(_has_learned(cell))
    others = ", ".join(f"{rule} in {sum(found)} of {len(found)}" for rule, found in rules.items())
    return (
        f"MATL's model learned the trigger, and took more than {100 * _TAKEN:.0f} % of such images for the attackers' class, in "
        f"{len(learned)} of {len(ours)} pairs of federation and trigger with no more hostile hospitals than claimed "
        f"([table](#triggers)). Of these {len(learned)}, the model learned it under {others}."
    )


def _within_claim(studies: Mapping[str, Any]) -> list[Cell]:
    """Those with a released model, of no more hostile hospitals than MATL claims to stand."""
    return [
        c
        for c in trigger_cells(studies)
        if "backdoor_success" in c and c["hostile"] <= claimed(c["members"])
    ]


def _has_learned(cell: Cell) -> bool:
    return bool(cell["backdoor_success"]["mean"] > _TAKEN)


def what_trust_sees(studies: Mapping[str, Any]) -> str:
    """Said of MATL with no more hostile hospitals than it claims, with noise and without."""
    ours = where(_within_claim(studies), arm=ArmName.MATL)
    if not ours:
        return "Under triggers nothing was run yet."
    said = []
    for epsilon in ("inf", "1"):
        own = where(ours, epsilon=epsilon)
        if not own:
            continue
        worst = max(own, key=lambda c: c["backdoor_success"]["mean"])
        said.append(
            f"{'Without noise' if epsilon == 'inf' else f'At ε = {epsilon}'} MATL's model at worst took "
            f"{percent(worst, 'backdoor_success')} of the images with a trigger for the attackers' class, "
            f"at {shown(worst, 'accuracy_percent', 1)} % accuracy, and "
            f"{percent(worst, 'hostile_excluded')} of the trigger's authors were excluded "
            f"(`{worst['attack']}`, {place(worst)})."
        )
    return " ".join(said)
