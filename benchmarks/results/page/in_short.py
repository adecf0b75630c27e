# ruff: noqa: E501  # The page's own lines.
"""What the page says, for whom has two minutes."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.results.page.attackers import best_on_updates_alone, worst_of, worst_words
from benchmarks.results.page.cells import (
    federation,
    gap_of,
    of_kind,
    place,
    seed_counts,
    share,
    where,
    with_gap,
)
from benchmarks.results.page.markdown import (
    Cell,
    counted,
    epsilon_words,
    mix_words,
    number,
    shown,
    table,
)
from benchmarks.results.page.minority import found_of_grade
from benchmarks.results.page.targets import TARGET_60, TARGET_CLAIMED, targeted
from benchmarks.results.page.triggers import what_rules_resist
from benchmarks.results.page.tutorial import beside_fedavg, measured
from benchmarks.results.page.verdicts import Decided, seeds_beyond, tally, verdict_on_attacks
from benchmarks.results.page.worst_off import worst_off_words
from matl.simulation.study import NO_ATTACK, ArmName

_Federation = tuple[Sequence[Cell], int | None]
"""MATL under every attack that was run, and how many were asked for."""


def in_short(studies: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The section; empty where nothing was run."""
    parts = [part for part in (_tutorial(studies, summary), _attackers(studies)) if part]
    return "\n\n".join(["## In short", *parts]) if parts else ""


def _tutorial(studies: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    found = measured(summary)
    if not found:
        return ""
    means = [each.gap["mean"] for each in found]
    return (
        "**One hospital that mislabels** ([table 1](#table-1-the-tutorials)). MATL is "
        f"{number(min(means), 2)} to {number(max(means), 2)} points below centralised training on true labels, over "
        f"{counted(len(found), 'setting')} of data, recipe and ε. Targets: {tally(each.verdict for each in found)}. {beside_fedavg(studies)}"
    )


def _attackers(studies: Mapping[str, Any]) -> str:
    robust = of_kind(studies, "robust")
    claimed = _federations(robust, TARGET_CLAIMED)
    if not claimed:
        return ""
    cells = with_gap(cell for study in robust.values() for cell in study["cells"])
    rows = [_row(cells, own, asked) for own, asked in claimed]
    header = ["hostile", "ε", "classes", "seeds", "MATL", "FLTrust", "best on updates alone"]
    header += ["FedAvg, by size", "MATL's runs beyond a point, and the worst"]
    ours = [cell for own, _ in claimed for cell in own]
    within = sum(gap_of(cell) <= TARGET_CLAIMED for cell in ours)
    return f"""**As many hostile hospitals as MATL claims to stand** ([table 2](#table-2-attackers)): points of accuracy below the honest
hospitals alone, under the worst attack of all that were run on each rule. *Best on updates alone* is the one of the median, the
trimmed mean, Krum, Multi-Krum, Bulyan and NNM with the geometric median that loses least; MATL and FLTrust have 500
clean images besides, and MATL class mixes.

{table(header, rows)}

The target is at most {TARGET_CLAIMED:.0f} point under every attack. By the mean that is kept under {within} of these {counted(len(ours), "attack")}; the
worst is {_worst(claimed)}. By federation:

{_verdicts(studies)}

**What one hospital loses, and triggers, that accuracy does not show.** {worst_off_words(studies)} {what_rules_resist(studies)} {found_of_grade(studies)}

Which attacks those are, what beats MATL, who waits though honest, what triggers do and what nobody measured: [where it breaks](#where-it-breaks)."""


def _federations(studies: Mapping[str, Any], wanted: float) -> list[_Federation]:
    return [(own, asked) for own, target, asked in targeted(studies) if target == wanted]


def _verdicts(studies: Mapping[str, Any]) -> str:
    """How many federations met their target, of each kind of study."""
    unseen = of_kind(studies, "unseen")
    images = {name: study for name, study in unseen.items() if "fundus" in name}
    seeds = {name: study for name, study in unseen.items() if name not in images}
    kinds = {
        "table 2, as many as claimed": (of_kind(studies, "robust"), TARGET_CLAIMED),
        "the same on other seeds": (seeds, TARGET_CLAIMED),
        "the same on other images": (images, TARGET_CLAIMED),
        "table 2, 60 % hostile, which is beyond the claim": (of_kind(studies, "robust"), TARGET_60),
    }
    rows = []
    for words, (found, target) in kinds.items():
        judged = [
            verdict_on_attacks(own, target, asked=asked)
            for own, asked in _federations(found, target)
        ]
        if judged:
            counts = [sum(v.decided is each for v in judged) for each in Decided]
            rows.append([words, f"{target:.0f}", *map(str, counts)])
    return table(["federations", "points", *(each.value for each in Decided)], rows)


def _row(cells: Sequence[Cell], own: Sequence[Cell], asked: int | None) -> list[str]:
    first = own[0]
    beside = [c for c in where(cells, **federation(first)) if c["attack"] != NO_ATTACK]
    attacks = len(own) if asked is None else asked
    return [
        share(first),
        epsilon_words(first["epsilon"]),
        mix_words(first["mix"]),
        seed_counts(own),
        worst_words(own, attacks=attacks),
        worst_words(where(beside, arm=ArmName.FLTRUST), attacks=attacks),
        best_on_updates_alone(beside, attacks=attacks),
        worst_words(where(beside, arm=ArmName.MEAN), attacks=attacks),
        seeds_beyond(own, TARGET_CLAIMED),
    ]


def _worst(claimed: Sequence[_Federation]) -> str:
    worst = max((worst_of(own) for own, _ in claimed), key=gap_of)
    return f"{shown(worst, 'below_oracle_points', 1)} (`{worst['attack']}`, {place(worst)})"
