"""Accuracy against ε for both image sets, as one PNG."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.utility.scores import Interval

Curve = Mapping[float, Interval]

_INK, _MUTED, _GRID = "#1f2933", "#66737f", "#dfe4e8"
_STYLES: Final = (("#1f5fbf", "o"), ("#8e5bc0", "s"), ("#d1362f", "v"), ("#e8901a", "D"))
_DPI: Final = 150


def plot_utility(
    panels: Mapping[str, Mapping[str, Curve]],
    references: Mapping[str, float],
    targets: Mapping[str, float],
    path: Path,
    *,
    note: str,
) -> None:
    """Write one panel a data set.

    Args:
        panels: by title of the panel and name of the arm: accuracy in points by ε, ∞ left out.
        references: by title: accuracy without privacy, in points.
        targets: by title: how many points below it ε = 1 may be.
        path: replaced if it exists.
        note: printed below.
    """
    figure = Figure(figsize=(12, 5.6), dpi=_DPI, facecolor="white", layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        _panel(ax, title, curves, references[title], targets[title])
    figure.supxlabel(note, fontsize=9, color=_MUTED)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)


def _panel(
    ax: Axes, title: str, curves: Mapping[str, Curve], reference: float, target: float
) -> None:
    ax.axhline(reference, color=_INK, linewidth=1.4, label=f"no privacy, {reference:.1f} %")
    ax.axhline(
        reference - target,
        color=_MUTED,
        linewidth=1.0,
        linestyle=(0, (4, 3)),
        label=f"target for ε = 1, {target:g} below",
    )
    for (name, curve), (colour, marker) in zip(curves.items(), _STYLES, strict=False):
        points = sorted(epsilon for epsilon in curve if math.isfinite(epsilon))
        ax.errorbar(
            points,
            [curve[epsilon].mean for epsilon in points],
            yerr=[curve[epsilon].half_width for epsilon in points],
            color=colour,
            marker=marker,
            markersize=5,
            capsize=3,
            linewidth=1.6,
            label=name,
        )
    ticks = sorted({epsilon for curve in curves.values() for epsilon in curve})
    ax.set_xscale("log", base=2)
    ax.set_xticks([tick for tick in ticks if math.isfinite(tick)])
    ax.set_xticklabels([f"{tick:g}" for tick in ticks if math.isfinite(tick)])
    ax.set_title(title, loc="left", fontsize=12, color=_INK)
    ax.set_xlabel("ε of every patient, δ = 10⁻⁵, add or remove one")
    ax.set_ylabel("accuracy on test images, %")
    ax.grid(color=_GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="lower right", fontsize=9, frameon=False)
