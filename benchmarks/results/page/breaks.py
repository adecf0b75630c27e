# ruff: noqa: E501  # The page's own lines.
"""Where it breaks, each sentence with the cells that say so, or with the word *expected*."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final

from benchmarks.results.page.attackers import BROKEN_POINTS, UPDATES_ALONE, is_broken, worst_of
from benchmarks.results.page.cells import (
    claimed,
    difference,
    federation_words,
    figures,
    gap_of,
    lost_without_attackers,
    of_kind,
    place,
    waited,
    where,
    with_gap,
)
from benchmarks.results.page.curves import whole_federations
from benchmarks.results.page.markdown import (
    Cell,
    counted,
    epsilon_words,
    number,
    shown,
)
from benchmarks.results.page.minority import found_of_bias, found_of_grade
from benchmarks.results.page.takeover import takeover
from benchmarks.results.page.targets import TARGET_CLAIMED, targeted
from benchmarks.results.page.triggers import what_rules_resist, what_trust_sees
from benchmarks.results.page.tuned import long_steps
from benchmarks.results.page.verdicts import MOST_ROUNDS
from benchmarks.results.page.worst_off import worst_off_words
from matl.simulation.study import NO_ATTACK, ArmName
from matl_common.modes import MATLMode

_STRONGER: Final = {
    "leaked_root": "has the holdout set's gradient at the base model",
    "within_classes": "is honest within what the gradients of the classes span at both ends of the round's step, by the attackers' own patients, and gains the holdout set as much as an honest hospital does",
    "within_training": "does the same, and leaves its own update as it is in what training on all classes alike gives on its own patients: what the coordinator compares with",
    "sleeper": "has earned trust when it turns, in a round that was fixed before",
    "slow_reversal": "drifts so slowly that each round still helps",
    "slow_reversal_5": "drifts two and a half times as fast",
    "optimal_ipm": "knows the rule",
}
_NAMED: Final = 5
"""Attacks of a federation that are named; others are counted."""
_RULES: Final = (ArmName.MEAN, *UPDATES_ALONE, ArmName.FLTRUST)


def breaks(studies: Mapping[str, Any]) -> str:
    """The list."""
    robust, unseen = of_kind(studies, "robust"), of_kind(studies, "unseen")
    cells, others = (
        [cell for study in kind.values() for cell in study["cells"]] for kind in (robust, unseen)
    )
    items = [
        f"**MATL beyond its target, at the share that it claims.** {_beyond(robust)}",
        f"**The same on [other seeds and other images](#other-seeds-and-other-images).** {_beyond(unseen)}",
        f"**One hospital pays for all.** A mean over classes hides what an attack on few of them costs the hospital whose patients they are. {worst_off_words(studies)}",
        f"**Rules without trust.** {_rules(cells)}",
        f"**FLTrust follows the holdout set alone**, and keeps no trust. {_beside_fltrust({**robust, **unseen})}",
        f"**MODE0 within its claim**, a fifth of the hospitals less one. {_mode0_within(cells)}",
        f"**MODE0 beyond its claim.** {_mode0(cells)}",
        f"**Triggers.** A trigger moves the model only where the holdout set has no image, so that accuracy on it says little. {what_trust_sees(studies)} {what_rules_resist(studies)}",
        f"**A stronger attacker** than these could combine what each of some has alone. What those cost MATL at worst with no more of them than it claims: {_stronger(cells)}. *Knows the rule* is said of rules without trust: no attack that was run looks at its own trust, or chooses by it when to turn.",
        f"**The holdout set's bias is the coordinator's.** Trust asks whether an update helps the holdout set: a hospital whose patients it lacks can help it less, and count less, though it is honest. {found_of_bias(studies)} Balance the holdout set over sites, not over classes alone.",
        f"**A grade that one hospital alone has.** {found_of_grade(studies)}",
        f"**Long steps read as harm.** Where a step is so long that a hospital overshoots its own patients, an honest update harms the holdout set before the round's step is over, and the hospital is excluded. Longest exclusion of an honest hospital with the recipe chosen for accuracy: {long_steps(studies) or 'not run'}. Use steps that each hospital's own loss survives.",
        "**The cap on sizes costs accuracy where few hospitals differ in classes.** Enrolled sizes are capped so that f hospitals never hold half of the weight while all the others count, which takes say from the largest; where trust leaves honest hospitals out they may hold it all the same (*takeover*, below). *Honest hospitals alone* have the same cap: where that row is below FedAvg by size, it is the cap's price and not the attacker's.",
        f"**Honest hospitals that wait** more than two rounds, held rounds included, with no more hostile ones than MATL claims: {_waiting(cells)}. On other seeds and images: {_waiting(others) or 'not run'}. With more of them they wait longer; every federation's longest is in table 2.",
        f"**Held rounds.** Too few sound updates and a round is held: the model stays as it was, which is the attackers' gain where they want no study at all. {_held(cells)}",
        f"**More than half hostile** is beyond what the mode claims (45 %). The rows with 60 % show what happens, not what is promised. {takeover(studies)}",
    ]
    return "\n## Where it breaks\n\n" + "\n".join(f"- {item}" for item in items)


def _beyond(studies: Mapping[str, Any]) -> str:
    """Which attacks cost MATL more than it promises, federation by federation."""
    said, run = [], []
    for own, target, asked in targeted(studies):
        if target != TARGET_CLAIMED:
            continue
        run.append(f"{len(own)}" if asked is None else f"{len(own)} of {asked}")
        over = sorted((c for c in own if gap_of(c) > target), key=gap_of, reverse=True)
        if over:
            named = ", ".join(
                f"`{c['attack']}` {shown(c, 'below_oracle_points', 1)}" for c in over[:_NAMED]
            )
            more = f" and {len(over) - _NAMED} more" if len(over) > _NAMED else ""
            said.append(f"{federation_words(over[0])}: {named}{more}")
    if not run:
        return "Not run yet."
    if said:
        return f"Points below the honest hospitals alone, of the attacks that cost more than {TARGET_CLAIMED:.0f} by the mean: {'; '.join(said)}."
    return (
        f"No attack that was run cost more than {TARGET_CLAIMED:.0f} point ({', '.join(run)} attacks; "
        "seeds and verdicts are in the tables)."
    )


def _rules(cells: Sequence[Cell]) -> str:
    broken, whole = [], []
    # Every rule is held against what it loses without an attacker.
    without = where(cells, attack=NO_ATTACK)
    for rule in _RULES:
        own = [
            c
            for c in with_gap(where(cells, arm=rule))
            if c["attack"] != NO_ATTACK and c["hostile"] <= claimed(c["members"])
        ]
        worst = max((c for c in own if is_broken(without, c)), key=gap_of, default=None)
        if worst is not None:
            calm = lost_without_attackers(without, worst) or 0.0
            broken.append(
                f"{rule} {number(gap_of(worst), 1)}, and {number(calm, 1)} without an attacker (`{worst['attack']}`, {place(worst)})"
            )
        elif own:
            whole.append(f"{rule} ({counted(len(own), 'pair')} of federation and attack)")
    if not broken and not whole:
        return "Not run yet."
    unbroken = f" Not broken by what was run: {', '.join(whole)}." if whole else ""
    return (
        f"An attack broke a rule where it cost more than {BROKEN_POINTS:.0f} points beyond what the rule loses "
        "without one. With no more hostile hospitals than MATL claims, the worst of each rule, points below the honest "
        f"hospitals alone: {'; '.join(broken) or 'none'}.{unbroken} {_own_price(cells)}Distance rules (Krum, "
        "Multi-Krum, Bulyan) need more updates than 45 % leaves them and then run with a smaller f than there are attackers."
    )


def _beside_fltrust(studies: Mapping[str, Any]) -> str:
    """Each under its own worst attack, where both met all attacks; seed by seed."""
    by_kind: dict[str, list[str]] = {}
    for each in chain.from_iterable(whole_federations(studies).values()):
        arms = [where(each.cells, arm=arm) for arm in (ArmName.MATL, ArmName.FLTRUST)]
        if each.hostile and all(arms):
            ours, theirs = (worst_of(cells) for cells in arms)
            kind = f"{each.members} hospitals, {ours['data']}"
            by_kind.setdefault(kind, []).append(_better(ours, theirs))
    if not by_kind:
        return "Not run yet under all attacks, with enough seeds."
    counts = "; ".join(
        f"{kind}: MATL loses less in {found.count('ours')}, FLTrust in {found.count('theirs')}, and in {found.count('')} five seeds do not tell"
        for kind, found in by_kind.items()
    )
    return f"Federations in which each rule met its own worst attack, compared seed by seed (the interval of the difference is on one side of 0): {counts}."


def _better(ours: Cell, theirs: Cell) -> str:
    """Whose worst attack costs less, if that is sure."""
    more = difference(theirs, ours, "below_oracle_points")
    if more is None or more.half_width is None or abs(more.mean) <= more.half_width:
        return ""
    return "ours" if more.mean > 0 else "theirs"


def _own_price(cells: Sequence[Cell]) -> str:
    """What is no attacker's doing."""
    worst = _worst_of_each(
        c for c in with_gap(where(cells, attack=NO_ATTACK)) if c["arm"] in _RULES
    )
    costly = [c for c in worst if gap_of(c) > TARGET_CLAIMED]
    if not costly:
        return ""
    named = ", ".join(f"{c['arm']} {number(gap_of(c), 1)} ({federation_words(c)})" for c in costly)
    return f"Without any attacker some lose points too, which is the rule's own price: {named}. "


def _worst_of_each(cells: Iterable[Cell]) -> list[Cell]:
    worst: dict[str, Cell] = {}
    for cell in cells:
        before = worst.setdefault(cell["arm"], cell)
        worst[cell["arm"]] = max(before, cell, key=gap_of)
    return list(worst.values())


def _mode0(cells: Sequence[Cell]) -> str:
    text = (
        "Without a holdout set nothing tells nine coordinated hospitals of twenty from eleven honest ones whose "
        "patients differ; it says so at start."
    )
    known = [
        c
        for c in with_gap(where(cells, arm=ArmName.MATL_PEERS))
        if c["hostile"] > claimed(c["members"], MATLMode.MODE0)
    ]
    if not known:
        return f"{text} Beyond its claim it was not run yet."
    worst = max(known, key=gap_of)
    return (
        f"{text} At worst {number(gap_of(worst), 1)} points (`{worst['attack']}`, {place(worst)})."
    )


def _mode0_within(cells: Sequence[Cell]) -> str:
    own = [
        c
        for c in with_gap(where(cells, arm=ArmName.MATL_PEERS))
        if 0 < c["hostile"] <= claimed(c["members"], MATLMode.MODE0)
    ]
    if not own:
        return "Not run yet."
    over = sorted((c for c in own if gap_of(c) > TARGET_CLAIMED), key=gap_of, reverse=True)
    named = "; ".join(
        f"`{c['attack']}` {shown(c, 'below_oracle_points', 1)} ({federation_words(c)})"
        for c in over
    )
    return f"Points below the honest hospitals alone, of every attack that cost more than {TARGET_CLAIMED:.0f}: {named or 'none'}."


def _stronger(cells: Sequence[Cell]) -> str:
    said = []
    for attack, does in _STRONGER.items():
        own = [
            c
            for c in with_gap(where(cells, arm=ArmName.MATL, attack=attack))
            if c["hostile"] <= claimed(c["members"])
        ]
        worst = max(own, key=gap_of, default=None)
        cost = "not run" if worst is None else f"{number(gap_of(worst), 1)} points ({place(worst)})"
        said.append(f"`{attack}` {does}: {cost}")
    return "; ".join(said)


def _waiting(cells: Sequence[Cell]) -> str:
    ours = [c for c in where(cells, arm=ArmName.MATL) if c["hostile"] <= claimed(c["members"])]
    return "; ".join(
        f"{epsilon_words(epsilon)}: in {_rounds(where(ours, epsilon=epsilon), waited, MOST_ROUNDS)}"
        for epsilon in dict.fromkeys(c["epsilon"] for c in ours)
    )


def _held(cells: Sequence[Cell]) -> str:
    ours = where(cells, arm=ArmName.MATL)
    within = [c for c in ours if c["hostile"] <= claimed(c["members"])]
    beyond = [c for c in ours if c["hostile"] > claimed(c["members"])]
    return (
        f"MATL held some with no more hostile hospitals than it claims in {_rounds(within, _most_held, 0)}; "
        f"with more of them in {_rounds(beyond, _most_held, 0)}."
    )


def _most_held(cell: Cell) -> float:
    return max(figures(cell, "held_rounds"), default=0.0)


def _rounds(cells: Sequence[Cell], of: Callable[[Cell], float], over: float) -> str:
    """How many federations, each under an attack or none, lost more rounds than that, and most."""
    found = [c for c in cells if of(c) > over]
    text = f"{len(found)} of {len(cells)} pairs of federation and attack"
    if not found:
        return text
    worst = max(found, key=of)
    return (
        f"{text}, at most {of(worst):.0f} rounds (`{worst['attack']}`, {federation_words(worst)})"
    )
