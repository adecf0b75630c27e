"""The plots of docs/evidence.md. Computes nothing."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.results.page.cells import claimed
from benchmarks.results.page.curves import TARGET_MIX, at_target, curves_of
from benchmarks.results.page.markdown import noise_words, number
from benchmarks.results.page.targets import TARGET_CLAIMED
from benchmarks.results.page.tutorial import TITLES
from matl.simulation.study import NO_ATTACK, ArmName

ATTACKS_PLOT: Final = "evidence_attacks.png"
BREAKS_PLOT: Final = "evidence_breaks.png"
TUTORIAL_PLOT: Final = "evidence_tutorial.png"
_DARK_FROM: Final = 10.0
_POINTS: Final = (0, 1, 2, 5, 10, 20, 40, 80)
_MIXES: Final = (TARGET_MIX, "iid", "dirichlet-0.1")


def draw(found: Mapping[str, Any], folder: Path) -> None:
    """Whatever there are cells for."""
    import matplotlib as mpl

    mpl.use("Agg")
    _draw_tutorial(found["studies"].get("tutorial-fundus", {}).get("cells", []), folder)
    _draw_attacks(found["studies"], folder)
    _draw_breaks(found["studies"], folder)


def _draw_tutorial(cells: list[Mapping[str, Any]], folder: Path) -> None:
    from matplotlib import pyplot as plt

    if not cells:
        return
    arms = list(dict.fromkeys(cell["arm"] for cell in cells))
    figure, axes = plt.subplots(
        1, 2, figsize=(8.6, 2.8), sharex=True, sharey=True, layout="constrained"
    )
    for axis, epsilon in zip(axes, ("inf", "1"), strict=True):
        for offset, attack, label in (
            (-0.15, NO_ATTACK, "right"),
            (0.15, "label_complement", "wrong"),
        ):
            own = {
                c["arm"]: c["accuracy_percent"]
                for c in cells
                if c["epsilon"] == epsilon and c["attack"] == attack
            }
            places = [i for i, arm in enumerate(arms) if arm in own]
            values = [own[arms[i]] for i in places]
            axis.errorbar(
                [each["mean"] for each in values],
                [place + offset for place in places],
                xerr=[each["half_width"] or 0.0 for each in values],
                fmt="o",
                markersize=4,
                capsize=2,
                label=f"E's labels {label}",
            )
        axis.set_title(noise_words(epsilon), fontsize=9)
        axis.set_yticks(range(len(arms)), [TITLES[ArmName(arm)] for arm in arms], fontsize=7)
        axis.set_xlabel("accuracy, %", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(axis="x", linewidth=0.4)
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=7, loc="lower left")
    figure.suptitle("Semi-synthetic fundus photographs, 95 % intervals over seeds", fontsize=9)
    figure.savefig(folder / TUTORIAL_PLOT, dpi=120)
    plt.close(figure)


def _draw_attacks(studies: Mapping[str, Any], folder: Path) -> None:
    """Points below the honest alone, attack by rule, where MATL's targets are."""
    from matplotlib import pyplot as plt
    from matplotlib.colors import PowerNorm

    panels = at_target(studies)
    if not panels:
        return
    arms = list(dict.fromkeys(c["arm"] for panel in panels for c in panel.cells))
    attacks = list(dict.fromkeys(c["attack"] for panel in panels for c in panel.cells))
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(2.0 + 3.4 * len(panels), 1.4 + 0.22 * len(attacks)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        grid = [[math.nan] * len(arms) for _ in attacks]
        for cell in panel.cells:
            row, column = attacks.index(cell["attack"]), arms.index(cell["arm"])
            gap = grid[row][column] = cell["below_oracle_points"]["mean"]
            ink = "white" if gap > _DARK_FROM else "black"
            text = number(gap, 0 if gap > _DARK_FROM else 1)
            axis.text(column, row, text, color=ink, ha="center", va="center", fontsize=6)
        # What a target of a point or two is about must not look like nothing.
        norm = PowerNorm(0.5, vmin=0.0, vmax=20.0, clip=True)
        image = axis.imshow(grid, cmap="YlOrRd", norm=norm, aspect="auto")
        axis.set_xticks(range(len(arms)), arms, rotation=60, ha="right", fontsize=7)
        axis.set_yticks(range(len(attacks)), attacks, fontsize=7)
        axis.set_title(f"{panel.hostile} of {panel.members}, {panel.words}", fontsize=8)
    figure.colorbar(
        image,
        ax=axes,
        label="points below the honest alone; 20 and more alike",
        extend="max",
        shrink=0.6,
    )
    figure.savefig(folder / ATTACKS_PLOT, dpi=110)
    plt.close(figure)


def _draw_breaks(studies: Mapping[str, Any], folder: Path) -> None:
    """The worst attack on each rule by the number of hostile hospitals; a row for each study."""
    from matplotlib import pyplot as plt

    curves = curves_of(studies)
    rows = [name for name, panels in curves.items() if any(panel.hostile for panel in panels)]
    found = dict.fromkeys(p.mix for name in rows for p in curves[name] if p.hostile)
    mixes = sorted(found, key=lambda mix: _MIXES.index(mix) if mix in _MIXES else len(_MIXES))
    if not rows:
        return
    arms = list(dict.fromkeys(c["arm"] for n in rows for p in curves[n] for c in p.cells))
    figure, axes = plt.subplots(
        len(rows),
        len(mixes),
        figsize=(1.8 + 2.7 * len(mixes), 0.6 + 2.1 * len(rows)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for line, name in zip(axes, rows, strict=True):
        for axis, mix in zip(line, mixes, strict=True):
            own = sorted((p for p in curves[name] if p.mix == mix), key=lambda p: p.hostile)
            if not any(panel.hostile for panel in own):
                axis.set_axis_off()
                continue
            for colour, arm in enumerate(arms):
                is_ours = arm == ArmName.MATL
                worst = [p.worst(arm) for p in own]
                axis.errorbar(
                    [p.hostile for p in own],
                    # A gap where the arm was not run.
                    [math.nan if gap is None else gap["mean"] for gap in worst],
                    yerr=[gap["half_width"] or 0.0 if is_ours and gap else 0.0 for gap in worst],
                    capsize=2 if is_ours else 0,
                    elinewidth=0.8,
                    color="black" if is_ours else f"C{colour % 10}",
                    linewidth=2.2 if is_ours else 1.0,
                    marker="o",
                    markersize=4 if is_ours else 2.5,
                    linestyle="-" if is_ours or colour % 2 else "--",
                    zorder=3 if is_ours else 2,
                    label=arm,
                )
            members = own[0].members
            axis.axvline(claimed(members), color="grey", linewidth=0.8, linestyle=":")
            axis.hlines(
                TARGET_CLAIMED, 0, claimed(members), color="green", linewidth=1.0, linestyle=":"
            )
            axis.set_yscale("symlog", linthresh=2.0, linscale=0.7)
            axis.set_yticks(_POINTS, [f"{points}" for points in _POINTS])
            axis.set_ylim(bottom=-1.0)
            axis.set_xticks([p.hostile for p in own])
            axis.set_title(f"{members} hospitals, {own[0].words}", fontsize=8)
            axis.tick_params(labelsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("hostile hospitals", fontsize=8)
    figure.supylabel(
        "points below the honest alone, worst attack; green: MATL's target", fontsize=8
    )
    # Each draws every arm, if only as a gap.
    handles, labels = next(axis for axis in axes.flat if axis.lines).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=7)
    figure.savefig(folder / BREAKS_PLOT, dpi=110)
    plt.close(figure)
