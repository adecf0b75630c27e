# ruff: noqa: E501  # The page's own lines.
"""What becomes of a hospital whose camera the holdout set lacks, or whose grade nobody else has."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from benchmarks.results.gather import SUSPECT_SITE
from benchmarks.results.page.cells import by_seed, cells_of_study, difference, span, where
from benchmarks.results.page.markdown import (
    Cell,
    epsilon_words,
    interval_text,
    number,
    percent,
    shown,
    table,
)
from benchmarks.results.page.tutorial import TITLES
from matl.simulation.intervals import Interval, interval
from matl.simulation.study import ArmName
from matl_coordinator.service.founding import MINIMUM_PER_CLASS

STUDY: Final = "minority"
GRADE_STUDY: Final = "minority-grade"
"""Hospital E has every patient of one grade, and no other."""
UNBOUNDED_STUDY: Final = "minority-grade-mean"
"""The same where what trust lets in is averaged and not bounded."""
SITE_TEST_IMAGES: Final = 200
_OWN: Final = "suspect_accuracy_percent"
_OTHERS: Final = "others_accuracy_percent"


def found_of_bias(studies: Mapping[str, Any]) -> str:
    """What E's patients lose under MATL when the holdout set has not their camera."""
    cells = where(cells_of_study(studies, STUDY), arm=ArmName.MATL)
    lost = _losses([c for c in cells if _has_camera(c)], [c for c in cells if not _has_camera(c)])
    if not lost:
        return "Expected, not measured."
    said = f"Points that E's own patients lose where the holdout set lacks E's camera ([measured](#a-minority-hospital)): {_listed(lost)}."
    if _is_lost(lost):
        return f"{said} That hospital pays{_at(lost)}."
    return f"{said} No loss was found with this camera."


def found_of_grade(studies: Mapping[str, Any]) -> str:
    """What becomes of patients whose grade one hospital alone has."""
    if said := _said_of_grade(studies):
        return f"The patients of a grade that hospital E alone has ([measured](#a-grade-that-one-hospital-alone-has)) {said}"
    return "A grade that one hospital alone has was not measured."


def _by_grade(studies: Mapping[str, Any], arm: ArmName, name: str = GRADE_STUDY) -> list[Cell]:
    return where(cells_of_study(studies, name), arm=arm)


def _lost_by_grade(studies: Mapping[str, Any], name: str = GRADE_STUDY) -> dict[str, Interval]:
    """Points that E's patients are below the honest alone, by ε, where one of these rules."""
    alone = _by_grade(studies, ArmName.ORACLE)
    return _losses(alone, _by_grade(studies, ArmName.MATL, name))


def _losses(before: Sequence[Cell], after: Sequence[Cell]) -> dict[str, Interval]:
    """Points by ε that E's own patients lose from one to the other, seed by seed."""
    first, second = ({c["epsilon"]: c for c in cells} for cells in (before, after))
    lost = {e: difference(first[e], second[e], _OWN) for e in first if e in second}
    return {epsilon: found for epsilon, found in lost.items() if found is not None}


def _is_lost(lost: Mapping[str, Interval]) -> bool:
    return any(_is_above(each) for each in lost.values())


def _is_above(found: Interval) -> bool:
    return found.half_width is not None and found.mean > found.half_width


def _listed(found: Mapping[str, Interval]) -> str:
    return "; ".join(
        f"{epsilon_words(epsilon)}: {interval_text(asdict(each), 2)}"
        for epsilon, each in found.items()
    )


def _has_camera(cell: Cell) -> bool:
    return SUSPECT_SITE in cell["holdout_sites"]


def minority(studies: Mapping[str, Any]) -> str:
    """Both tables; empty where nothing was run."""
    parts = [part for part in (_camera(studies), _grade(studies)) if part]
    if not parts:
        return ""
    return "\n\n".join(
        [
            "## A minority hospital",
            f"""Fundus photographs by site, everybody honest. *E's own patients* are {SITE_TEST_IMAGES} of hospital E, the smallest, that nobody
trained on, so that one of them is {100 / SITE_TEST_IMAGES:g} points; *other hospitals'* are as many of each, and the mean of the four.""",
            *parts,
        ]
    )


def _camera(studies: Mapping[str, Any]) -> str:
    cells = cells_of_study(studies, STUDY)
    if not cells:
        return ""
    rows = [[_camera_words(c), *_row(c, TITLES[ArmName(c["arm"])])] for c in cells]
    return f"""The recipe of table 1; the holdout set has patients of hospital E, hence its camera, or has not. {_how_hard(cells)}

{table(["holdout set", *_HEADER], rows)}"""


def _how_hard(cells: Sequence[Cell]) -> str:
    """E's own patients beside the mean of the others', as far as every row says the same."""
    beyond = [
        interval(
            [own - others[seed] for seed, own in by_seed(cell, _OWN).items() if seed in others]
        )
        for cell in cells
        for others in [by_seed(cell, _OTHERS)]
    ]
    known = [each for each in beyond if each is not None and each.half_width is not None]
    if not known:
        return ""
    means = [each.mean for each in known]
    if all(_is_above(each) for each in known):
        return f"E's patients are easier than the others' in every row, by {number(min(means), 1)} to {number(max(means), 1)} points."
    if all(_is_above(Interval(-each.mean, each.half_width, each.runs)) for each in known):
        return f"E's patients are harder than the others' in every row, by {number(-max(means), 1)} to {number(-min(means), 1)} points."
    return "E's patients are neither easier nor harder than the others' in every row."


def _grade(studies: Mapping[str, Any]) -> str:
    cells = cells_of_study(studies, GRADE_STUDY)
    if not cells:
        return ""
    unbounded = cells_of_study(studies, UNBOUNDED_STUDY)
    rows = [_row(cell, TITLES[ArmName(cell["arm"])]) for cell in cells]
    rows += [_row(cell, "MATL's trust, then the weighted mean") for cell in unbounded]
    said = _said_of_grade(studies) or "were not measured under MATL."
    return f"""### A grade that one hospital alone has

A coordinator does not start with a holdout set that has fewer than {MINIMUM_PER_CLASS} images of a grade. Here it has as many of every grade, and
every patient of the gravest is at hospital E, whatever camera took the photograph; E has no others, so that E's own
patients are that grade's. *Accuracy* is on the test images of every grade, in equal parts. The recipe of table 1 but for its rounds,
24 in place of 6: a rare grade is learnt late.

{table(_HEADER, rows)}

They {said}"""


def _said_of_grade(studies: Mapping[str, Any]) -> str:
    """What the patients of that grade lose; empty where that was not measured."""
    lost = _lost_by_grade(studies)
    if not lost:
        return ""
    trust = "; ".join(
        f"{epsilon_words(c['epsilon'])}: {shown(c, 'suspect_trust', 2)}"
        for c in _by_grade(studies, ArmName.MATL)
        if "suspect_trust" in c
    )
    said = f"are below the honest hospitals alone by so many points under MATL: {_listed(lost)}. {_paid(lost)}"
    if trust:
        said += f" MATL's trust of E at the end: {trust}."
    unbounded = _lost_by_grade(studies, UNBOUNDED_STUDY)
    if unbounded:
        said += f" With the weighted mean after the same trust: {_listed(unbounded)}."
    if any(
        lost[e].mean > each.mean and _is_above(lost[e])
        for e, each in unbounded.items()
        if e in lost
    ):
        said += (
            " MATL's rule scales an update down that is much longer than the median, and one of a grade that nobody else has stays long while "
            "the others' get short. `rounds.rule` chooses the mean, which bounds nothing that trust lets in."
        )
    return said


def _paid(lost: Mapping[str, Interval]) -> str:
    if _is_lost(lost):
        return f"They pay{_at(lost)}."
    return "No loss beyond the interval was found."


def _at(lost: Mapping[str, Interval]) -> str:
    """Where not every ε has a loss, those that have."""
    paid = [epsilon_words(epsilon) for epsilon, each in lost.items() if _is_above(each)]
    return "" if len(paid) == len(lost) else f" ({', '.join(paid)})"


def _camera_words(cell: Cell) -> str:
    return "with E's patients" if _has_camera(cell) else "without E's patients"


_HEADER: Final = (
    "ε",
    "who aggregates",
    "trust of E",
    "honest without weight",
    "longest, rounds",
    "rounds held",
    "accuracy %",
    "E's own patients %",
    "other hospitals' patients %",
    "seeds",
)


def _row(cell: Cell, who: str) -> list[str]:
    return [
        epsilon_words(cell["epsilon"]),
        who,
        shown(cell, "suspect_trust", 2),
        percent(cell, "honest_weightless"),
        span(cell, "longest_honest_exclusion_rounds"),
        span(cell, "held_rounds"),
        shown(cell, "accuracy_percent", 2),
        shown(cell, _OWN, 2),
        shown(cell, _OTHERS, 2),
        str(len(cell["seeds"])),
    ]
