"""What lesions an eye of each grade has, and where: values, not pixels.

The grades are those of the international clinical diabetic retinopathy severity scale
(Wilkinson et al., Ophthalmology 2003). Positions respect the anatomy of
``matl.demo.fundus.anatomy``; sizes are in micrometres of retina. The generator is an
argument, nothing is drawn here.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final

import numpy as np

from matl.demo.fundus.anatomy import (
    BASE_PX,
    FIELD,
    FOVEA,
    OPTIC_DISC,
    PX_PER_UM,
    in_retina,
    vessel_mask,
    vessel_segments,
)

# Lesions stay where every patient's zoom and shift leave them in view.
_VISIBLE: Final = 0.80
_PLACEMENT_TRIES: Final = 200


class Grade(IntEnum):
    """Diabetic retinopathy severity, international scale."""

    NONE = 0
    MILD = 1
    MODERATE = 2
    SEVERE = 3
    PROLIFERATIVE = 4


class Kind(StrEnum):
    """A kind of lesion, as a grader names it."""

    MICROANEURYSM = "microaneurysm"
    DOT_HAEMORRHAGE = "dot haemorrhage"
    BLOT_HAEMORRHAGE = "blot haemorrhage"
    FLAME_HAEMORRHAGE = "flame haemorrhage"
    HARD_EXUDATE = "hard exudate"
    COTTON_WOOL_SPOT = "cotton-wool spot"
    VENOUS_BEADING = "venous beading"
    NEW_VESSELS = "new vessels"
    PRERETINAL_HAEMORRHAGE = "preretinal haemorrhage"


@dataclass(frozen=True, slots=True)
class Lesion:
    """One lesion: its kind, centre in base pixels, size in base pixels and direction.

    ``size_px`` is the radius of round lesions, half the length of a flame or boat, the
    spread of a tuft of new vessels, and the bead radius of beading. ``angle`` is in
    radians. ``shape_seed`` makes the outline a function of the lesion alone.
    """

    kind: Kind
    x: float
    y: float
    size_px: float
    angle: float
    shape_seed: int


def plan_lesions(grade: Grade, rng: np.random.Generator) -> tuple[Lesion, ...]:
    """Draw the lesions of one eye of ``grade``.

    Every grade carries the lesions that define it; the counts of the milder ones grow
    with the grade, and the severe grade meets the 4-2-1 rule's "haemorrhages in four
    quadrants" and "beading in two".
    """
    match grade:
        case Grade.NONE:
            return ()
        case Grade.MILD:
            return _microaneurysms(rng, count=_between(rng, 5, 14))
        case Grade.MODERATE:
            return (
                *_microaneurysms(rng, count=_between(rng, 12, 24)),
                *_haemorrhages(rng, Kind.DOT_HAEMORRHAGE, count=_between(rng, 5, 12)),
                *_exudate_clusters(rng, count=_between(rng, 1, 3)),
            )
        case Grade.SEVERE:
            return (
                *_microaneurysms(rng, count=_between(rng, 12, 24)),
                *_haemorrhages_in_four_quadrants(rng),
                *_exudate_clusters(rng, count=_between(rng, 0, 2)),
                *_cotton_wool_spots(rng, count=_between(rng, 3, 7)),
                *_venous_beading(rng, segments=_between(rng, 3, 5)),
            )
        case Grade.PROLIFERATIVE:
            return (
                *_microaneurysms(rng, count=_between(rng, 10, 22)),
                *_haemorrhages(rng, Kind.DOT_HAEMORRHAGE, count=_between(rng, 6, 12)),
                *_haemorrhages(rng, Kind.BLOT_HAEMORRHAGE, count=_between(rng, 8, 16)),
                *_exudate_clusters(rng, count=_between(rng, 0, 1)),
                *_cotton_wool_spots(rng, count=_between(rng, 0, 2)),
                *_new_vessels(rng),
                *_preretinal_haemorrhages(rng),
            )


def _lesion(
    rng: np.random.Generator, kind: Kind, at: tuple[float, float], um: float, *, angle: float = 0.0
) -> Lesion:
    seed = int(rng.integers(2**32))
    return Lesion(kind, at[0], at[1], um * PX_PER_UM, angle, seed)


def _between(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high, endpoint=True))


def _microaneurysms(rng: np.random.Generator, *, count: int) -> tuple[Lesion, ...]:
    """Round, at most 125 micrometres across, in the posterior pole."""
    return tuple(
        _lesion(rng, Kind.MICROANEURYSM, _near_fovea(rng, 500, 4000), rng.uniform(37, 60))
        for _ in range(count)
    )


def _haemorrhages(rng: np.random.Generator, kind: Kind, *, count: int) -> tuple[Lesion, ...]:
    low, high = (70, 115) if kind is Kind.DOT_HAEMORRHAGE else (115, 210)
    return tuple(
        _lesion(rng, kind, _near_fovea(rng, 900, 5200), rng.uniform(low, high))
        for _ in range(count)
    )


def _haemorrhages_in_four_quadrants(rng: np.random.Generator) -> tuple[Lesion, ...]:
    lesions: list[Lesion] = []
    for quadrant in range(4):
        for _ in range(_between(rng, 7, 13)):
            at = _in_quadrant(rng, quadrant)
            draw = rng.random()
            if draw < 0.35:
                lesions.append(_lesion(rng, Kind.DOT_HAEMORRHAGE, at, rng.uniform(75, 120)))
            elif draw < 0.75:
                lesions.append(_lesion(rng, Kind.BLOT_HAEMORRHAGE, at, rng.uniform(110, 200)))
            else:
                angle = _along_nerve_fibres(*at) + rng.normal(0, 0.15)
                flame = _lesion(rng, Kind.FLAME_HAEMORRHAGE, at, rng.uniform(200, 370), angle=angle)
                lesions.append(flame)
    return tuple(lesions)


def _exudate_clusters(rng: np.random.Generator, *, count: int) -> tuple[Lesion, ...]:
    """Specks in clumps or in a ring (circinate) around a leak beside the macula."""
    lesions: list[Lesion] = []
    for _ in range(count):
        centre = _near_fovea(rng, 900, 2600)
        circinate = rng.random() < 0.5
        ring_um = rng.uniform(350, 700)
        arc_start, arc_length = rng.uniform(0, 2 * np.pi), rng.uniform(2.5, 2 * np.pi)
        for _ in range(_between(rng, 12, 33)):
            if circinate:
                turn = arc_start + arc_length * rng.random()
                away = ring_um * rng.normal(1, 0.13) * PX_PER_UM
            else:
                turn = rng.uniform(0, 2 * np.pi)
                away = abs(rng.normal(0, 330)) * PX_PER_UM
            at = (centre[0] + away * np.cos(turn), centre[1] + away * np.sin(turn))
            if in_retina(*at, times=_VISIBLE) and not FOVEA.contains(*at):
                um = float(np.clip(rng.lognormal(3.75, 0.5), 22, 130))
                lesions.append(_lesion(rng, Kind.HARD_EXUDATE, at, um))
    return tuple(lesions)


def _cotton_wool_spots(rng: np.random.Generator, *, count: int) -> tuple[Lesion, ...]:
    """Infarcts of the nerve-fibre layer: near the arcades, across the fibres."""
    lesions: list[Lesion] = []
    for _ in range(count):
        at = _in_quadrant(rng, _between(rng, 0, 3), outermost=0.62)
        angle = _along_nerve_fibres(*at) + np.pi / 2 + rng.normal(0, 0.3)
        um = rng.uniform(170, 330)
        lesions.append(_lesion(rng, Kind.COTTON_WOOL_SPOT, at, um, angle=angle))
    return tuple(lesions)


def _venous_beading(rng: np.random.Generator, *, segments: int) -> tuple[Lesion, ...]:
    """Beads strung along the widest vessels, closer than two calibres apart."""
    widest = vessel_segments()[:20]
    lesions: list[Lesion] = []
    for index in rng.choice(len(widest), size=segments, replace=False):
        segment = widest[index]
        radius = float(np.median(segment.radii))
        length = min(len(segment.points), _between(rng, 60, 130))
        start = int(rng.integers(len(segment.points) - length + 1))
        step = max(round(3.6 * radius), 7)
        for i in range(start, start + length, step):
            x, y = segment.points[i] + rng.normal(0, 0.12 * radius, 2)
            if not in_retina(x, y, times=_VISIBLE + 0.08):
                continue
            bead_um = radius * rng.uniform(1.2, 1.5) / PX_PER_UM
            lesions.append(_lesion(rng, Kind.VENOUS_BEADING, (x, y), bead_um))
    return tuple(lesions)


def _new_vessels(rng: np.random.Generator) -> tuple[Lesion, ...]:
    """Tufts at the disc (NVD), elsewhere along the larger vessels (NVE), or both."""
    draw = rng.random()
    at_disc, elsewhere = draw < 0.6, 0 if draw < 0.25 else _between(rng, 1, 3)
    lesions: list[Lesion] = []
    if at_disc:
        turn = rng.uniform(0, 2 * np.pi)
        off = 0.45 * OPTIC_DISC.radius
        at = (OPTIC_DISC.x + off * np.cos(turn), OPTIC_DISC.y + off * np.sin(turn))
        lesions.append(_lesion(rng, Kind.NEW_VESSELS, at, rng.uniform(800, 1300)))
    for _ in range(elsewhere):
        at = _on_vessel(rng)
        lesions.append(_lesion(rng, Kind.NEW_VESSELS, at, rng.uniform(600, 1100)))
    return tuple(lesions)


def _preretinal_haemorrhages(rng: np.random.Generator) -> tuple[Lesion, ...]:
    """Boats of blood under the hyaloid, near an arcade; the level settles with gravity."""
    boats = int(rng.random() < 0.9)
    return tuple(
        _lesion(
            rng,
            Kind.PRERETINAL_HAEMORRHAGE,
            _near_fovea(rng, 1700, 4300),
            rng.uniform(800, 1450),
            angle=rng.normal(0, 0.12),
        )
        for _ in range(boats)
    )


def _near_fovea(
    rng: np.random.Generator, nearest_um: float, farthest_um: float
) -> tuple[float, float]:
    """Draw a point off the vessels at a distance from the fovea."""
    for _ in range(_PLACEMENT_TRIES):
        away = rng.uniform(nearest_um, farthest_um) * PX_PER_UM
        turn = rng.uniform(0, 2 * np.pi)
        at = (FOVEA.x + away * np.cos(turn), FOVEA.y + away * np.sin(turn))
        if _is_clear(*at):
            return at
    return (FOVEA.x + nearest_um * PX_PER_UM, FOVEA.y)


def _in_quadrant(
    rng: np.random.Generator, quadrant: int, *, outermost: float = _VISIBLE
) -> tuple[float, float]:
    """Draw a point off the vessels in one quadrant of the field (0 to 3, clockwise)."""
    for _ in range(_PLACEMENT_TRIES):
        away = FIELD.radius * np.sqrt(rng.uniform(0.2**2, outermost**2))
        turn = (quadrant + rng.random()) * np.pi / 2
        at = (FIELD.x + away * np.cos(turn), FIELD.y + away * np.sin(turn))
        if _is_clear(*at):
            return at
    middle = (quadrant + 0.5) * np.pi / 2
    away = FIELD.radius * outermost / 2
    return (FIELD.x + away * np.cos(middle), FIELD.y + away * np.sin(middle))


def _on_vessel(rng: np.random.Generator) -> tuple[float, float]:
    """Draw a point on one of the wider vessels, away from the disc and the fovea."""
    for _ in range(_PLACEMENT_TRIES):
        segment = vessel_segments()[rng.integers(30)]
        x, y = segment.points[rng.integers(len(segment.points))]
        if in_retina(x, y, times=0.68) and not FOVEA.contains(x, y, times=3):
            return float(x), float(y)
    return FOVEA.x, FOVEA.y - 2500 * PX_PER_UM


def _is_clear(x: float, y: float) -> bool:
    column, row = round(x), round(y)
    inside = 0 <= column < BASE_PX and 0 <= row < BASE_PX
    return inside and in_retina(x, y, times=_VISIBLE) and not bool(vessel_mask()[row, column])


def _along_nerve_fibres(x: float, y: float) -> float:
    """Direction in which the nerve fibres run: roughly radial from the optic disc."""
    return float(np.arctan2(y - OPTIC_DISC.y, x - OPTIC_DISC.x))
