"""A hospital whose camera or grade nobody else has: its images, and what the page says of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.evidence_results import STUDIES
from benchmarks.results.features import of_one_hospital
from benchmarks.results.page.minority import GRADE_STUDY, SITE_TEST_IMAGES, UNBOUNDED_STUDY
from matl.simulation.cohort import split_images
from matl.simulation.datasets import Images, Part, load_images, store_features
from matl.simulation.study import parse_study, read_study
from tests.benchmarks.made_page import Cell, cell, line, page_of

pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).parents[2]
GRADES, GRADE, E = 3, 2, 4
FEATURES = "made.safetensors"


def made_part(rows: int, draws: np.random.Generator) -> Part:
    labels = np.arange(rows, dtype=np.int64) % GRADES
    values = draws.normal(size=(rows, 6)).astype(np.float32)
    return Part(values, labels)


def stored(folder: Path, *, parts: Mapping[str, Part], sites: np.ndarray) -> Images:
    store_features(folder / FEATURES, parts, sites=sites, ordered=True)
    return load_images(FEATURES, folder=folder)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """Five sites, each with every grade."""
    draws = np.random.default_rng(0)
    rows = {"train": 6000, "test": 90, "public": 90, "holdout": 60}
    parts = {name: made_part(count, draws) for name, count in rows.items()}
    return stored(tmp_path, parts=parts, sites=np.arange(6000) // 3 % 5)


def test_one_hospital_gets_every_patient_of_a_grade_and_nobody_else_loses_others(
    images: Images, tmp_path: Path
) -> None:
    parts, sites = of_one_hospital(images, grade=GRADE)
    of_grade = parts["train"].labels == GRADE
    assert set(sites[of_grade]) == {E}
    assert set(sites[~of_grade]) == {0, 1, 2, 3}
    assert images.sites is not None
    assert of_grade.sum() == (images.labels == GRADE).sum()
    assert (~of_grade).sum() == ((images.labels != GRADE) & (images.sites != E)).sum()
    assert GRADE in parts["holdout"].labels
    again = stored(tmp_path, parts=parts, sites=sites)
    np.testing.assert_array_equal(again.values, parts["train"].values)


def test_as_many_images_of_a_site_are_kept_as_the_page_says(images: Images) -> None:
    table = """
    [hospitals]
    patients = [400, 300, 300, 300, 200]
    by_site = true
    [data]
    set = "made.safetensors"
    holdout_images = 60
    holdout_sites = [0, 1, 2, 3, 4]
    [training]
    dimensions = 4
    """
    (study,) = parse_study(table, name="made").studies
    kept = split_images(images, study, seed=0).site_tests
    assert [len(rows) for rows in kept] == [SITE_TEST_IMAGES] * 5


def test_both_studies_differ_in_the_rule_alone_and_in_rounds_from_table_1() -> None:
    usual, bounded, unbounded = (
        read_study(ROOT / STUDIES / f"{name}.toml").studies
        for name in ("minority", GRADE_STUDY, UNBOUNDED_STUDY)
    )
    for one, other in zip(bounded, unbounded, strict=True):
        assert other.coordinator.rule == "weighted_mean"
        same = one.coordinator.model_copy(update={"rule": "weighted_mean"})
        assert one.model_copy(update={"coordinator": same}) == other
    (before,), (here,) = ({study.training for study in each} for each in (usual, bounded))
    assert before.model_copy(update={"rounds": here.rounds}) == here
    text = " ".join(shown({GRADE_STUDY: [own(90.0)]}).split())
    assert f"but for its rounds, {here.rounds} in place of {before.rounds}" in text


def own(accuracy: float, *, arm: str = "matl", trust: float = 0.9, others: float = 80.0) -> Cell:
    around = [accuracy - 0.5, accuracy, accuracy + 0.5, accuracy, accuracy]
    figures: dict[str, Any] = {
        "suspect_trust": [trust] * 5,
        "suspect_accuracy_percent": around,
        "others_accuracy_percent": [others] * 5,
    }
    return cell("none", 0.1, arm=arm, **figures) | {"holdout_sites": [0, 1, 2, 3, 4]}


def shown(studies: Mapping[str, list[Cell]]) -> str:
    beside = {"robust-n20-eps1": [cell("alie", 0.1)]}
    return page_of({name: {"cells": cells} for name, cells in {**beside, **studies}.items()})


def of_grade(studies: Mapping[str, list[Cell]]) -> str:
    return line(shown(studies), "- **A grade that one hospital alone has")


ALONE = own(80.0, arm="oracle")


def test_a_grade_of_one_hospital_is_not_measured_until_it_stands_beside_the_honest_alone() -> None:
    assert of_grade({}).endswith("was not measured.")
    assert of_grade({GRADE_STUDY: [own(50.0)]}).endswith("was not measured.")
    assert "They were not measured under MATL." in shown({GRADE_STUDY: [ALONE]})
    assert "### A grade that one hospital" not in shown({"minority": [own(50.0)]})


def test_patients_of_a_grade_that_one_hospital_has_pay_where_figures_say_so() -> None:
    studies = {GRADE_STUDY: [own(50.0), ALONE], UNBOUNDED_STUDY: [own(79.0)]}
    text, said = shown(studies), of_grade(studies)
    assert "under MATL: ε = 1: 30.00 ± 0.00. They pay. MATL's trust of E" in said
    assert "at the end: ε = 1: 0.90 ± 0.10. With the weighted mean" in said
    assert "after the same trust: ε = 1: 1.00 ± 0.00. MATL's rule scales" in said
    assert "| ε = 1 | MATL, MODE1 | 0.90 ± 0.10 |" in text
    assert "| ε = 1 | MATL's trust, then the weighted mean | 0.90 ± 0.10 |" in text


@pytest.mark.parametrize("accuracy", [80.0, 90.0])
def test_nobody_is_said_to_pay_where_no_loss_was_found(accuracy: float) -> None:
    said = of_grade({GRADE_STUDY: [own(accuracy), ALONE], UNBOUNDED_STUDY: [own(accuracy)]})
    assert "No loss beyond the interval was found" in said
    assert "pay" not in said
    assert "scales" not in said


def test_the_rule_is_not_blamed_where_the_mean_does_no_better() -> None:
    said = of_grade({GRADE_STUDY: [own(50.0), ALONE], UNBOUNDED_STUDY: [own(40.0)]})
    assert "They pay." in said
    assert "scales" not in said


def test_only_the_noise_with_which_they_pay_is_named() -> None:
    calm = [own(80.0) | {"epsilon": "inf"}, ALONE | {"epsilon": "inf"}]
    assert "They pay (ε = 1)." in of_grade({GRADE_STUDY: [own(50.0), ALONE, *calm]})


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (90.0, "easier than the others' in every row, by 7.0 to 7.0 points"),
        (99.0, "harder than the others' in every row, by 2.0 to 2.0 points"),
        (97.0, "neither easier nor harder than the others' in every row"),
    ],
)
def test_whether_e_has_easy_patients_is_what_the_cells_say(others: float, said: str) -> None:
    text = shown({"minority": [own(97.0, others=others)]})
    assert f"E's patients are {said}" in " ".join(text.split())
    assert f"*E's own patients* are {SITE_TEST_IMAGES} of hospital E" in text
