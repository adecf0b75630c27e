"""From single runs to the figures that targets are set for. Computes; runs nothing.

A gap is the oracle's accuracy less an arm's, in points, on the same split. Exclusion is
counted over the attacks that do harm: those that cost the plain mean at least one point in
the same setting, seed by seed's mean. An attacker that does no harm is judged by accuracy alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from matl.simulation.outcome import Outcome
from matl.simulation.study import NO_ATTACK, ArmName

HARM_POINTS = 1.0
"""What an attack must cost the plain mean before its authors must be found out."""
TARGET_GAP_POINTS = 1.0
TARGET_TPR = 0.95
TARGET_FPR = 0.05


@dataclass(frozen=True, slots=True)
class Cell:
    """One attack on one kind of federation under one rule, over all seeds."""

    data_set: str
    members: int
    byzantine: int
    mix: str
    private: bool
    attack: str
    arm: str
    seeds: int
    accuracy: float
    """Percent, mean over seeds, as is everything below."""
    oracle: float
    gap_points: float
    largest_gap_points: float
    """In the worst seed."""
    silo_gap_points: float
    """Worst honest silo: the oracle's less this arm's."""
    held_rounds: float
    tpr: float | None
    fpr: float
    hostile_weightless: float | None
    honest_weightless: float
    backdoor_success: float | None
    harmful: bool
    """Whether the attack costs the plain mean a point or more here."""

    @property
    def federation(self) -> str:
        """As in ``n20f9 iid``."""
        return f"n{self.members}f{self.byzantine} {self.mix}"


Key = tuple[str, int, int, str, bool, str]


def cells_of(outcomes: Sequence[Outcome]) -> list[Cell]:
    """Every cell for which the oracle was run with the same seeds."""
    runs: dict[Key, dict[str, dict[int, Outcome]]] = {}
    for each in outcomes:
        runs.setdefault(_key(each), {}).setdefault(each.arm, {})[each.seed] = each
    cells = []
    for key, by_arm in runs.items():
        oracle = by_arm.get(ArmName.ORACLE, {})
        mean = _gap(by_arm.get(ArmName.MEAN, {}), oracle)
        harmful = key[-1] != NO_ATTACK and mean is not None and mean >= HARM_POINTS
        for arm, by_seed in by_arm.items():
            if set(by_seed) <= set(oracle):
                cells.append(_cell(key, arm, by_seed, oracle, harmful=harmful))
    return cells


def _key(each: Outcome) -> Key:
    return (
        each.data_set,
        each.members,
        each.byzantine,
        each.mix,
        each.is_private,
        each.attack,
    )


def _gap(by_seed: Mapping[int, Outcome], oracle: Mapping[int, Outcome]) -> float | None:
    common = set(by_seed) & set(oracle)
    if not common:
        return None
    return 100.0 * fmean(oracle[seed].accuracy - by_seed[seed].accuracy for seed in common)


def _cell(
    key: Key,
    arm: str,
    by_seed: Mapping[int, Outcome],
    oracle: Mapping[int, Outcome],
    *,
    harmful: bool,
) -> Cell:
    runs = list(by_seed.values())
    gaps = [100.0 * (oracle[seed].accuracy - run.accuracy) for seed, run in by_seed.items()]
    silos = [100.0 * (oracle[seed].worst_silo - run.worst_silo) for seed, run in by_seed.items()]
    data_set, members, byzantine, mix, private, attack = key
    return Cell(
        data_set=data_set,
        members=members,
        byzantine=byzantine,
        mix=mix,
        private=private,
        attack=attack,
        arm=arm,
        seeds=len(runs),
        accuracy=100.0 * fmean(run.accuracy for run in runs),
        oracle=100.0 * fmean(oracle[seed].accuracy for seed in by_seed),
        gap_points=fmean(gaps),
        largest_gap_points=max(gaps),
        silo_gap_points=fmean(silos),
        held_rounds=fmean(run.held_rounds for run in runs),
        tpr=_mean(run.hostile_excluded for run in runs),
        fpr=fmean(run.honest_excluded for run in runs),
        hostile_weightless=_mean(run.hostile_weightless for run in runs),
        honest_weightless=fmean(run.honest_weightless for run in runs),
        backdoor_success=_mean(run.backdoor_success for run in runs),
        harmful=harmful,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def summarise(cells: Sequence[Cell]) -> dict[str, object]:
    """The figures with targets, for the product's rule: without privacy and at ε = 1.

    ``…_45pct`` is over the federations of 20 with 9 attackers, ``…_n5`` over those of 5
    with 2. Worst is the worst cell: one attack on one way of splitting the images.
    """
    summary: dict[str, object] = {}
    for suffix, private in (("", False), ("_eps1", True)):
        ours = [c for c in cells if c.arm == ArmName.MATL and c.private is private]
        for name, members in (("45pct", 20), ("n5", 5)):
            chosen = [cell for cell in ours if cell.members == members]
            if chosen:
                tail = suffix if name == "45pct" else f"_n5{suffix}"
                summary |= _figures(chosen, gap=f"{name}{suffix}", tail=tail)
    return summary


def _figures(cells: Sequence[Cell], *, gap: str, tail: str) -> dict[str, object]:
    attacked = [cell for cell in cells if cell.attack != NO_ATTACK]
    harmful = [cell for cell in attacked if cell.harmful]
    quiet = [cell for cell in cells if cell.attack == NO_ATTACK]
    worst = max(attacked, key=lambda cell: cell.gap_points, default=None)
    caught = _mean(cell.tpr for cell in harmful)
    return {
        f"worst_gap_points_{gap}": None if worst is None else round(worst.gap_points, 2),
        f"worst_attack_{gap}": None if worst is None else f"{worst.attack} ({worst.mix})",
        f"tpr{tail}": None if caught is None else round(caught, 4),
        f"tpr_rounds{tail}": _rounded(_mean(cell.hostile_weightless for cell in harmful)),
        f"tpr_worst_attack{tail}": _worst_name(harmful, lambda cell: -(cell.tpr or 0.0)),
        f"above_gap_target_{gap}": [
            f"{cell.attack} ({cell.mix}): {cell.gap_points:.1f}"
            for cell in sorted(attacked, key=lambda cell: -cell.gap_points)
            if cell.gap_points > TARGET_GAP_POINTS
        ],
        f"below_tpr_target{tail}": [
            f"{cell.attack} ({cell.mix}): {cell.tpr:.0%}, gap {cell.gap_points:.1f}"
            for cell in sorted(harmful, key=lambda cell: cell.tpr or 0.0)
            if cell.tpr is not None and cell.tpr < TARGET_TPR
        ],
        f"tpr_all_attacks{tail}": _rounded(_mean(cell.tpr for cell in attacked)),
        f"fpr{tail}": _rounded(_mean(cell.fpr for cell in attacked)),
        f"fpr_rounds{tail}": _rounded(_mean(cell.honest_weightless for cell in attacked)),
        f"fpr_no_attack{tail}": _rounded(_mean(cell.fpr for cell in quiet)),
        f"held_rounds_mean{tail}": _rounded(_mean(cell.held_rounds for cell in attacked)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _worst_name(cells: Sequence[Cell], by: Callable[[Cell], float]) -> str | None:
    worst = max(cells, key=by, default=None)
    return None if worst is None else f"{worst.attack} ({worst.mix}): {worst.tpr or 0.0:.0%}"
