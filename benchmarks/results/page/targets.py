"""Table 2's targets, and what was found of each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from benchmarks.results.page.cells import (
    ENOUGH_SEEDS,
    claimed,
    federation,
    federations,
    fewest_seeds,
    harms,
    mean_percent,
    seed_counts,
    share,
    where,
    with_gap,
)
from benchmarks.results.page.curves import TARGET_MIX
from benchmarks.results.page.markdown import Cell, epsilon_words, mix_words, table
from benchmarks.results.page.verdicts import (
    Decided,
    seeds_beyond,
    verdict_on_attacks,
    verdict_on_waiting,
)
from matl.simulation.study import NO_ATTACK, ArmName

TARGET_CLAIMED: Final = 1.0
TARGET_60: Final = 2.0
AUTHORS_OUT: Final = 0.95
"""Of the hospitals behind an attack that does harm, at least so many are to be out at the end."""
HONEST_OUT: Final = 0.05
"""Of the honest ones at most so many."""
_NO_ROWS: Final = "Nothing yet."


def targeted(studies: Mapping[str, Any]) -> Iterator[tuple[list[Cell], float, int | None]]:
    """MATL's cells that a target is for: one federation of these studies under every attack that
    was run, most points below the honest alone, and the number of attacks asked for where it is
    known."""
    for study in studies.values():
        for own, asked in _attacked(study):
            if (target := target_of(own[0]["members"], own[0]["hostile"])) is not None:
                yield own, target, asked


def _attacked(study: Mapping[str, Any]) -> Iterator[tuple[list[Cell], int | None]]:
    ours = where(study["cells"], arm=ArmName.MATL)
    asked = len(study["asked_attacks"]) if "asked_attacks" in study else None
    for each in federations(with_gap(ours)):
        if each["hostile"]:
            yield with_gap(where(ours, **each)), asked


def target_of(members: int, hostile: int) -> float | None:
    """Most points below the honest alone; ``None`` where nothing is promised."""
    if hostile == claimed(members):
        return TARGET_CLAIMED
    return TARGET_60 if 10 * hostile == 6 * members else None


def targets_table(studies: Mapping[str, Any]) -> str:
    """MATL's verdicts on every federation of these studies that a target is for."""
    rows = [
        [
            share(own[0]),
            epsilon_words(own[0]["epsilon"]),
            mix_words(own[0]["mix"]),
            _of(len(own), asked),
            seed_counts(own),
            f"{target:.0f}",
            verdict_on_attacks(own, target, asked=asked).words,
            seeds_beyond(own, target),
            *_exclusions(studies, own),
        ]
        for own, target, asked in targeted(studies)
    ]
    header = ["hostile", "ε", "classes", "attacks run", "seeds", "target, points", "verdict"]
    header += ["runs beyond the target, and the worst", "authors of harm excluded"]
    header += ["authors of all attacks", "honest excluded"]
    return f"{table(header, rows) if rows else _NO_ROWS}\n\n{_not_run(studies)}".strip()


def waiting_table(studies: Mapping[str, Any]) -> str:
    """Whether an honest hospital waited too long, for however many hostile ones."""
    found = [
        each
        for study in studies.values()
        for each in sorted([*_calm(study), *_attacked(study)], key=lambda f: f[0][0]["hostile"])
        if each[0][0]["mix"] == TARGET_MIX
    ]
    rows = [
        [
            share(own[0]),
            epsilon_words(own[0]["epsilon"]),
            seed_counts(own),
            verdict_on_waiting(own, asked=asked).words,
        ]
        for own, asked in found
    ]
    return table(["hostile", "ε", "seeds", "verdict, and rounds at most"], rows) if rows else ""


def _calm(study: Mapping[str, Any]) -> Iterator[tuple[list[Cell], int | None]]:
    for cell in where(study["cells"], arm=ArmName.MATL, attack=NO_ATTACK):
        yield [cell], 1


def _exclusions(studies: Mapping[str, Any], own: Sequence[Cell]) -> list[str]:
    """Whether the authors of attacks that do harm were excluded, and the honest were not."""
    beside = [c for s in studies.values() for c in where(s["cells"], **federation(own[0]))]
    harmful = [c for c in own if harms(beside, c)]
    return [
        _share(harmful, "hostile_excluded", lambda found: found >= AUTHORS_OUT),
        mean_percent(own, "hostile_excluded"),
        _share(own, "honest_excluded", lambda found: found <= HONEST_OUT),
    ]


def _share(cells: Sequence[Cell], name: str, is_kept: Callable[[float], bool]) -> str:
    """The mean over attacks, and whether that is as it should be."""
    known = [c[name]["mean"] for c in cells if name in c]
    if not known:
        return ""
    mean = fmean(known)
    said = Decided.MET if is_kept(mean) else Decided.MISSED
    return f"{100 * mean:.1f} %, {said if fewest_seeds(cells) >= ENOUGH_SEEDS else 'few seeds'}"


def _not_run(studies: Mapping[str, Any]) -> str:
    """Federations that a target is for, that were asked for, and that are not among the rows."""
    missing = []
    for name, study in studies.items():
        ours = where(study["cells"], arm=ArmName.MATL)
        run = {(c["members"], c["hostile"], c["mix"]) for c in ours}
        missing += [
            f"{hostile} of {members}, {mix_words(mix)} ({name})"
            for members, hostile, mix in study.get("asked_federations", [])
            if target_of(members, hostile) is not None and (members, hostile, mix) not in run
        ]
    return f"Asked for and not run yet: {'; '.join(missing)}." if missing else ""


def _of(run: int, asked: int | None) -> str:
    return f"{run}" if asked is None else f"{run} of {asked}"
