"""The figures as tables and as a heat map. Computes nothing new."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.robust.summary import TARGET_FPR, TARGET_GAP_POINTS, TARGET_TPR, Cell
from matl.simulation.study import NO_ATTACK, ArmName

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

_DARKEST_POINTS: Final = 20.0
_WHOLE_FROM_POINTS: Final = 10.0

Block = tuple[str, bool, int, str]


def show(console: Console, cells: Sequence[Cell], result: Mapping[str, object]) -> None:
    """Print one table for each kind of federation, then the summary and what was missed."""
    for block in _blocks(cells):
        console.print(_table(block, [cell for cell in cells if _block(cell) == block]))
    summary = result["summary"]
    if isinstance(summary, Mapping):
        console.print(_summary_table(summary))
        for line in misses(summary):
            console.print(f"missed: {line}", style="yellow", highlight=False)


def misses(summary: Mapping[str, object]) -> list[str]:
    """Every figure that does not reach its target, as a sentence."""
    lines = []
    for key, value in summary.items():
        if isinstance(value, list) and value:
            lines.append(f"{key}: {'; '.join(value)}")
        if not isinstance(value, float):
            continue
        if key.startswith("worst_gap_points") and value > TARGET_GAP_POINTS:
            attack = summary[key.replace("gap_points", "attack")]
            lines.append(f"{key} is {value:.2f}, above {TARGET_GAP_POINTS:.0f}: {attack}")
        if key in {"tpr", "tpr_eps1", "tpr_n5", "tpr_n5_eps1"} and value < TARGET_TPR:
            worst = summary[key.replace("tpr", "tpr_worst_attack", 1)]
            lines.append(f"{key} is {value:.1%}, below {TARGET_TPR:.0%}; least for {worst}")
        if key in {"fpr", "fpr_eps1", "fpr_n5", "fpr_n5_eps1"} and value > TARGET_FPR:
            lines.append(f"{key} is {value:.1%}, above {TARGET_FPR:.0%}")
    return lines


def _block(cell: Cell) -> Block:
    return (cell.data_set, cell.private, -cell.members, cell.mix)


def _blocks(cells: Sequence[Cell]) -> list[Block]:
    return sorted({_block(cell) for cell in cells}, key=lambda block: (*block[:3], -len(block[3])))


def _title(block: Block, cells: Sequence[Cell]) -> str:
    privacy = "epsilon 1" if block[1] else "no privacy noise"
    return f"{block[0]}, {cells[0].federation}, {privacy}: points below the honest-only oracle"


def _table(block: Block, cells: Sequence[Cell]) -> Table:
    arms = [name for name in ArmName if any(cell.arm == name for cell in cells)]
    table = Table(
        box=box.SIMPLE,
        title=_title(block, cells),
        caption="* harms the plain mean. TPR, FPR: hostile and honest hospitals that MATL has "
        "excluded at the end. Silo: the worst honest hospital's gap. Held: rounds.",
    )
    table.add_column("Attack", no_wrap=True)
    table.add_column("Oracle %", justify="right")
    for arm in arms[1:]:
        table.add_column(arm, justify="right")
    for column in ("TPR", "FPR", "Silo", "Held"):
        table.add_column(column, justify="right")
    for attack in dict.fromkeys(cell.attack for cell in cells):
        by_arm = {cell.arm: cell for cell in cells if cell.attack == attack}
        ours = by_arm.get(ArmName.MATL)
        first = next(iter(by_arm.values()))
        row = [attack + ("*" if first.harmful else ""), f"{first.oracle:.1f}"]
        row += [f"{by_arm[arm].gap_points:.1f}" if arm in by_arm else "" for arm in arms[1:]]
        if ours is not None:
            row += [
                "" if ours.tpr is None else f"{ours.tpr:.0%}",
                f"{ours.fpr:.0%}",
                f"{ours.silo_gap_points:.1f}",
                f"{ours.held_rounds:.1f}",
            ]
        table.add_row(*row)
    return table


def _summary_table(summary: Mapping[str, object]) -> Table:
    table = Table(box=box.SIMPLE, title=f"MATL on {summary.get('data_set')}")
    table.add_column("Figure")
    table.add_column("Value", justify="right")
    for key, value in summary.items():
        if isinstance(value, list):
            continue
        table.add_row(key, "" if value is None else str(value))
    return table


def draw(cells: Sequence[Cell], path: Path) -> None:
    """A heat map of gaps, attack by rule; privacy down, federations across."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    blocks = _blocks(cells)
    rows = sorted({block[:2] for block in blocks})
    columns = sorted({block[2:] for block in blocks}, key=lambda each: (each[0], -len(each[1])))
    arms = [name.value for name in list(ArmName)[1:] if any(c.arm == name for c in cells)]
    attacks = list(dict.fromkeys(cell.attack for cell in cells if cell.attack != NO_ATTACK))
    figure, axes = plt.subplots(
        len(rows),
        len(columns),
        figsize=(
            2.2 + (0.4 + 0.42 * len(arms)) * len(columns),
            (1.2 + 0.17 * len(attacks)) * len(rows),
        ),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    images = [
        _draw_block(
            axes[rows.index(block[:2])][columns.index(block[2:])],
            [cell for cell in cells if _block(cell) == block],
            arms=arms,
            attacks=attacks,
        )
        for block in blocks
    ]
    figure.colorbar(images[0], ax=axes, label="points below the honest-only oracle", shrink=0.5)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_block(
    axis: "Axes", cells: Sequence[Cell], *, arms: Sequence[str], attacks: Sequence[str]
) -> "AxesImage":
    gaps = np.full((len(attacks), len(arms)), np.nan)
    for cell in cells:
        if cell.arm not in arms or cell.attack not in attacks:
            continue
        row, column = attacks.index(cell.attack), arms.index(cell.arm)
        gap = gaps[row, column] = cell.gap_points
        text = f"{gap:.0f}" if abs(gap) >= _WHOLE_FROM_POINTS else f"{gap:.1f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=5.5)
    axis.set_xticks(range(len(arms)), arms, rotation=60, ha="right", fontsize=7)
    axis.set_yticks(range(len(attacks)), attacks, fontsize=6)
    privacy = "ε = 1" if cells[0].private else "no noise"
    axis.set_title(f"{cells[0].data_set}, {privacy}\n{cells[0].federation}", fontsize=8)
    return axis.imshow(gaps, cmap="YlOrRd", vmin=0.0, vmax=_DARKEST_POINTS, aspect="auto")
