"""How figures and names are written on the page."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Cell = Mapping[str, Any]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def number(value: float, digits: int) -> str:
    """With so many digits, and no sign before a nought."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def interval_text(found: Mapping[str, Any], digits: int) -> str:
    """A mean with its interval; without one where there is one run only."""
    width = found["half_width"]
    return number(found["mean"], digits) + ("" if width is None else f" ± {width:.{digits}f}")


def shown(cell: Cell, name: str, digits: int) -> str:
    """A figure of a cell; empty where it has none."""
    found = cell.get(name)
    return "" if found is None else interval_text(found, digits)


def percent(cell: Cell, name: str) -> str:
    """A share of a cell; empty where it has none."""
    found = cell.get(name)
    return "" if found is None else f"{100 * found['mean']:.0f} %"


def epsilon_words(epsilon: str) -> str:
    """For headings and rows."""
    return f"{noise_words(epsilon)}{' (ε = ∞)' if epsilon == 'inf' else ''}"


def noise_words(epsilon: str) -> str:
    """For plots, whose space is short."""
    return "no noise" if epsilon == "inf" else f"ε = {epsilon}"


def mix_words(mix: str) -> str:
    """How the classes are spread."""
    return {"iid": "iid", "sites": "by site"}.get(mix, mix.replace("dirichlet-", "α = "))


def counted(number: int, what: str) -> str:
    """As in ``1 seed`` and ``2 seeds``."""
    return f"{number} {what}{'' if number == 1 else 's'}"
