"""The robustness evidence: its simulation, its figures, and a whole quick run."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks import evidence_robust
from benchmarks.robust.report import misses
from benchmarks.robust.settings import attacks_on, federation, federations, under
from benchmarks.robust.summary import cells_of, summarise
from matl.simulation.datasets import DataSet
from matl.simulation.outcome import Outcome
from matl.simulation.study import ArmName
from tests.simulation.outcomes import made_outcome

# The quick run takes ten seconds of a core, and minutes where many share one.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    folder = tmp_path_factory.mktemp("evidence")
    evidence_robust.main(quick=True, processes=1, out=folder)
    assert (folder / "robust-quick.png").stat().st_size > 0
    result: Mapping[str, Any] = json.loads((folder / "robust-quick.json").read_text())
    return result


def test_a_quick_run_leaves_every_figure_that_carries_a_target(quick: Mapping[str, Any]) -> None:
    assert {"machine", "date", "command", "measurements", "summary"} <= set(quick)
    for name in ("worst_gap_points_45pct", "tpr", "fpr"):
        for key in (name, f"{name}_eps1"):
            assert isinstance(quick["summary"][key], float), key


def test_in_a_quick_run_sign_flips_ruin_the_mean_and_not_our_rule(
    quick: Mapping[str, Any],
) -> None:
    flips = [c for c in quick["measurements"]["cells"] if c["attack"] == "sign_flip_5"]
    gaps = {(c["mix"], c["private"], c["arm"]): c["gap_points"] for c in flips}
    settings = {(mix, private) for mix, private, _ in gaps}
    assert settings
    for mix, private in settings:
        assert gaps[mix, private, "mean"] > 30.0
        assert gaps[mix, private, "matl"] < 2.0


def test_in_a_quick_run_mislabelling_hospitals_are_excluded_and_no_others(
    quick: Mapping[str, Any],
) -> None:
    cells = [
        c
        for c in quick["measurements"]["cells"]
        if c["attack"] == "label_complement" and c["arm"] == "matl"
    ]
    assert cells
    for cell in cells:
        assert cell["tpr"] >= 0.8
        assert cell["fpr"] <= 0.05


def outcome(
    arm: str, *, accuracy: float, attack: str = "sign_flip_1", seed: int = 0, caught: float = 0.0
) -> Outcome:
    return made_outcome(
        accuracy=accuracy,
        seed=seed,
        attack=attack,
        arm=arm,
        hostile_excluded=caught,
        honest_excluded=0.1,
        hostile_weightless=caught,
        hostile_weight=0.45,
    )


def test_the_worst_gap_is_the_largest_mean_over_seeds_and_harmless_attacks_need_no_catching() -> (
    None
):
    runs = []
    for seed, ours in ((0, 0.88), (1, 0.86)):
        runs += [
            outcome("oracle", accuracy=0.9, seed=seed),
            outcome("mean", accuracy=0.2, seed=seed),
            outcome("matl", accuracy=ours, seed=seed, caught=1.0),
            outcome("oracle", accuracy=0.9, attack="alie", seed=seed),
            outcome("mean", accuracy=0.895, attack="alie", seed=seed),
            outcome("matl", accuracy=0.9, attack="alie", seed=seed),
        ]
    figures = summarise(cells_of(runs))
    assert figures["worst_gap_points_45pct"] == pytest.approx(3.0)
    assert figures["worst_attack_45pct"] == "sign_flip_1 (iid)"
    assert figures["tpr"] == 1.0
    assert figures["tpr_all_attacks"] == 0.5
    assert figures["fpr"] == pytest.approx(0.1)


def test_figures_beyond_their_targets_are_named_with_the_attack() -> None:
    lines = misses(
        {
            "worst_gap_points_45pct": 3.0,
            "worst_attack_45pct": "mimic (iid)",
            "tpr": 0.5,
            "tpr_worst_attack": "mimic (iid): 10%",
            "fpr": 0.06,
            "fpr_eps1": 0.05,
        }
    )
    assert len(lines) == 3
    assert "mimic" in lines[0]


def test_all_federations_are_run_with_every_attack_that_fits() -> None:
    studies = federations(DataSet.FASHION)
    assert len(studies) == len(set(studies)) == 2 * 2 * 2
    calm = federation(DataSet.FASHION, 20, alpha=0.5, private=False)
    noisy = federation(DataSet.FASHION, 20, alpha=0.5, private=True)
    assert "noise_free_ipm" not in attacks_on(calm, seed=0)
    assert "noise_free_ipm" in attacks_on(noisy, seed=0)
    assert "nan" not in attacks_on(noisy, seed=1)
    for study in (calm, noisy):
        assert [under(study, attack).hostile.attack for attack in attacks_on(study, seed=0)]


def test_rules_for_context_run_on_the_first_split_alone() -> None:
    assert evidence_robust.arms_of(0, ()) == evidence_robust.ARMS
    assert ArmName.MEDIAN not in evidence_robust.arms_of(1, ())
    assert ArmName.ORACLE in evidence_robust.arms_of(1, (ArmName.MEDIAN,))
