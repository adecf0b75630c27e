"""Whether a target is met, in words that say no more than the runs do."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.results.page.cells import (
    ENOUGH_SEEDS,
    fewest_seeds,
    gap_of,
    waited,
)
from benchmarks.results.page.markdown import Cell, counted, shown

MOST_ROUNDS: Final = 2.0


def verdict_on_gap(gap: Mapping[str, Any], target: float) -> str:
    """On one gap with its interval."""
    mean, width, runs = gap["mean"], gap["half_width"], gap["runs"]
    if width is None:
        return "one seed, which settles nothing"
    if mean - width > target:
        return "**missed**"
    if mean > target:
        return "**missed** by the mean, though the interval reaches across the target"
    if mean + width > target:
        return "met by the mean, and the interval reaches across the target"
    return "met" if runs >= ENOUGH_SEEDS else f"within the target on {counted(runs, 'seed')}"


def verdict_on_attacks(cells: Sequence[Cell], target: float, *, asked: int | None) -> str:
    """On every attack's gap at once.

    Args:
        cells: one for each attack that was run, with its gap.
        target: most points below the honest hospitals alone.
        asked: how many attacks the study asks for; ``None`` where that was not published.
    """
    over = [c for c in cells if gap_of(c) > target]
    sure = [c for c in over if is_surely_over(c, target)]
    if over:
        unsure = [c for c in over if c not in sure]
        by_mean = f"by the mean, though the interval reaches across, under {_named(unsure)}"
        if not sure:
            return f"**missed** {by_mean}"
        return f"**missed** under {_named(sure)}" + (f"; {by_mean}" if unsure else "")
    run = f"{len(cells)} of {asked}" if asked is not None else f"{len(cells)}"
    seeds = fewest_seeds(cells)
    if seeds < ENOUGH_SEEDS or asked is None or len(cells) < asked:
        return f"within the target on {counted(seeds, 'seed')}, under {run} attacks"
    across = [c for c in cells if gap_of(c) + _half_width(c) > target]
    return (
        f"met by the mean; the interval reaches across under {_named(across)}" if across else "met"
    )


def verdict_on_waiting(cells: Sequence[Cell], *, asked: int | None) -> str:
    """On the longest that an honest hospital was without a say, under every attack."""
    over = [c for c in cells if waited(c) > MOST_ROUNDS]
    if over:
        return "**missed** under " + ", ".join(f"{c['attack']} ({waited(c):.0f})" for c in over)
    seeds = fewest_seeds(cells)
    if seeds < ENOUGH_SEEDS or asked is None or len(cells) < asked:
        return f"none waited longer, on {counted(seeds, 'seed')}"
    return "met"


def _named(cells: Sequence[Cell]) -> str:
    ordered = sorted(cells, key=gap_of, reverse=True)
    return ", ".join(f"{c['attack']} ({shown(c, 'below_oracle_points', 1)})" for c in ordered)


def is_surely_over(cell: Cell, target: float) -> bool:
    """Whether its whole interval is above the target."""
    return gap_of(cell) - _half_width(cell) > target


def _half_width(cell: Cell) -> float:
    """Of its gap; infinite for one seed, which has no interval."""
    width = cell["below_oracle_points"]["half_width"]
    return math.inf if width is None else float(width)
