"""Charts as marks and as SVG."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree as ET

from matl.charts import Chart, Curve, Dot, Level, Stroke, Text, line_chart, svg

CURVES = [Curve(f"hospital_{name}", ((1, 0.5), (2, 0.6), (3, 0.7))) for name in "abcde"]


def inside(chart: Chart) -> bool:
    places = [
        place
        for mark in chart.marks
        for place in (mark.points if isinstance(mark, Stroke) else ((mark.x, mark.y),))
    ]
    return all(0 <= x <= chart.width and 0 <= y <= chart.height for x, y in places)


def test_a_higher_value_is_drawn_higher_and_a_later_round_further_right() -> None:
    dots = [m for m in line_chart(CURVES[:1], says="").marks if isinstance(m, Dot)]
    assert [d.x for d in dots] == sorted(d.x for d in dots)
    assert [d.y for d in dots] == sorted((d.y for d in dots), reverse=True)


def test_names_at_the_ends_of_equal_curves_do_not_lie_on_one_another() -> None:
    chart = line_chart(CURVES, says="")
    names = sorted(m.y for m in chart.marks if isinstance(m, Text) and m.bold)
    assert all(later - earlier >= 14 for earlier, later in pairwise(names))
    assert inside(chart)


def test_of_more_names_than_there_is_room_for_some_are_left_out_and_counted() -> None:
    curves = [Curve(f"hospital_{n}", ((1, 0.5), (2, n / 60))) for n in range(60)]
    chart = line_chart(curves, says="")
    names = [m for m in chart.marks if isinstance(m, Text) and m.bold]
    assert all(later.y - earlier.y >= 14 for earlier, later in pairwise(names))
    assert inside(chart)
    *shown, rest = [each.text for each in names]
    assert (shown[0], shown[-1]) == ("hospital_59", "hospital_0")
    assert rest == f"and {60 - len(set(shown))} more"


def test_of_equal_curves_each_shows() -> None:
    strokes = [m for m in line_chart(CURVES, says="").marks if isinstance(m, Stroke)]
    dashes = [m.dash for m in strokes if m.width > 2]
    assert len(set(dashes)) == len(CURVES)


def test_no_value_one_value_and_values_that_are_none_are_drawn_too() -> None:
    for points in ((), ((1, 0.3),), ((1, math.inf), (2, math.nan), (3, 0.2)), ((5, -0.4),)):
        chart = line_chart([Curve("κ", points)], says="A chart.", levels=[Level(0.4, "low")])
        assert inside(chart)
        ET.fromstring(svg(chart))


def test_a_chart_is_told_in_words_and_its_text_cannot_become_markup() -> None:
    found = svg(line_chart([Curve("<b>", ((1, 0.25),))], says='Said "so".', percent=True))
    root = ET.fromstring(found)
    assert root.attrib["aria-label"] == 'Said "so". Last: <b> 25.0%.'
    assert "<b>" not in found
