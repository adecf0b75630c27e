"""The evidence's tables: made from the runs alone, and the order of the rules."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from benchmarks import evidence_results
from benchmarks.results.gather import cells_of, runs_of
from benchmarks.results.ordering import tutorial_violations, violations
from benchmarks.results.page import evidence_page
from benchmarks.results.publication import summary_of, text_of
from matl.simulation.campaign import Job, LocalEngine, jobs_of, open_finished, run_jobs
from matl.simulation.intervals import interval
from matl.simulation.outcome import Outcome
from matl.simulation.study import ArmName, Hostile, Study, StudyFile, read_study
from tests.simulation.outcomes import made_outcome

pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).parents[2]


def quick_file() -> StudyFile:
    """One federation of ``make evidence-quick``, under the attack that costs FedAvg most."""
    file = read_study(ROOT / evidence_results.STUDIES / "quick.toml")
    studies = [s for s in file.studies if s.hostile.attack == "sign_flip_5"]
    arms = (ArmName.ORACLE, ArmName.MATL, ArmName.MEAN, ArmName.MULTI_KRUM)
    return replace(file, rows=(tuple(studies[:1]),), arms=arms, seeds=(0,))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Job, list[Outcome]]]:
    folder = tmp_path_factory.mktemp("quick")
    jobs = jobs_of(quick_file())
    kept, console = open_finished(folder, "quick"), Console(stderr=True)
    return run_jobs(jobs, kept, engine=LocalEngine(1), console=console)


def cells(found: Sequence[tuple[Job, Sequence[Outcome]]]) -> list[dict[str, Any]]:
    return cells_of(runs_of(found))


def test_every_quick_study_is_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = typer.Typer()
    command.command()(evidence_results.main)
    asked = ["--quick", "--processes", "1", "--out", str(tmp_path)]
    done = CliRunner().invoke(command, asked)
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "quick.json").read_text(encoding="utf-8"))
    assert len(result["cells"]) == 56
    assert result["violations"] == []


def test_a_trust_rule_that_trusts_everybody_is_out_of_order(
    found: list[tuple[Job, list[Outcome]]],
) -> None:
    ((job, outcomes),) = found
    assert violations(cells(found)) == []
    mean = next(each for each in outcomes if each.arm == ArmName.MEAN)
    blind = [replace(mean, arm=ArmName.MATL) if o.arm == ArmName.MATL else o for o in outcomes]
    said = violations(cells([(job, blind)]))
    assert [re.sub(r"-?\d+\.\d", "#", line.split(": ")[1]) for line in said] == [
        "MATL is # points below the honest alone",
        "MATL is # points below the honest alone on one seed",
        "MATL gains only # points on FedAvg",
        "MATL gains only # points on Multi-Krum",
        "MATL excludes 0% of the hostile",
    ]
    assert "gains only 0.0 points on FedAvg" in said[2]
    strict = [replace(o, honest_excluded=0.2) if o.arm == ArmName.MATL else o for o in outcomes]
    assert "excludes 20% of the honest" in violations(cells([(job, strict)]))[0]


@pytest.mark.parametrize(
    ("attack", "gaps", "said"),
    [
        ("alie", (0.0, -1.4, 4.0), []),
        ("alie", (0.0, 0.0, 5.5), ["5.5 points below the honest alone on one seed"]),
        ("alie", (2.5, 2.0, 2.4), ["2.3 points below the honest alone"]),
        ("mimic", (10.0, 30.0, 60.0), ["33.3 points below", "60.0 points below"]),
        ("sign_flip_5", (0.0, 1.0, 0.5), []),
        (
            "sign_flip_5",
            (3.0, 20.0, 40.0),
            ["21.0 points", "40.0 points", "-11.0 points on Multi-"],
        ),
    ],
)
def test_matl_is_out_of_order_where_it_fails_on_some_seeds_only(
    attack: str, gaps: tuple[float, ...], said: list[str]
) -> None:
    study = Study.model_validate({"hostile": {"attack": attack, "share": 0.4}})
    found = []
    for seed, gap in enumerate(gaps):
        accuracies = {"oracle": 0.9, "mean": 0.3, "multi-krum": 0.8, "matl": 0.9 - gap / 100.0}
        found.append((Job(study, seed, (ArmName.MATL,)), outcomes_of(study, accuracies, seed)))
    lines = violations(cells(found))
    assert len(lines) == len(said)
    assert all(part in line for part, line in zip(said, lines, strict=True))


TUTORIAL = {"centralised": 0.93, "fedavg-equal": 0.86, "mean": 0.925, "matl": 0.925}


@pytest.mark.parametrize(
    ("changed", "trust", "said"),
    [
        ({}, 0.1, []),
        ({"matl": 0.89}, 0.1, ["4.0 points below centralised", "loses 3.5 points"]),
        ({"fedavg-equal": 0.91}, 0.1, ["gains only 1.5 points"]),
        ({}, 0.6, ["trusts E by 0.60"]),
    ],
)
def test_table_1_on_digits_is_out_of_order_when_matl_falls_behind_or_trusts_e(
    changed: dict[str, float], trust: float, said: list[str]
) -> None:
    study = Study(hostile=Hostile(attack="label_complement", hospitals=("hospital_e",)))
    found = []
    for seed in range(3):
        made = outcomes_of(study, TUTORIAL | changed, seed)
        made = [replace(each, trust={"hospital_e*": trust}) for each in made]
        found.append((Job(study, seed, (ArmName.MATL,)), made))
    lines = tutorial_violations(cells(found))
    assert len(lines) == len(said)
    assert all(part in line for part, line in zip(said, lines, strict=True))


def test_an_honest_hospital_that_is_excluded_puts_table_1_out_of_order() -> None:
    study = Study(hostile=Hostile(attack="label_complement", hospitals=("hospital_e",)))
    made = [replace(each, honest_excluded=0.25) for each in outcomes_of(study, TUTORIAL, 0)]
    (line,) = tutorial_violations(cells([(Job(study, 0, (ArmName.MATL,)), made)]))
    assert "excludes 25% of the honest" in line


def outcomes_of(study: Study, accuracies: Mapping[str, float], seed: int) -> list[Outcome]:
    return [
        made_outcome(
            accuracy=accuracy,
            data_set="x",
            members=5,
            byzantine=2,
            hostile=study.hostile_count,
            epsilon=1.0,
            seed=seed,
            attack=study.hostile.attack,
            arm=arm,
            rounds=3,
            hostile_excluded=1.0,
            hostile_weightless=1.0,
            detected_in=1,
            trust={"hospital_e*": 0.1},
        )
        for arm, accuracy in accuracies.items()
    ]


def test_gaps_and_impacts_are_taken_seed_by_seed() -> None:
    table = {"hostile": {"attack": "label_complement", "hospitals": ["hospital_e"]}}
    wrong, right = Study.model_validate(table), Study()
    arms = (ArmName.CENTRALISED, ArmName.MATL)
    found = []
    for seed, level in ((0, 0.90), (1, 0.70)):
        after = {"centralised": level, "matl": level - 0.01 * (seed + 1)}
        before = {"centralised": level, "matl": level}
        found += [
            (Job(wrong, seed, arms), outcomes_of(wrong, after, seed)),
            (Job(right, seed, arms), outcomes_of(right, before, seed)),
        ]
    cell = next(c for c in cells(found) if (c["arm"], c["hostile"]) == ("matl", 1))
    assert cell["seeds"] == [0, 1]
    assert cell["measurements"]["accuracy_percent"] == [89.0, 68.0]
    for name in ("below_centralised_points", "impact_points"):
        assert cell[name] == {"mean": 1.5, "half_width": pytest.approx(6.353), "runs": 2}
    assert cell["suspect_trust"]["mean"] == 0.1
    assert "impact_points" not in next(c for c in cells(found) if c["hostile"] == 0)


def test_every_interval_can_be_made_again_from_what_was_measured_seed_by_seed() -> None:
    found = [
        (Job(Study(), seed, (ArmName.MATL,)), outcomes_of(Study(), {"matl": level}, seed))
        for seed, level in ((1, 0.7), (0, 0.9), (2, 0.85))
    ]
    (cell,) = cells(found)
    assert cell["measurements"]["accuracy_percent"] == [90.0, 70.0, 85.0]
    for name, values in cell["measurements"].items():
        again = interval(values)
        assert again is not None
        assert cell[name]["mean"] == pytest.approx(again.mean, abs=1e-3)
        assert cell[name]["half_width"] == pytest.approx(again.half_width, abs=1e-3)


def test_what_nobody_measured_is_missing_and_not_nothing() -> None:
    held = [replace(o, **NOTHING_RELEASED) for o in outcomes_of(Study(), {"matl": 0.1}, 0)]
    (cell,) = cells([(Job(Study(), 0, (ArmName.MATL,)), held)])
    assert not {"hostile_weight", "backdoor_success", "detected_in_round"} & cell.keys()
    assert not {"hostile_weight", "backdoor_success"} & cell["measurements"].keys()
    assert (cell["held_rounds"]["mean"], cell["rounds"]["mean"]) == (3.0, 3.0)


def test_cells_tell_holdout_sets_apart_and_have_the_accuracy_on_the_suspects_own_patients() -> None:
    base = {"hospitals": {"by_site": True, "patients": [50] * 5}}
    found = []
    for sites in ([0, 1, 2, 3, 4], [0, 1, 2, 3]):
        study = Study.model_validate(base | {"data": {"holdout_sites": sites}})
        outcome = made_outcome(accuracy=0.9, site_accuracy=(0.8, 0.8, 0.6, 0.6, 0.5))
        found.append((Job(study, 0, (ArmName.MATL,)), [outcome]))
    both = cells(found)
    assert [cell["holdout_sites"] for cell in both] == [[0, 1, 2, 3, 4], [0, 1, 2, 3]]
    assert both[0]["suspect_accuracy_percent"]["mean"] == 50.0
    assert both[0]["others_accuracy_percent"]["mean"] == pytest.approx(70.0)


NOTHING_RELEASED: dict[str, Any] = {
    "hostile_weight": None,
    "backdoor_success": None,
    "detected_in": None,
    "held_rounds": 3,
}


def test_the_published_page_is_what_the_published_figures_give() -> None:
    text = (ROOT / evidence_results.RESULTS).read_text(encoding="utf-8")
    published = json.loads(text)
    assert text_of(published) == text
    assert evidence_page(published) == (ROOT / evidence_results.PAGE).read_text(encoding="utf-8")
    assert published["summary"] == summary_of(published["studies"])
    for key in ("eps_inf", "eps_1"):
        assert isinstance(published["summary"][f"matl_vs_centralised_gap_points_{key}"], float)


def test_the_first_rows_of_all_studies_are_run_before_any_second_one() -> None:
    parts = list(
        evidence_results.row_by_row(evidence_results.studies_of(["robust-n20", "robust-n5"]))
    )
    assert [part.name for part in parts[:4]] == ["robust-n20", "robust-n5"] * 2
    assert {each.hostile.share for each in parts[0].studies} == {0.0, 0.45}
    assert sum(len(part.studies) for part in parts) == sum(
        len(file.studies) for file in evidence_results.studies_of(["robust-n20", "robust-n5"])
    )


def test_every_study_of_the_page_can_be_read_and_no_other_is_there() -> None:
    files = evidence_results.studies_of([])
    assert [file.name for file in files] == list(evidence_results.ORDER)
    there = {path.stem for path in (ROOT / evidence_results.STUDIES).glob("*.toml")}
    assert there == {*evidence_results.ORDER, *evidence_results.QUICK}
