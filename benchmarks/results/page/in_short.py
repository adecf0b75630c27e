# ruff: noqa: E501  # The page's own lines.
"""What the page says, for whom has two minutes."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.results.page.attackers import (
    TARGET_CLAIMED,
    targeted,
    worst_of,
    worst_words,
)
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
from benchmarks.results.page.tutorial import measured
from benchmarks.results.page.verdicts import is_surely_over
from matl.simulation.study import NO_ATTACK, ArmName

_UPDATES_ALONE: Final = (
    ArmName.MEDIAN,
    ArmName.TRIMMED_MEAN,
    ArmName.KRUM,
    ArmName.MULTI_KRUM,
    ArmName.BULYAN,
    ArmName.NNM_GM,
)
"""Robust rules that have nothing but the updates."""


def in_short(studies: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The section; empty where nothing was run."""
    robust = of_kind(studies, "robust")
    claimed = [(own, asked) for own, target, asked in targeted(robust) if target == TARGET_CLAIMED]
    parts = [part for part in (_tutorial(summary), _attackers(robust, claimed)) if part]
    return "\n\n".join(["## In short", *parts]) if parts else ""


def _tutorial(summary: Mapping[str, Any]) -> str:
    found = measured(summary)
    if not found:
        return ""
    means = [each.gap["mean"] for each in found]
    met = sum(each.verdict == "met" for each in found)
    missed = sum("missed" in each.verdict for each in found)
    return (
        "**One hospital that mislabels** ([table 1](#table-1-the-tutorials)): MATL is "
        f"{number(min(means), 2)} to {number(max(means), 2)} points below centralised training on true labels, over "
        f"{counted(len(found), 'setting')} of data, recipe and ε. Targets met: {met} of {len(found)}; within, though not "
        f"surely: {len(found) - met - missed}; missed: {missed}."
    )


def _attackers(
    robust: Mapping[str, Any], claimed: Sequence[tuple[Sequence[Cell], int | None]]
) -> str:
    if not claimed:
        return ""
    cells = with_gap(cell for study in robust.values() for cell in study["cells"])
    rows = [_row(cells, own, asked) for own, asked in claimed]
    header = ["hostile", "ε", "classes", "seeds", "MATL", "FLTrust", "best on updates alone"]
    header += ["FedAvg, by size", "attacks that cost MATL more than a point"]
    ours = [cell for own, _ in claimed for cell in own]
    within = sum(gap_of(cell) <= TARGET_CLAIMED for cell in ours)
    return f"""**As many hostile hospitals as MATL claims to stand** ([table 2](#table-2-attackers)): points of accuracy below the honest
hospitals alone, under the worst attack of all that were run on each rule. *Best on updates alone* is the one of the median, the
trimmed mean, Krum, Multi-Krum, Bulyan and NNM with the geometric median that loses least; MATL and FLTrust have 500
clean images besides, and MATL class mixes.

{table(header, rows)}

The target, at most {TARGET_CLAIMED:.0f} point under every attack, is kept under {within} of {counted(len(ours), "attack")} on these federations, by the mean;
{_worst(claimed)}. What costs more, who waits though honest, and what was not measured: [where it breaks](#where-it-breaks)."""


def _row(cells: Sequence[Cell], own: Sequence[Cell], asked: int | None) -> list[str]:
    first = own[0]
    beside = [c for c in where(cells, **federation(first)) if c["attack"] != NO_ATTACK]
    attacks = len(own) if asked is None else asked
    over = [c for c in own if gap_of(c) > TARGET_CLAIMED]
    surely = [c for c in over if is_surely_over(c, TARGET_CLAIMED)]
    return [
        share(first),
        epsilon_words(first["epsilon"]),
        mix_words(first["mix"]),
        seed_counts(own),
        worst_words(own, attacks=attacks),
        worst_words(where(beside, arm=ArmName.FLTRUST), attacks=attacks),
        _best(beside, attacks),
        worst_words(where(beside, arm=ArmName.MEAN), attacks=attacks),
        f"{len(over)} of {len(own)}, {len(surely)} surely",
    ]


def _best(beside: Sequence[Cell], attacks: int) -> str:
    """The rule that its own worst attack costs least, of those run under all attacks."""
    of_each = [where(beside, arm=arm) for arm in _UPDATES_ALONE]
    whole = [own for own in of_each if len(own) == attacks]
    if not whole:
        return ""
    best = min(whole, key=lambda own: gap_of(worst_of(own)))
    return f"{best[0]['arm']} {worst_words(best, attacks=attacks)}"


def _worst(claimed: Sequence[tuple[Sequence[Cell], int | None]]) -> str:
    worst = max((worst_of(own) for own, _ in claimed), key=gap_of)
    return f"the worst is {shown(worst, 'below_oracle_points', 1)} (`{worst['attack']}`, {place(worst)})"
