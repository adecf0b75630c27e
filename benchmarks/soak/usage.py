"""What a process and the files it writes use, and whether that grows from round to round."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import fmean, median
from typing import Final

import psutil

MEBIBYTE: Final = 1 << 20
# SQLite opens it and its journal, "-wal", once for each connection.
DATABASE_FILE: Final = "coordinator.db"
_Z_95: Final = 1.959964
_FEWEST_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class Usage:
    """One node after one round; ``life`` counts the starts of its process, from 0."""

    node: str
    life: int
    round_id: int
    values: Mapping[str, float]


class Verdict(StrEnum):
    """What a slope shows; too much noise shows neither."""

    FLAT = "flat"
    GROWS = "grows"
    NOT_SHOWN = "not shown"


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth a round, half the width of its 95 % interval, and the median of what grows."""

    per_round: float
    interval: float
    median: float
    rounds: int

    @property
    def verdict(self) -> Verdict:
        """Flat where a tenth more in 1,000 rounds is excluded; growing where chance is."""
        tenth = 0.1 * self.median / 1000
        if self.per_round + self.interval <= tenth:
            return Verdict.FLAT
        return Verdict.GROWS if self.per_round > self.interval else Verdict.NOT_SHOWN


def usage_of(pid: int, state: Path) -> Mapping[str, float] | None:
    """Descriptors, threads, memory and disk of a daemon; None where it has just ended."""
    database = str(state.resolve() / DATABASE_FILE)
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        with process.oneshot():
            return {
                "descriptors": process.num_fds(),
                "database_descriptors": sum(
                    each.path.startswith(database) for each in process.open_files()
                ),
                "threads": process.num_threads(),
                "resident_mib": process.memory_info().rss / MEBIBYTE,
                **_disk_of(state),
            }
    return None


def _disk_of(state: Path) -> Mapping[str, float]:
    """MiB of a state folder: updates under way, models, and the rest, which keeps the log."""
    sizes = {"spool_mib": 0.0, "models_mib": 0.0, "other_files_mib": 0.0}
    # Unlike Path.rglob, os.walk passes over a folder that has gone since it was listed.
    for folder, _, names in os.walk(state):
        for path in (Path(folder, name) for name in names):
            name = f"{path.relative_to(state).parts[0]}_mib"
            kind = name if name in sizes else "other_files_mib"
            with suppress(OSError):
                sizes[kind] += path.stat().st_blocks * 512 / MEBIBYTE
    return sizes


def slope_of(
    usages: Iterable[Usage], quantity: str, *, settle_rounds: int, across_lives: bool = False
) -> Slope | None:
    """Growth a round by least squares; None where too few rounds are left to tell.

    Every life of every process has a level of its own, so that a restart hides no leak; the
    first ``settle_rounds`` of a life, in which caches fill, are left out. What is on disk
    outlives the process: ``across_lives`` takes all lives of a node as one.
    """
    lives: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for each in usages:
        life = 0 if across_lives else each.life
        point = (each.round_id, each.values[quantity])
        lives.setdefault((each.node, life), []).append(point)
    offsets: list[tuple[float, float]] = []
    levels: list[float] = []
    used = 0
    for points in lives.values():
        settled = [point for point in points if point[0] >= points[0][0] + settle_rounds]
        if len(settled) < _FEWEST_ROUNDS:
            continue
        used += 1
        at, level = (fmean(each) for each in zip(*settled, strict=True))
        offsets += [(round_id - at, value - level) for round_id, value in settled]
        levels += [value for _, value in settled]
    spread = math.fsum(x * x for x, _ in offsets)
    freedom = len(offsets) - used - 1
    if freedom < 1:
        return None
    per_round = math.fsum(x * y for x, y in offsets) / spread
    residual = math.fsum((y - per_round * x) ** 2 for x, y in offsets)
    error = math.sqrt(residual / freedom / spread)
    return Slope(per_round, _Z_95 * error, median(levels), len(offsets))
