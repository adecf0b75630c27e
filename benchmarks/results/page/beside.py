# ruff: noqa: E501  # The page's own lines.
"""Table 2 again with one thing changed: MATL's rows of both, side by side."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from benchmarks.results.page.attackers import most, worst_words
from benchmarks.results.page.cells import (
    cells_of_study,
    federation,
    gap_of,
    seed_counts,
    share,
    where,
    with_gap,
)
from benchmarks.results.page.markdown import Cell, epsilon_words, mix_words, number, table
from benchmarks.results.page.targets import targeted
from benchmarks.results.page.verdicts import seeds_beyond, verdict_on_attacks
from matl.simulation.study import ArmName

BESIDE: Final = """Points below the honest hospitals alone: the mean is over the attacks that were run on
both, an attack that costs nothing as 0 (attackers who are let in with sound updates bring patients whom the honest alone lack);
empty where table 2's are of other code. The longest that an honest hospital was without a say, in rounds, held ones too."""

_REPEATED: Final = ("n20-eps1", "n20", "n5-eps1", "n5")
"""Studies of table 2, by what follows their kind."""


def beside_table(studies: Mapping[str, Any], kind: str) -> str:
    """Every federation that a target is for; empty where nothing was run.

    Args:
        studies: all that are published.
        kind: what the names of the studies that repeat table 2's begin with.
    """
    rows = [
        row
        for each in _REPEATED
        if f"{kind}-{each}" in studies
        for row in _beside(studies, f"{kind}-{each}", f"robust-{each}")
    ]
    header = ["hostile", "ε", "classes", "attacks run", "seeds", "target, points"]
    header += [
        "mean of the attacks, table 2",
        "here",
        "worst, table 2",
        "here",
        "verdict here",
        "runs beyond it here, and the worst",
    ]
    header += ["longest wait, table 2", "here"]
    return table(header, rows) if rows else ""


def _beside(studies: Mapping[str, Any], name: str, seen: str) -> list[list[str]]:
    """Rows of a study beside those of table 2, where these are of the same code."""
    is_same = studies[name].get("code") == studies.get(seen, {}).get("code")
    before = where(cells_of_study(studies, seen), arm=ArmName.MATL)
    rows = []
    for own, target, asked in targeted({name: studies[name]}):
        there = {c["attack"]: c for c in with_gap(where(before, **federation(own[0])))}
        both = [c for c in own if is_same and c["attack"] in there]
        same = [there[c["attack"]] for c in both]
        rows.append(
            [
                share(own[0]),
                epsilon_words(own[0]["epsilon"]),
                mix_words(own[0]["mix"]),
                f"{len(own)}" if asked is None else f"{len(own)} of {asked}",
                seed_counts(own),
                f"{target:.0f}",
                *(_mean(found) for found in (same, both or own)),
                *(worst_words(found, attacks=len(found)) for found in (same, own)),
                verdict_on_attacks(own, target, asked=asked).words,
                seeds_beyond(own, target),
                *(most(found, "longest_honest_exclusion_rounds") for found in (same, own)),
            ]
        )
    return rows


def _mean(cells: Sequence[Cell]) -> str:
    return number(fmean(max(gap_of(c), 0.0) for c in cells), 2) if cells else ""
