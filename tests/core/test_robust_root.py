import math

import numpy as np
import pytest

from matl_common.ids import NodeId
from matl_common.protocol import PrivacyTerms, Recipe, TrainingPlan
from matl_coordinator.core.robust.gram import AggregationError, Float64Array, Gram, RowFacts
from matl_coordinator.core.robust.root import (
    RootRow,
    cosines_with,
    project_on_root,
    update_noise_std,
)

A = NodeId("a")
ROOT = tuple(
    RootRow(f"root-{label}-{fold}", label, fold, images=5) for label in (0, 1) for fold in (0, 1, 2)
)


def gram_of(update: Float64Array, gradients: Float64Array) -> Gram:
    rows = np.vstack([update, gradients])
    return Gram(
        matrix=rows @ rows.T,
        nodes=(A,),
        extras=tuple(row.name for row in ROOT),
        weights=np.ones(1),
        facts=(RowFacts(),) * len(rows),
        elements=rows.shape[1],
    )


GRADIENTS = np.array([[1.0, 0], [2.0, 0], [3.0, 0], [0, 4.0], [0, 6.0], [0, 8.0]])
UPDATE = np.array([[10.0, 1.0]])


def test_without_a_label_mix_every_class_of_the_root_set_counts_the_same() -> None:
    (found,) = project_on_root(gram_of(UPDATE, GRADIENTS), ROOT)
    assert found.projection == pytest.approx(0.5 * 10 * 2 + 0.5 * 1 * 6)
    assert found.reference_norm == pytest.approx(math.hypot(0.5 * 2, 0.5 * 6))


def test_the_reference_is_half_way_between_the_hospitals_mix_and_the_root_sets() -> None:
    (found,) = project_on_root(gram_of(UPDATE, GRADIENTS), ROOT, label_shares={A: [1.0, 0.0]})
    assert found.projection == pytest.approx(0.75 * 10 * 2 + 0.25 * 1 * 6)


def test_a_cosine_with_an_extra_row_is_of_every_update_that_has_a_direction() -> None:
    b, c = NodeId("b"), NodeId("c")
    rows = {A: np.array([1.0, 1.0]), b: np.array([-3.0, 0.0]), c: np.zeros(2)}
    gram = Gram.of(rows, {"other": np.array([0.0, 5.0]), "row": np.array([7.0, 0.0])})
    assert cosines_with(gram, "row") == pytest.approx({A: math.sqrt(0.5), b: -1.0})
    assert cosines_with(gram, "none") == {}
    assert cosines_with(Gram.of(rows, {"row": np.zeros(2)}), "row") == {}


def test_the_standard_error_comes_from_the_spread_between_folds() -> None:
    (found,) = project_on_root(gram_of(UPDATE, GRADIENTS), ROOT)
    # ⟨update, fold⟩: 10, 20, 30 (variance 100) and 4, 6, 8 (variance 4), three folds each.
    assert found.standard_error == pytest.approx(math.sqrt(0.25 * 100 / 3 + 0.25 * 4 / 3))


def test_a_hospital_of_classes_the_root_set_lacks_is_judged_by_the_classes_there_are() -> None:
    gram = gram_of(UPDATE, GRADIENTS)
    (found,) = project_on_root(gram, ROOT, label_shares={A: [0.0, 0.0, 1.0]})
    assert found == project_on_root(gram, ROOT)[0]


def test_missing_rows_and_single_folds_and_bad_shares_are_refused() -> None:
    gram = gram_of(UPDATE, GRADIENTS)
    with pytest.raises(AggregationError, match="root-7-0"):
        project_on_root(gram, [*ROOT, RootRow("root-7-0", 0, 3, 1)])
    with pytest.raises(AggregationError, match=r"classes \[1\] have fewer than two folds"):
        project_on_root(gram, ROOT[:4])
    with pytest.raises(AggregationError, match="no gradient rows"):
        project_on_root(gram, [])
    for shares in ([1.0], [1.0, -1.0], [math.nan, 1.0]):
        with pytest.raises(AggregationError, match="label share"):
            project_on_root(gram, ROOT, label_shares={A: shares})


def plan(recipe: Recipe) -> TrainingPlan:
    return TrainingPlan(
        recipe=recipe,
        backbone="small_gn",
        backbone_digest=None,
        image_size=32,
        views=1,
        steps_per_round=4,
        learning_rate=3.0,
        batch_size=32,
    )


def terms(sample_rate: float) -> PrivacyTerms:
    return PrivacyTerms(
        unit="patient",
        adjacency="add-or-remove-one",
        target_epsilon=1.0,
        target_delta=1e-5,
        noise_multiplier=20.0,
        max_grad_norm=0.5,
        sample_rate=sample_rate,
        max_steps=40,
    )


def test_the_noise_of_an_update_follows_from_the_policy_and_the_enrolled_size() -> None:
    head = update_noise_std(plan(Recipe.HEAD), terms(1.0), patients=100)
    assert head == pytest.approx(3.0 * math.sqrt(4) * 20.0 * 0.5 / 100)
    full = update_noise_std(plan(Recipe.FULL), terms(0.25), patients=100)
    assert full == pytest.approx(3.0 * math.sqrt(4) * 20.0 * 0.5 / 25)
    with pytest.raises(AggregationError, match="at least 1"):
        update_noise_std(plan(Recipe.HEAD), terms(1.0), patients=0)


@pytest.mark.privacy
def test_simulated_noise_has_the_standard_deviation_the_policy_promises() -> None:
    random = np.random.default_rng(7)
    steps = random.normal(0.0, 20.0 * 0.5, size=(4, 200_000))
    update = -3.0 / 100 * steps.sum(axis=0)
    expected = update_noise_std(plan(Recipe.HEAD), terms(1.0), patients=100)
    assert update.std() == pytest.approx(expected, rel=0.01)
