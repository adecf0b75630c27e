"""The plots of docs/evidence.md. Computes nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from matl.simulation.study import NO_ATTACK, ArmName

ATTACKS_PLOT: Final = "evidence_attacks.png"
TUTORIAL_PLOT: Final = "evidence_tutorial.png"
_DARK_FROM: Final = 10.0


def draw(found: Mapping[str, Any], folder: Path) -> None:
    """Whatever there are cells for."""
    import matplotlib as mpl

    mpl.use("Agg")
    _draw_tutorial(found["studies"].get("tutorial-fundus", {}).get("cells", []), folder)
    _draw_attacks(found["studies"], folder)


def _draw_tutorial(cells: list[Mapping[str, Any]], folder: Path) -> None:
    from matplotlib import pyplot as plt

    if not cells:
        return
    arms = list(dict.fromkeys(cell["arm"] for cell in cells))
    figure, axes = plt.subplots(1, 2, figsize=(8.0, 2.8), sharey=True, layout="constrained")
    for axis, epsilon in zip(axes, ("inf", "1"), strict=True):
        for offset, attack, label in (
            (-0.2, NO_ATTACK, "right"),
            (0.2, "label_complement", "wrong"),
        ):
            own = {
                c["arm"]: c["accuracy_percent"]
                for c in cells
                if c["epsilon"] == epsilon and c["attack"] == attack
            }
            places = [i for i, arm in enumerate(arms) if arm in own]
            values = [own[arms[i]] for i in places]
            axis.bar(
                [place + offset for place in places],
                [each["mean"] for each in values],
                0.38,
                yerr=[each["half_width"] or 0.0 for each in values],
                label=f"E's labels {label}",
            )
        axis.set_title("no noise" if epsilon == "inf" else "ε = 1", fontsize=9)
        axis.set_xticks(range(len(arms)), arms, rotation=30, ha="right", fontsize=7)
    low = min(c["accuracy_percent"]["mean"] for c in cells)
    axes[0].set_ylim(low - 3.0, 100.0)
    axes[0].set_ylabel("accuracy, %", fontsize=8)
    axes[0].legend(fontsize=7)
    figure.suptitle("Semi-synthetic fundus photographs, 95 % intervals over seeds", fontsize=9)
    figure.savefig(folder / TUTORIAL_PLOT, dpi=120)
    plt.close(figure)


def _draw_attacks(studies: Mapping[str, Any], folder: Path) -> None:
    """Points below the honest alone, attack by rule, where most attacks were run."""
    from matplotlib import pyplot as plt

    panels = []
    for name in ("robust-n20-eps1", "robust-n20"):
        cells = [
            c
            for c in studies.get(name, {}).get("cells", [])
            if c["attack"] != NO_ATTACK
            and c["arm"] != ArmName.ORACLE
            and "below_oracle_points" in c
        ]
        for group in dict.fromkeys((c["mix"], c["hostile"], c["epsilon"]) for c in cells):
            own = [c for c in cells if (c["mix"], c["hostile"], c["epsilon"]) == group]
            panels.append((group, own))
    panels = sorted(panels, key=lambda panel: -len(panel[1]))[:4]
    if not panels:
        return
    arms = list(dict.fromkeys(c["arm"] for _, own in panels for c in own))
    attacks = list(dict.fromkeys(c["attack"] for _, own in panels for c in own))
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(2.0 + 3.4 * len(panels), 1.4 + 0.22 * len(attacks)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis, ((mix, hostile, epsilon), own) in zip(axes[0], panels, strict=True):
        grid = [[float("nan")] * len(arms) for _ in attacks]
        for cell in own:
            row, column = attacks.index(cell["attack"]), arms.index(cell["arm"])
            gap = grid[row][column] = cell["below_oracle_points"]["mean"]
            ink = "white" if gap > _DARK_FROM else "black"
            axis.text(column, row, f"{round(gap)}", color=ink, ha="center", va="center", fontsize=6)
        image = axis.imshow(grid, cmap="YlOrRd", vmin=0.0, vmax=20.0, aspect="auto")
        axis.set_xticks(range(len(arms)), arms, rotation=60, ha="right", fontsize=7)
        axis.set_yticks(range(len(attacks)), attacks, fontsize=7)
        words = "no noise" if epsilon == "inf" else f"ε = {epsilon}"
        axis.set_title(f"{hostile} of 20, {mix}, {words}", fontsize=8)
    figure.colorbar(image, ax=axes, label="points below the honest alone", shrink=0.6)
    figure.savefig(folder / ATTACKS_PLOT, dpi=110)
    plt.close(figure)
