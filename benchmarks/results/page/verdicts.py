"""Whether a target is met, in words that say no more than the runs do.

A gap's own interval is of one attack. That a target is met under every attack takes every interval
within it, as it is. That some attack goes beyond takes the one attack that went furthest, which is
far by chance too the more attacks there are: its interval is widened for as many (Bonferroni).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from scipy import stats

from benchmarks.results.page.cells import ENOUGH_SEEDS, fewest_seeds, figures, gap_of, waited
from benchmarks.results.page.markdown import Cell, counted, shown

MOST_ROUNDS: Final = 2.0
_CONFIDENCE: Final = 0.95
_NAMED: Final = 3
"""Attacks that a verdict names; it counts the others."""


class Decided(StrEnum):
    """How sure a verdict is."""

    MET = "met"
    WITHIN = "not decided: within the target by the mean"
    BEYOND = "not decided: beyond the target by the mean"
    MISSED = "**missed**"
    TOO_FEW = "too few runs"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one target."""

    decided: Decided
    words: str


def verdict_on_gap(gap: Mapping[str, Any], target: float) -> Verdict:
    """On one gap with its interval."""
    mean, width, runs = gap["mean"], gap["half_width"], gap["runs"]
    if width is None:
        return Verdict(Decided.TOO_FEW, "one seed, which settles nothing")
    if mean - width > target:
        return _plain(Decided.MISSED)
    if mean > target:
        return _plain(Decided.BEYOND)
    if mean + width > target:
        return _plain(Decided.WITHIN)
    if runs < ENOUGH_SEEDS:
        return Verdict(Decided.TOO_FEW, f"within the target on {counted(runs, 'seed')}")
    return _plain(Decided.MET)


def verdict_on_attacks(cells: Sequence[Cell], target: float, *, asked: int | None) -> Verdict:
    """On every attack's gap at once.

    Args:
        cells: one for each attack that was run, with its gap.
        target: most points below the honest hospitals alone.
        asked: how many attacks the study asks for; ``None`` where that was not published.
    """
    over = [c for c in cells if gap_of(c) > target]
    sure = [c for c in over if is_surely_over(c, target, of=len(cells))]
    if over:
        unsure = [c for c in over if c not in sure]
        by_mean = f"by the mean under {_named(unsure)}"
        if not sure:
            return Verdict(Decided.BEYOND, f"not decided: beyond the target {by_mean}")
        also = f"; {by_mean}" if unsure else ""
        return Verdict(Decided.MISSED, f"{Decided.MISSED} under {_named(sure)}{also}")
    seeds = fewest_seeds(cells)
    if seeds < ENOUGH_SEEDS or asked is None or len(cells) < asked:
        run = f"{len(cells)} of {asked}" if asked is not None else f"{len(cells)}"
        said = f"within the target on {counted(seeds, 'seed')}, under {run} attacks"
        return Verdict(Decided.TOO_FEW, said)
    across = [c for c in cells if gap_of(c) + _half_width(c) > target]
    if across:
        said = f"{Decided.WITHIN}; the interval reaches across under {_named(across)}"
        return Verdict(Decided.WITHIN, said)
    return _plain(Decided.MET)


def verdict_on_waiting(cells: Sequence[Cell], *, asked: int | None) -> Verdict:
    """On the longest that an honest hospital was without a say, under every attack."""
    over = sorted((c for c in cells if waited(c) > MOST_ROUNDS), key=waited, reverse=True)
    if over:
        named = _listed(over, lambda c: f"{c['attack']} ({waited(c):.0f})")
        return Verdict(Decided.MISSED, f"{Decided.MISSED} under {named}")
    seeds = fewest_seeds(cells)
    if seeds < ENOUGH_SEEDS or asked is None or len(cells) < asked:
        said = f"none waited longer, on {counted(seeds, 'seed')}"
        return Verdict(Decided.TOO_FEW, said)
    return _plain(Decided.MET)


def tally(verdicts: Iterable[Verdict]) -> str:
    """How many there are of each kind."""
    decided = [each.decided for each in verdicts]
    return ", ".join(f"{decided.count(each)} {each.value}" for each in Decided if each in decided)


def is_surely_over(cell: Cell, target: float, *, of: int) -> bool:
    """Whether the interval of its gap, widened for the ``of`` attacks it is one of, is above."""
    width = _half_width(cell)
    if not math.isfinite(width):
        return False
    freedom = cell["below_oracle_points"]["runs"] - 1
    missed = (1.0 - _CONFIDENCE) / 2.0
    widened = stats.t.isf(missed / of, freedom) / stats.t.isf(missed, freedom)
    return gap_of(cell) - width * float(widened) > target


def seeds_beyond(cells: Sequence[Cell], target: float) -> str:
    """How many single runs went beyond the target, and the one that went furthest."""
    runs = [(gap, c) for c in cells for gap in figures(c, "below_oracle_points")]
    beyond = sum(gap > target for gap, _ in runs)
    worst, cell = max(runs, key=lambda run: run[0])
    return f"{beyond} of {len(runs)}, {worst:.1f} ({cell['attack']})"


def _plain(decided: Decided) -> Verdict:
    return Verdict(decided, decided.value)


def _named(cells: Sequence[Cell]) -> str:
    ordered = sorted(cells, key=gap_of, reverse=True)
    return _listed(ordered, lambda c: f"{c['attack']} ({shown(c, 'below_oracle_points', 1)})")


def _listed(cells: Sequence[Cell], words: Callable[[Cell], str]) -> str:
    """The first few, and how many more."""
    more = len(cells) - _NAMED
    return ", ".join(map(words, cells[:_NAMED])) + (f" and {more} more" if more > 0 else "")


def _half_width(cell: Cell) -> float:
    """Of its gap; infinite for one seed, which has no interval."""
    width = cell["below_oracle_points"]["half_width"]
    return math.inf if width is None else float(width)
