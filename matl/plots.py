"""The four plots of a federation's study: accuracy, trust, privacy budget, contributions.

Draws what it is given and computes nothing. Needs matplotlib (``matl[report]``), opens
no window, and leaves matplotlib's global state alone.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from matl.history import History, relation_of
from matl_coordinator.core.trust_record import DEFAULT_POLICY

TRUSTED_FROM: Final = DEFAULT_POLICY.trusted_from
EXCLUDED_BELOW: Final = DEFAULT_POLICY.excluded_below

_INK, _MUTED, _GRID = "#1f2933", "#66737f", "#dfe4e8"
_GREEN, _ORANGE, _RED, _BLUE = "#2a9d5c", "#e8901a", "#d1362f", "#1f5fbf"
# Told apart by everyone (after Okabe and Ito), one marker each for print in black and white.
_HOSPITAL_STYLES: Final = (
    ("#1f5fbf", "o"),
    ("#0f9d8a", "s"),
    ("#8e5bc0", "^"),
    ("#7a6a4f", "D"),
    ("#d1362f", "v"),
    ("#e8901a", "P"),
    ("#4b5563", "X"),
    ("#b8489a", "*"),
)
_REFERENCE_STYLES: Final = (("#3d4852", (0, (5, 2))), ("#d1362f", "-"), ("#e8901a", "-."))
_MOST_NAMED: Final = 10
"""Hospitals whose lines and bars have room for a name each."""
_TRUST_TICKS: Final = (0, 0.2, 0.4, 0.6, 0.8, 1.0)
_DPI: Final = 150


def draw_results(history: History, path: Path, *, title: str, note: str) -> None:
    """Write the four plots as one PNG.

    Args:
        history: what to draw; at least one round.
        path: replaced if it exists.
        title: what was studied.
        note: what the reader must know of the data; printed below the title.
    """
    layout = ConstrainedLayoutEngine(rect=(0.01, 0.01, 0.98, 0.905), wspace=0.05, hspace=0.07)
    figure = Figure(figsize=(15, 11.2), dpi=_DPI, facecolor="white", layout=layout)
    figure.text(0.02, 0.966, title, fontsize=19, fontweight="bold", color=_INK, va="center")
    figure.text(0.02, 0.936, note, fontsize=12.5, color=_MUTED, va="center")
    axes = figure.subplots(2, 2)
    _plot_accuracy(axes[0, 0], history)
    _plot_trust(axes[0, 1], history)
    _plot_budget(axes[1, 0], history)
    _plot_contributions(axes[1, 1], history)
    figure.savefig(path, dpi=_DPI)


def _plot_accuracy(axes: Axes, history: History) -> None:
    _dress(axes, "Accuracy on the test images", "Accuracy (%)")
    threshold = 100 * history.clinical_threshold
    _draw_level(axes, threshold, _GREEN, f"clinical threshold, {threshold:.0f} %")
    for (name, values), (colour, line) in zip(
        history.references.items(), _REFERENCE_STYLES, strict=False
    ):
        axes.plot(
            history.rounds,
            [100 * value for value in values],
            color=colour,
            linestyle=line,
            linewidth=1.8,
            marker=".",
            markersize=7,
            label=_with_last(name, values),
        )
    axes.plot(
        history.rounds,
        [100 * value for value in history.accuracy],
        color=_BLUE,
        linewidth=3.2,
        marker="o",
        markersize=8,
        label=_with_last("MATL", history.accuracy),
        zorder=5,
    )
    axes.set_ylim(0, 124)
    axes.set_yticks(range(0, 101, 20))
    _count_rounds(axes, history)
    if not any(map(math.isfinite, history.accuracy)):
        _write_across(axes, "no accuracy was measured")
    handles, labels = axes.get_legend_handles_labels()
    # The released model first, though it is drawn last.
    order = [len(handles) - 1, *range(len(handles) - 1)]
    axes.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        **_LEGEND,
        loc="upper center",
        ncols=2,
        columnspacing=1.2,
        handletextpad=0.6,
    )


def _plot_trust(axes: Axes, history: History) -> None:
    _dress(axes, "Trust in each hospital", "Trust")
    _draw_thresholds(axes)
    drawn: list[tuple[float, ...]] = []
    for (name, values), (colour, marker) in _styled(history.trust):
        # Over an equal line, thin dashes: that one shows through.
        hides = drawn.count(tuple(values))
        axes.plot(
            history.rounds,
            values,
            color=colour,
            marker=marker,
            linewidth=3,
            linestyle=(0, (3, 3 + 3 * hides)) if hides else "-",
            markersize=max(3, 9 - 3 * hides),
        )
        if len(history.trust) <= _MOST_NAMED or not values[-1] >= TRUSTED_FROM:
            axes.plot([], [], color=colour, marker=marker, linewidth=3, markersize=8, label=name)
        drawn.append(tuple(values))
    axes.set_ylim(0, 1.16)
    axes.set_yticks(_TRUST_TICKS)
    _count_rounds(axes, history)
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    if len(history.trust) > _MOST_NAMED:
        axes.set_ylim(0, 1.3)
    axes.legend(
        handles[: 2 * _MOST_NAMED],
        labels[: 2 * _MOST_NAMED],
        **_LEGEND,
        loc="upper center",
        ncols=5,
        handlelength=1.3,
        columnspacing=1,
        handletextpad=0.5,
        title="Not trusted at the end" if len(history.trust) > _MOST_NAMED else None,
    )


def _plot_budget(axes: Axes, history: History) -> None:
    _dress(axes, "Privacy budget", "Remaining ε of each hospital")
    _count_rounds(axes, history)
    if not math.isfinite(history.epsilon_budget):
        axes.set_yticks([])
        _write_across(axes, "ε = ∞: this study adds no noise\nand promises no privacy")
        return
    relation = relation_of(history.delta)
    axes.text(0.012, 0.02, relation, transform=axes.transAxes, fontsize=10.5, color=_MUTED)
    budget, warning = history.epsilon_budget, history.epsilon_warning
    if math.isfinite(warning):
        text = f"half of the budget: {warning:.2f} of ε = {budget:g}"
        _draw_level(axes, budget - warning, _ORANGE, text)
    for names, values in _grouped(history.epsilon_remaining):
        colour, marker = _style_of(names[0], history)
        axes.plot(
            [min(history.rounds) - 1, *history.rounds],
            [history.epsilon_budget, *values],
            color=colour,
            marker=marker,
            linewidth=2.6,
            markersize=7,
            label="Every hospital" if len(names) == len(history.trust) else ", ".join(names),
        )
    if history.least_epsilon_remaining:
        axes.plot(
            history.rounds,
            history.least_epsilon_remaining,
            color=_BLUE,
            marker="o",
            linewidth=2.6,
            markersize=7,
            label="The hospital that has least",
        )
        axes.set_ylim(0, 1.04 * max(budget, *history.least_epsilon_remaining))
        axes.legend(**_LEGEND, loc="upper right")
        return
    without = [name for name in history.trust if name not in history.epsilon_remaining]
    if without:
        axes.plot([], [], " ", label=f"{', '.join(without)}: keeps no ledger")
    axes.set_ylim(0, 1.04 * history.epsilon_budget)
    axes.set_xlim(min(history.rounds) - 1.3, max(history.rounds) + 0.3)
    axes.legend(**_LEGEND, loc="upper right")


def _plot_contributions(axes: Axes, history: History) -> None:
    _dress(axes, "Quality of each hospital's contribution", "Trust after the last round")
    _draw_thresholds(axes)
    names = list(history.trust)
    final = [history.trust[name][-1] for name in names]
    bars = axes.bar(names, final, color=[verdict(value)[1] for value in final], width=0.62)
    if len(names) > _MOST_NAMED:
        axes.tick_params(axis="x", rotation=90, labelsize=max(5, 11 - len(names) // 8))
        axes.set_ylim(0, 1.04)
        axes.set_yticks(_TRUST_TICKS)
        return
    for bar, value in zip(bars, final, strict=True):
        axes.annotate(
            f"{value:.2f}\n{verdict(value)[0]}" if math.isfinite(value) else "no score",
            (bar.get_x() + bar.get_width() / 2, value),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=11.5,
            color=_INK,
            linespacing=1.25,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0},
        )
    axes.set_ylim(0, 1.18)
    axes.set_yticks(_TRUST_TICKS)
    axes.set_xlim(-0.6, len(names) - 0.4)


_LEGEND: Final = {"frameon": True, "framealpha": 0.94, "edgecolor": _GRID, "fontsize": 10.5}


def _dress(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, fontsize=14.5, fontweight="bold", color=_INK, loc="left", pad=10)
    axes.set_ylabel(label, fontsize=12, color=_INK)
    axes.tick_params(labelsize=11, colors=_INK, length=0)
    axes.grid(visible=True, axis="y", color=_GRID, linewidth=1)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)


def _count_rounds(axes: Axes, history: History) -> None:
    axes.set_xlabel("Round", fontsize=12, color=_INK)
    axes.set_xlim(min(history.rounds) - 0.3, max(history.rounds) + 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=15, min_n_ticks=1))


def _draw_thresholds(axes: Axes) -> None:
    """Dashed lines, named beside the plot, where no hospital's line can hide the names."""
    for value, colour, text in (
        (TRUSTED_FROM, _GREEN, f"trusted\nfrom {TRUSTED_FROM}"),
        (EXCLUDED_BELOW, _RED, f"excluded\nbelow {EXCLUDED_BELOW}"),
    ):
        axes.axhline(value, color=colour, linestyle="--", linewidth=1.4, zorder=1)
        axes.annotate(
            text,
            (1.01, value),
            xycoords=("axes fraction", "data"),
            ha="left",
            va="center",
            color=colour,
            fontsize=10.5,
        )


def _draw_level(axes: Axes, value: float, colour: str, text: str) -> None:
    """A dashed line across, with its meaning written on it."""
    axes.axhline(value, color=colour, linestyle="--", linewidth=1.4, zorder=1)
    axes.annotate(
        text,
        (0.012, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 5),
        textcoords="offset points",
        ha="left",
        color=colour,
        fontsize=10.5,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
        zorder=6,
    )


def verdict(trust: float) -> tuple[str, str]:
    """The tutorial's word and colour for a trust score."""
    if trust >= TRUSTED_FROM:
        return "trusted", _GREEN
    return ("marginal", _ORANGE) if trust >= EXCLUDED_BELOW else ("excluded", _RED)


def _with_last(name: str, values: Sequence[float]) -> str:
    if not math.isfinite(values[-1]):
        return f"{name}: not measured"
    return f"{name}: {100 * values[-1]:.1f} %"


def _styled(
    lines: Mapping[str, Sequence[float]],
) -> list[tuple[tuple[str, Sequence[float]], tuple[str, str]]]:
    return [
        (item, _HOSPITAL_STYLES[number % len(_HOSPITAL_STYLES)])
        for number, item in enumerate(lines.items())
    ]


def _style_of(name: str, history: History) -> tuple[str, str]:
    return _HOSPITAL_STYLES[list(history.trust).index(name) % len(_HOSPITAL_STYLES)]


def _grouped(lines: Mapping[str, Sequence[float]]) -> list[tuple[list[str], Sequence[float]]]:
    """Hospitals with the same line, together: drawn apart, one would hide the others."""
    groups: dict[tuple[float, ...], list[str]] = {}
    for name, values in lines.items():
        groups.setdefault(tuple(values), []).append(name)
    return [(names, values) for values, names in groups.items()]


def _write_across(axes: Axes, text: str) -> None:
    axes.text(
        0.5,
        0.5,
        text,
        transform=axes.transAxes,
        ha="center",
        va="center",
        fontsize=14,
        color=_MUTED,
    )
