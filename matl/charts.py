"""Charts of curves over rounds, laid out once and drawn by whoever has something to draw on.

``line_chart`` makes marks of figures, and ``svg`` draws them for a page; a document draws the same
with a pen of its own. Curves are told apart by colour, by their points' shape, and by the name
at their end. Nothing here knows what the figures mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

# Told apart by everyone (after Okabe and Ito), and dark enough on white.
COLOURS: Final = (
    *("#1f5fbf", "#b4540a", "#0b7a6c", "#8e3fb5", "#8a6d00"),
    *("#c0392b", "#3f5366", "#a3306f"),
)
SHAPES: Final = ("circle", "square", "up", "diamond", "down")
INK, MUTED, GRID = "#1f2933", "#5b6773", "#dde3e8"
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 138.0, 12.0, 36.0
_LABEL_GAP: Final = 15.0
_MOST_TICKS: Final = 8
_LONGEST_NAME: Final = 18


@dataclass(frozen=True, slots=True)
class Stroke:
    """A line through points, in the chart's own units, y down."""

    points: tuple[tuple[float, float], ...]
    colour: str
    width: float
    dash: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of a curve; ``says`` is what it stands for, in words."""

    x: float
    y: float
    colour: str
    shape: str
    says: str


@dataclass(frozen=True, slots=True)
class Text:
    """Words; ``anchor`` is start, middle or end, and ``y`` the base line."""

    x: float
    y: float
    text: str
    colour: str
    size: float
    anchor: str = "start"
    bold: bool = False


Mark = Stroke | Dot | Text


@dataclass(frozen=True, slots=True)
class Chart:
    """What to draw; ``says`` tells the whole in words, for whoever cannot see it."""

    width: float
    height: float
    marks: tuple[Mark, ...]
    says: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A name and its values by round; values that are not finite are left out."""

    name: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Level:
    """A dashed line across the chart, with its name."""

    value: float
    name: str


def line_chart(
    curves: Sequence[Curve],
    *,
    says: str,
    levels: Sequence[Level] = (),
    top: float = 1.0,
    percent: bool = False,
    width: float = 640.0,
    height: float = 270.0,
) -> Chart:
    """Lay a chart out.

    Args:
        curves: at most a few; of nine or more, colours repeat.
        says: what the chart shows, in a sentence.
        levels: bounds to compare with.
        top: the largest value that is sure to fit; 0 is the smallest, or less where a value is.
        percent: whether values are shares of 1.
        width: of the whole chart.
        height: of the whole chart.
    """
    finite = [Curve(each.name, tuple(_finite(each.points))) for each in curves]
    values = [value for curve in finite for _, value in curve.points]
    rounds = [number for curve in finite for number, _ in curve.points] or [1]
    frame = _Frame(
        first=min(rounds),
        last=max(*rounds, min(rounds) + 1),
        low=min([0.0, *values]),
        high=max([top, *values]),
        width=width,
        height=height,
    )
    marks: list[Mark] = [*_grid(frame, percent=percent), *_round_numbers(frame, set(rounds))]
    for number, curve in enumerate(finite):
        same = sum(each.points == curve.points for each in finite[:number])
        marks += _drawn(curve, frame, number, over=same, percent=percent)
    for level in levels:
        y = frame.y(level.value)
        marks.append(Stroke(((_LEFT, y), (width - _RIGHT, y)), MUTED, 1.2, (5.0, 4.0)))
        marks.append(Text(width - _RIGHT - 6.0, y - 5.0, level.name, MUTED, 11.0, "end"))
    marks += _names(finite, frame)
    return Chart(
        width, height, tuple(marks), f"{says} {_in_words(finite, percent=percent)}".strip()
    )


@dataclass(frozen=True, slots=True)
class _Frame:
    first: int
    last: int
    low: float
    high: float
    width: float
    height: float

    def x(self, number: int) -> float:
        share = (number - self.first) / (self.last - self.first)
        return _LEFT + 10.0 + share * (self.width - _LEFT - _RIGHT - 20.0)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM)


def _finite(points: Iterable[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    return ((number, value) for number, value in points if math.isfinite(value))


def _grid(frame: _Frame, *, percent: bool) -> Iterator[Mark]:
    step = _round_step((frame.high - frame.low) / 5.0)
    value = math.ceil(frame.low / step - 1e-9) * step
    while value <= frame.high + step * 1e-6:
        y = frame.y(value)
        yield Stroke(((_LEFT, y), (frame.width - _RIGHT, y)), GRID, 1.0)
        label = f"{value:.0%}" if percent else f"{value:.3g}"
        yield Text(_LEFT - 8.0, y + 4.0, label, MUTED, 11.0, "end")
        value += step


def _round_step(step: float) -> float:
    size = 10.0 ** math.floor(math.log10(step))
    return next(each * size for each in (1.0, 2.0, 2.5, 5.0, 10.0) if each * size >= step * 0.999)


def _round_numbers(frame: _Frame, rounds: set[int]) -> Iterator[Mark]:
    every = max(1, math.ceil(len(rounds) / _MOST_TICKS))
    base = frame.height - _BOTTOM + 17.0
    for number in sorted(rounds)[::every]:
        yield Text(frame.x(number), base, str(number), MUTED, 11.0, "middle")
    middle = (_LEFT + frame.width - _RIGHT) / 2.0
    yield Text(middle, frame.height - 3.0, "round", MUTED, 11.0, "middle")


def _drawn(curve: Curve, frame: _Frame, number: int, *, over: int, percent: bool) -> Iterator[Mark]:
    colour, shape = COLOURS[number % len(COLOURS)], SHAPES[number % len(SHAPES)]
    places = tuple((frame.x(at), frame.y(value)) for at, value in curve.points)
    if len(places) > 1:
        # Over an equal curve, dashes: that one shows through.
        yield Stroke(places, colour, 2.2, (7.0, 7.0 * over) if over else ())
    for (x, y), (at, value) in zip(places, curve.points, strict=True):
        yield Dot(x, y, colour, shape, f"{curve.name}, round {at}: {_shown(value, percent)}")


def _names(curves: Sequence[Curve], frame: _Frame) -> Iterator[Mark]:
    """Names at the ends of curves, moved apart where they would lie on one another.

    Of more than there is room for, some from the highest to the lowest, and how many are left out.
    """
    ends = sorted(
        (frame.y(curve.points[-1][1]), number, curve.name)
        for number, curve in enumerate(curves)
        if curve.points
    )
    at, floor, room = _TOP + 4.0, frame.height - 4.0, _LABEL_GAP
    most = max(3, int((floor - at) // room) + 1)
    labels = [(y, COLOURS[number % len(COLOURS)], name) for y, number, name in ends]
    if len(labels) > most:
        step = (len(labels) - 1) / (most - 2)
        left_out = len(labels) - most + 1
        labels = [labels[round(each * step)] for each in range(most - 1)]
        labels.append((floor, MUTED, f"and {left_out} more"))
    for place, (y, colour, name) in enumerate(labels):
        left = len(labels) - 1 - place
        at = min(max(y + 4.0, at), floor - left * room)
        yield Text(
            frame.width - _RIGHT + 8.0,
            at,
            name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…",
            colour,
            12.0,
            bold=True,
        )
        at += room


def _shown(value: float, percent: bool) -> str:  # noqa: FBT001 - private
    return f"{value:.1%}" if percent else f"{value:.3g}"


def _in_words(curves: Sequence[Curve], *, percent: bool) -> str:
    last = [
        f"{curve.name} {_shown(curve.points[-1][1], percent)}" for curve in curves if curve.points
    ]
    return f"Last: {', '.join(last)}." if last else "No values yet."


def svg(chart: Chart) -> str:
    """A chart as an SVG element that needs nothing else, with its words as title and label."""
    inner = "".join(map(_svg_mark, chart.marks))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" '
        f'viewBox="0 0 {chart.width:g} {chart.height:g}" font-family="sans-serif" '
        f'aria-label="{escape(chart.says)}">{inner}</svg>'
    )


def _svg_mark(mark: Mark) -> str:
    match mark:
        case Stroke(points, colour, width, dash):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            dashed = f' stroke-dasharray="{" ".join(f"{each:g}" for each in dash)}"' if dash else ""
            return (
                f'<polyline points="{path}" fill="none" stroke="{colour}" '
                f'stroke-width="{width:g}" stroke-linejoin="round"{dashed}></polyline>'
            )
        case Dot(says=says, colour=colour):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in outline(mark))
            title = f"<title>{escape(says)}</title>"
            return f'<polygon points="{path}" fill="{colour}">{title}</polygon>'
        case Text(x, y, text, colour, size, anchor, bold):
            weight = ' font-weight="600"' if bold else ""
            return (
                f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size:g}" '
                f'text-anchor="{anchor}"{weight} stroke="white" stroke-width="3" '
                f'paint-order="stroke">{escape(text)}</text>'
            )


def outline(dot: Dot, *, radius: float = 4.2) -> tuple[tuple[float, float], ...]:
    """The corners of a point's shape; a circle has sixteen."""
    turns = {"circle": 0.0, "square": 0.125, "up": 0.75, "diamond": 0.0, "down": 0.25}
    corners = {"circle": 16, "square": 4, "up": 3, "diamond": 4, "down": 3}[dot.shape]
    size = radius if dot.shape == "circle" else radius * 1.25
    angles = (math.tau * (turns[dot.shape] + step / corners) for step in range(corners))
    return tuple((dot.x + size * math.cos(a), dot.y + size * math.sin(a)) for a in angles)
