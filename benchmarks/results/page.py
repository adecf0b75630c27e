# ruff: noqa: E501  # The page's own lines.
"""``docs/evidence.md``, made from ``docs/results/evidence.json`` and from nothing else."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from matl.simulation.study import NO_ATTACK, ArmName

Cell = Mapping[str, Any]
Rows = Sequence[Sequence[str]]

TARGET_INF: Final = 0.4
TARGET_EPS1: Final = 1.0
TARGET_45: Final = 1.0
TARGET_60: Final = 2.0
MOST_ROUNDS: Final = 2.0
BROKEN_POINTS: Final = 5.0
_TITLES: Final = {
    ArmName.CENTRALISED: "centralised, true labels, no noise",
    ArmName.MEAN_EQUAL: "FedAvg, all alike (the tutorial's)",
    ArmName.MEAN: "FedAvg, by size",
    ArmName.MATL_PEERS: "MATL, MODE0",
    ArmName.MATL: "MATL, MODE1",
    ArmName.ORACLE: "honest hospitals alone",
}


def evidence_page(found: Mapping[str, Any]) -> str:
    """The whole page, Markdown."""
    studies = found["studies"]
    parts = [
        _head(found),
        _tutorial(studies, found["summary"]),
        _tuned(studies),
        _robustness(studies),
        _peers(studies),
        _together(studies),
        _FAILS,
        _again(found),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _head(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    return f"""
# The evidence: accuracy, attackers and privacy, measured

Made by `make evidence` from [results/evidence.json](results/evidence.json); no figure on this page was typed. Every
row is simulated ([how](simulation.md)): training and attackers are the simulation's, every decision is the
coordinator's own code. {machine["cpu"]}, {machine["cores"]} cores, {machine["memory_gb"]:.0f} GB, {found["date"][:10]}. "±" is the 95 % interval over seeds (Student's t); a row without it has one seed. A run that is
not finished is missing here, not estimated: see [what was run](#what-was-run).

The fundus photographs are semi-synthetic: 21,000 patients of five hospitals, each with its own camera and mix of
grades, as features of a public EfficientNet-Lite0. They say nothing about patients.
"""


def _tutorial(studies: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    text = f"""
## Table 1: the tutorial's

The tutorial promises 94.2 % centralised, 87.3 % for FedAvg with hospital E's labels wrong, and 93.8 % for MATL at
ε = 1. Hospitals of 10,000, 5,000, 3,000, 2,000 and 1,000 patients; E, the smallest, records every label the wrong way
round (C − 1 − y). The recipe is the demonstration's, chosen on images of another seed. *Below centralised* is the
distance to centralised training with the same recipe, true labels and no noise, seed by seed; *impact* is what E's
labels cost this row; *trust of E* is at the end. Each seed draws patients, holdout set and noise anew. The fundus test images have every
grade in equal parts, so that accuracy and balanced accuracy agree. Six short rounds do not train to the end: the recipe
chosen for accuracy, below, goes further, centralised most of all.

Targets with E mislabelled: MATL (MODE1) at most {TARGET_INF} points below centralised at ε = ∞, at most {TARGET_EPS1} at
ε = 1. Measured: {_measured(summary)}.

![Accuracy with E's labels right and wrong](images/evidence_tutorial.png)
"""
    for study, title in (
        ("tutorial-fundus", "Fundus photographs"),
        ("tutorial-fashion", "Fashion-MNIST"),
    ):
        cells = studies.get(study, {}).get("cells", [])
        for epsilon in ("1", "inf"):
            for mix in dict.fromkeys(cell["mix"] for cell in cells):
                own = [c for c in cells if c["epsilon"] == epsilon and c["mix"] == mix]
                spread = "" if mix == "sites" else f", {_mix(mix)}"
                text += f"\n### {title}{spread}, {_epsilon(epsilon)}\n\n{_tutorial_table(own)}\n"
    return text


_TABLE_1: Final = {
    "fundus": "fundus",
    "fashion": "Fashion-MNIST with classes spread evenly",
    "fashion_skewed": "Fashion-MNIST with α = 0.5",
}


def _measured(summary: Mapping[str, Any]) -> str:
    said = []
    for name, target, words in (
        ("eps_inf", TARGET_INF, "ε = ∞"),
        ("eps_1", TARGET_EPS1, "ε = 1"),
    ):
        for data, images in _TABLE_1.items():
            gap = summary.get(f"matl_vs_centralised_gap_points_{name}_{data}")
            if gap is not None:
                said.append(
                    f"{images} at {words}: {_interval(gap, 2)} points, {_verdict(gap, target)}"
                )
    return "; ".join(said) or "nothing yet"


def _verdict(gap: Mapping[str, Any], target: float) -> str:
    mean, width = gap["mean"], gap["half_width"]
    if width is None:
        return "from one seed, which settles nothing"
    if mean + width <= target:
        return "met"
    if mean - width > target:
        return "**missed**"
    side = "met by the mean, and" if mean <= target else "**missed** by the mean, though"
    return f"{side} the interval reaches across the target"


def _tutorial_table(cells: Sequence[Cell]) -> str:
    rows = []
    for attack, words in ((NO_ATTACK, "right"), ("label_complement", "all wrong")):
        for arm, title in _TITLES.items():
            for cell in _where(cells, attack=attack, arm=arm):
                rows.append(
                    [
                        words,
                        title,
                        _shown(cell, "accuracy_percent", 2),
                        _shown(cell, "balanced_accuracy_percent", 2),
                        _shown(cell, "kappa", 3),
                        _shown(cell, "below_centralised_points", 2),
                        _shown(cell, "impact_points", 2),
                        _shown(cell, "suspect_trust", 2),
                        _percent(cell, "honest_excluded"),
                        str(len(cell["seeds"])),
                    ]
                )
    return _table(
        [
            "E's labels",
            "who aggregates",
            "accuracy %",
            "balanced %",
            "κ",
            "below centralised",
            "impact",
            "trust of E",
            "honest excluded",
            "seeds",
        ],
        rows,
    )


def _tuned(studies: Mapping[str, Any]) -> str:
    rows = []
    for study, found in studies.items():
        if not study.startswith("tuned-"):
            continue
        for cell in found["cells"]:
            if cell["arm"] not in {ArmName.CENTRALISED, ArmName.MEAN, ArmName.MATL, ArmName.ORACLE}:
                continue
            rows.append(
                [
                    cell["data"],
                    _epsilon(cell["epsilon"]),
                    "right" if cell["attack"] == NO_ATTACK else "all wrong",
                    _TITLES[ArmName(cell["arm"])],
                    _shown(cell, "accuracy_percent", 2),
                    _shown(cell, "below_centralised_points", 2),
                    _percent(cell, "honest_excluded"),
                    _shown(cell, "longest_honest_exclusion_rounds", 1),
                    _shown(cell, "held_rounds", 1),
                    str(len(cell["seeds"])),
                ]
            )
    if not rows:
        return ""
    header = ["data", "ε", "E's labels", "who aggregates", "accuracy %", "below centralised"]
    header += ["honest excluded", "longest exclusion, rounds", "rounds held", "seeds"]
    return f"""
### The same with a recipe chosen for accuracy

[privacy.md](privacy.md) chooses recipes on public images for accuracy alone, with steps so long (learning rates of 256
and 512) that a single hospital's update overshoots its own patients. Then an honest hospital moves against the holdout
set, and trust takes it for harm. With noise, which trust accounts for, this is milder than without.

{_table(header, rows)}
"""


def _robustness(studies: Mapping[str, Any]) -> str:
    cells = [
        cell
        for study, found in studies.items()
        if study.startswith("robust-")
        for cell in found["cells"]
    ]
    if not cells:
        return ""
    text = f"""
## Table 2: attackers

Targets for MATL (MODE1): at most {TARGET_45:.0f} point lost at 45 % on every attack, at most {TARGET_60:.0f} at 60 %,
and no honest hospital without a say for more than two rounds at α = 0.5. On what was run: {_against_targets(cells)}.

Fashion-MNIST's pixels; twenty hospitals of 2,000 to 3,000 patients, or five of the tutorial's sizes. Without noise a
small network, 20 local steps a round for 30 rounds; at ε = 1 the `head` recipe, 20 rounds. Each entry is the worst
over the attacks that were run: points of accuracy below the honest hospitals alone, and the attack that did it.
Baselines are rules without trust, f as claimed for MODE1 or the most they accept. MODE0 claims a fifth of the
hospitals less one, and is shown beyond its claim too.

![Points below the honest hospitals alone, attack by rule](images/evidence_attacks.png)
"""
    for members in sorted({cell["members"] for cell in cells}, reverse=True):
        for epsilon in ("1", "inf"):
            own = [c for c in cells if c["members"] == members and c["epsilon"] == epsilon]
            if own:
                text += f"\n### {members} hospitals, {_epsilon(epsilon)}\n\n{_worst_table(own)}\n"
                text += f"\n{_exclusion_table(own)}\n"
    return text


def _against_targets(cells: Sequence[Cell]) -> str:
    said = []
    for hostile, target in ((9, TARGET_45), (12, TARGET_60)):
        for epsilon in ("inf", "1"):
            ours = [
                c
                for c in _where(cells, arm=ArmName.MATL, epsilon=epsilon)
                if (c["members"], c["hostile"]) == (20, hostile) and "below_oracle_points" in c
            ]
            if not ours:
                continue
            over = [c["attack"] for c in ours if c["below_oracle_points"]["mean"] > target]
            verdict = f"**missed** under {', '.join(over)}" if over else "met"
            said.append(f"{hostile} of 20, {_epsilon(epsilon)}, {len(ours)} attacks: {verdict}")
    waited = [
        c
        for c in _where(cells, arm=ArmName.MATL, mix="dirichlet-0.5")
        if c["longest_honest_exclusion_rounds"]["mean"] > MOST_ROUNDS
    ]
    names = ", ".join(
        f"{c['attack']} ({c['hostile']} of {c['members']}, {_epsilon(c['epsilon'])})"
        for c in waited
    )
    said.append(f"waiting: **missed** under {names}" if waited else "waiting: met")
    return "; ".join(said)


def _worst_table(cells: Sequence[Cell]) -> str:
    arms = [arm for arm in dict.fromkeys(c["arm"] for c in cells) if arm != ArmName.ORACLE]
    rows = []
    for mix, hostile in _groups(cells):
        own = [c for c in cells if (c["mix"], c["hostile"]) == (mix, hostile)]
        attacks = {c["attack"] for c in own}
        rows.append(
            [_mix(mix), _share(own), f"{len(attacks)}", f"{_seeds(own)}"]
            + [_worst([c for c in own if c["arm"] == arm]) for arm in arms]
        )
    return _table(["classes", "hostile", "attacks", "seeds", *arms], rows)


def _exclusion_table(cells: Sequence[Cell]) -> str:
    rows = []
    for mix, hostile in sorted({(c["mix"], c["hostile"]) for c in cells}):
        ours = _where(
            [c for c in cells if (c["mix"], c["hostile"]) == (mix, hostile)], arm=ArmName.MATL
        )
        harmful = [c for c in ours if _harms(cells, c)]
        if not ours:
            continue
        slowest = max(
            (c for c in harmful if "detected_in_round" in c),
            key=lambda c: c["detected_in_round"]["mean"],
            default=None,
        )
        rows.append(
            [
                _mix(mix),
                _share(ours),
                f"{len(harmful)} of {len(ours)}",
                _mean_percent(harmful, "hostile_excluded"),
                _mean_percent(ours, "honest_excluded"),
                _mean_percent(harmful, "hostile_weight"),
                "" if slowest is None else f"{slowest['detected_in_round']['mean']:.0f}",
                str(sum("detected_in_round" not in c for c in harmful)),
                _most(ours, "longest_honest_exclusion_rounds"),
            ]
        )
    header = ["classes", "hostile", "attacks that harm the mean", "excluded of their authors"]
    header += ["honest excluded", "attackers' weight", "slowest detection, round"]
    header += ["never all detected", "longest honest exclusion, rounds"]
    return "MATL (MODE1), over the attacks that cost FedAvg a point or more:\n\n" + _table(
        header, rows
    )


def _peers(studies: Mapping[str, Any]) -> str:
    cells = studies.get("peers", {}).get("cells", [])
    others = [cell for cell in cells if cell["arm"] != ArmName.ORACLE]
    if not others:
        return ""
    ours = [
        cell
        for cell in studies.get("robust-n20", {}).get("cells", [])
        if cell["arm"] == ArmName.MATL and cell["mix"] == others[0]["mix"]
    ]
    arms = list(dict.fromkeys(cell["arm"] for cell in others))
    rows = []
    for hostile, attack in dict.fromkeys((c["hostile"], c["attack"]) for c in others):
        row = [f"{hostile} of 20", attack]
        for arm in (ArmName.MATL, *arms):
            found = [
                c
                for c in [*others, *ours]
                if (c["hostile"], c["attack"], c["arm"]) == (hostile, attack, arm)
            ]
            row.append(_shown(found[0], "below_oracle_points", 1) if found else "")
        rows.append(row)
    return f"""
### Other implementations

Flower's own aggregation functions (flwr 1.41.0, in an interpreter of its own) and ByzFL's aggregators (0.0.11) on the
same hospitals and attackers, without noise, {_mix(others[0]["mix"])}: points below the honest hospitals alone. f is 45 %
of the hospitals, or the most a rule's proof accepts. Empty: not run.

{_table(["hostile", "attack", "MATL", *arms], rows)}
"""


def _together(studies: Mapping[str, Any]) -> str:
    """Privacy, robustness, utility: one row for each share of attackers."""
    found = {
        epsilon: studies.get(name, {}).get("cells", [])
        for epsilon, name in (("inf", "robust-n20"), ("1", "robust-n20-eps1"))
    }
    rows = []
    for mix, hostile in _groups([*found["inf"], *found["1"]]):
        row = [_mix(mix), f"{hostile} of 20"]
        for epsilon in ("inf", "1"):
            own = [c for c in found[epsilon] if (c["mix"], c["hostile"]) == (mix, hostile)]
            best = _where(own, arm=ArmName.ORACLE)
            row.append(_range(best))
            row.append(_worst_accuracy(_where(own, arm=ArmName.MATL)))
            row.append(_worst_accuracy(_where(own, arm=ArmName.MEAN)))
        rows.append(row)
    if not rows:
        return ""
    header = ["classes", "hostile"]
    for words in ("ε = ∞", "ε = 1"):
        header += [f"honest alone, {words}", f"MATL worst, {words}", f"FedAvg worst, {words}"]
    return f"""
## Table 3: privacy, robustness and utility together

Accuracy in percent on Fashion-MNIST, 20 hospitals: of the honest hospitals alone, and of MATL and FedAvg under the
worst attack that was run. The models differ (a network without noise, a linear head at ε = 1), so the two halves are
read along their rows, not against each other. Empty: not run.

{_table(header, rows)}
"""


_FAILS: Final = f"""
## Where it breaks

- **Rules without trust.** An entry of more than {BROKEN_POINTS:.0f} points in table 2 is
  where its rule broke, and the attack that did it is beside it. Distance rules (Krum, Multi-Krum, Bulyan) need more updates than
  45 % leaves them and then run with a smaller f than there are attackers.
- **MODE0 breaks beyond its claim.** Without a holdout set nothing tells nine coordinated hospitals of twenty from
  eleven honest ones whose patients differ; it says so at start, and so do the rows above.
- **A stronger attacker** than these has the holdout set, or its gradient (`leaked_root` is a first one), or moves the
  model only where the holdout set has no image: a trigger (`replacement`, `backdoor`) leaves accuracy alone and the
  trust rule sees nothing. Or it is honest until it no longer pays (`sleeper`), or drifts so slowly that each round
  still helps (`slow_reversal`).
- **The holdout set's bias is the coordinator's, and a minority hospital pays for it.** Trust asks whether an update
  helps the holdout set. A hospital whose camera or class mix it lacks helps less, and counts less, though it is honest;
  enrolled class mixes make up for different classes and not for different cameras. *Honest excluded* and *longest
  honest exclusion* say how often that happened, or anything else that kept an honest hospital out. Balance the holdout
  set over sites, not over classes alone.
- **Long steps read as harm.** Where a step is so long that a hospital overshoots its own patients, an honest update
  points away from the holdout set's optimum, and without noise to excuse it the hospital is excluded: see the recipe
  chosen for accuracy, where it was run. Use steps that each hospital's own loss survives.
- **The cap on sizes costs accuracy where few hospitals differ in classes.** Enrolled sizes are capped so that f hospitals
  never hold half of the weight, which takes say from the largest. *Honest hospitals alone* have the same cap: where that
  row is below FedAvg by size, it is the cap's price and not the attacker's.
- **Honest hospitals that wait.** *Longest honest exclusion* above two rounds misses its target; the row names the attack,
  or none, under which it happened.
- **More than half hostile** is beyond what the mode claims (45 %). The rows with 60 % are there to show what happens,
  not what is promised.
"""


def _again(found: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            f"{study['finished_runs']} of {study['asked_runs']}",
            str(len({(c["attack"], c["mix"], c["hostile"], c["epsilon"]) for c in study["cells"]})),
            ", ".join(map(str, sorted({seed for c in study["cells"] for seed in c["seeds"]}))),
        ]
        for name, study in found["studies"].items()
    ]
    table = _table(["study", "runs finished", "federations under attack", "seeds"], rows)
    return f"""
## What was run

{table}

    make evidence                        # goes on where it was stopped; all of it takes days of two cores
    make evidence ARGS='--only tutorial-fundus,tutorial-fashion'
    make evidence ARGS='--tables'        # only write what is finished
    python -m benchmarks.results.peers   # Flower's and ByzFL's own rules; make peers installs them
    make evidence-quick                  # digits, some minutes: the order of the rules, with tolerance

Studies are in `benchmarks/studies/`; each can be run by itself with `matl simulate`. Runs are kept in `out/evidence`
under a digest of the code and features that enter them. The command of this page: `{found["command"]}`.
"""


def _where(cells: Iterable[Cell], **wanted: str) -> list[Cell]:
    return [c for c in cells if all(c[key] == value for key, value in wanted.items())]


def _groups(cells: Sequence[Cell]) -> list[tuple[str, int]]:
    """Class mixes and numbers of hostile hospitals that were run."""
    return sorted({(c["mix"], c["hostile"]) for c in cells if c["attack"] != NO_ATTACK})


def _harms(cells: Sequence[Cell], cell: Cell) -> bool:
    same = ("members", "hostile", "mix", "epsilon", "attack")
    mean = [c for c in _where(cells, arm=ArmName.MEAN) if all(c[key] == cell[key] for key in same)]
    return any(c["below_oracle_points"]["mean"] >= 1.0 for c in mean if "below_oracle_points" in c)


def _worst(cells: Sequence[Cell]) -> str:
    known = [c for c in cells if "below_oracle_points" in c]
    if not known:
        return ""
    worst = max(known, key=lambda c: c["below_oracle_points"]["mean"])
    gap = worst["below_oracle_points"]["mean"]
    text = f"{gap:.1f} ({worst['attack']})"
    return f"**{text}**" if gap > BROKEN_POINTS else text


def _worst_accuracy(cells: Sequence[Cell]) -> str:
    if not cells:
        return ""
    worst = min(cells, key=lambda c: c["accuracy_percent"]["mean"])
    return f"{_shown(worst, 'accuracy_percent', 1)} ({worst['attack']})"


def _range(cells: Sequence[Cell]) -> str:
    found = [c["accuracy_percent"]["mean"] for c in cells]
    if not found:
        return ""
    low, high = min(found), max(found)
    return f"{low:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"


def _share(cells: Sequence[Cell]) -> str:
    return f"{cells[0]['hostile']} of {cells[0]['members']}"


def _seeds(cells: Sequence[Cell]) -> str:
    counts = {len(c["seeds"]) for c in cells}
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def _mean_percent(cells: Sequence[Cell], name: str) -> str:
    values = [c[name]["mean"] for c in cells if name in c]
    return f"{100 * sum(values) / len(values):.1f} %" if values else ""


def _most(cells: Sequence[Cell], name: str) -> str:
    found = [c for c in cells if name in c]
    if not found:
        return ""
    worst = max(found, key=lambda c: c[name]["mean"])
    return f"{worst[name]['mean']:.1f} ({worst['attack']})"


def _shown(cell: Cell, name: str, digits: int) -> str:
    found = cell.get(name)
    return "" if found is None else _interval(found, digits)


def _interval(found: Mapping[str, Any], digits: int) -> str:
    width = "" if found["half_width"] is None else f" ± {found['half_width']:.{digits}f}"
    return f"{found['mean']:.{digits}f}{width}"


def _percent(cell: Cell, name: str) -> str:
    found = cell.get(name)
    return "" if found is None else f"{100 * found['mean']:.0f} %"


def _epsilon(text: str) -> str:
    return "no noise (ε = ∞)" if text == "inf" else f"ε = {text}"


def _mix(name: str) -> str:
    return {"iid": "iid", "sites": "by site"}.get(name, name.replace("dirichlet-", "α = "))


def _table(header: Sequence[str], rows: Rows) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
