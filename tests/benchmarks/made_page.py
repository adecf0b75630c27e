"""A page of made-up cells."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.results.page import evidence_page

Cell = dict[str, Any]


def spread(values: Sequence[float | None], half_width: float = 0.1) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    width = half_width if len(known) > 1 else None
    return {"mean": sum(known) / len(known), "half_width": width, "runs": len(known)}


def cell(attack: str, gap: float, *, arm: str = "matl", seeds: int = 5, **more: Any) -> Cell:
    """At ε = 1, 9 of 20 hostile, without incident; a list among ``more`` has one figure a seed."""
    calm: dict[str, list[float | None]] = {
        "accuracy_percent": [80.0 - gap] * seeds,
        "honest_weightless": [0.0] * seeds,
        "honest_excluded": [0.0] * seeds,
        "longest_honest_exclusion_rounds": [0.0] * seeds,
        "held_rounds": [0.0] * seeds,
    }
    measured = calm | {name: value for name, value in more.items() if isinstance(value, list)}
    found: Cell = {
        "data": "fashion",
        "members": 20,
        "hostile": 0 if attack == "none" else 9,
        "mix": "dirichlet-0.5",
        "epsilon": "1",
        "attack": attack,
        "arm": arm,
        "seeds": list(range(seeds)),
        "below_oracle_points": spread([gap] * seeds),
        "measurements": measured,
        "gaps": {"below_oracle_points": [gap] * seeds},
    }
    found |= {name: spread(values) for name, values in measured.items()}
    return found | {name: value for name, value in more.items() if not isinstance(value, list)}


def page(
    cells: Sequence[Cell] = (), *, name: str = "robust-n20-eps1", summary: Any = None, **study: Any
) -> str:
    return page_of({name: {"cells": list(cells)} | study} if cells else {}, summary=summary)


def page_of(studies: Mapping[str, Mapping[str, Any]], *, summary: Any = None) -> str:
    """Of several studies, each with its cells and what else is to be said of it."""
    runs = {"asked_runs": 9, "finished_runs": 9}
    return evidence_page(
        {
            "machine": {"cpu": "x", "cores": 2, "memory_gb": 24.0},
            "date": "2026-11-29",
            "command": "x",
            "summary": summary or {},
            "studies": {name: {**runs, **study} for name, study in studies.items()},
        }
    )


def line(text: str, start: str) -> str:
    (found,) = [each for each in text.splitlines() if each.startswith(start)]
    return found


def exclusions(text: str) -> str:
    """The one table of whom MATL left without a say."""
    (_, found) = text.split("\nMATL (MODE1):\n\n")
    return found.split("\n\n")[0]
