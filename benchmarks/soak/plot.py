"""One panel for each thing watched, over the rounds; faults as ticks below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.soak.usage import Usage

_PANELS: Final = {
    "resident_mib": "Memory of each process (MiB)",
    "threads": "Threads",
    "descriptors": "File descriptors",
    "spool_mib": "Updates under way, coordinator (MiB)",
    "models_mib": "Models kept (MiB)",
}
_COORDINATOR, _HOSPITAL, _INK = "#1f5fbf", "#9aa4b2", "#1f2933"


def draw(
    usages: Sequence[Usage], seconds: Mapping[int, float], struck: Sequence[int], path: Path
) -> None:
    """Write the plot as a PNG."""
    figure = Figure(figsize=(13, 10.5), dpi=130, facecolor="white", layout="constrained")
    axes = list(figure.subplots(3, 2).flat)
    nodes = sorted({each.node for each in usages}, key=lambda node: node != "coordinator")
    for quantity, title in _PANELS.items():
        panel = axes.pop(0)
        for node in nodes:
            points = [each for each in usages if each.node == node]
            is_coordinator = node == "coordinator"
            name = "coordinator" if is_coordinator else "hospitals"
            panel.plot(
                [each.round_id for each in points],
                [each.values[quantity] for each in points],
                color=_COORDINATOR if is_coordinator else _HOSPITAL,
                linewidth=1.8 if is_coordinator else 1.0,
                label=name if is_coordinator or node == nodes[-1] else None,
            )
        _dress(panel, title)
    axes[0].plot(list(seconds), list(seconds.values()), color=_COORDINATOR, linewidth=0.9)
    axes[0].plot(
        struck, [0.0] * len(struck), "|", color="#d1362f", markersize=9, label="a fault begins"
    )
    _dress(axes[0], "Seconds a round")
    figure.savefig(path)


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=13, fontweight="bold", color=_INK, loc="left")
    axes.set_xlabel("Round", color=_INK)
    # Room for the legend above what is drawn.
    axes.set_ylim(0, 1.18 * max(axes.get_ylim()[1], 1e-3))
    axes.grid(visible=True, axis="y", color="#dde2e8")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=10, loc="upper right", ncols=2)
