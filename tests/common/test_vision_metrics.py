import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score

from matl_common.errors import InvalidInputError
from matl_common.vision.metrics import confusion_matrix, evaluate

CLASSES = st.integers(0, 4)


@given(st.lists(st.tuples(CLASSES, CLASSES), min_size=1, max_size=60))
def test_metrics_agree_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = (np.array(column) for column in zip(*pairs, strict=True))
    found = evaluate(labels, predictions)
    assert found.accuracy == pytest.approx(np.mean(labels == predictions))
    recalls = [np.mean(predictions[labels == c] == c) for c in np.unique(labels)]
    assert found.balanced_accuracy == pytest.approx(np.mean(recalls))
    if len(np.unique(np.concatenate([labels, predictions]))) > 1:
        expected = cohen_kappa_score(labels, predictions, weights="quadratic", labels=range(5))
        assert found.quadratic_weighted_kappa == pytest.approx(expected)


def test_balanced_accuracy_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    labels, predictions = rng.integers(0, 5, 300), rng.integers(0, 5, 300)
    expected = balanced_accuracy_score(labels, predictions)
    assert evaluate(labels, predictions).balanced_accuracy == pytest.approx(expected)


def test_perfect_reversed_and_constant_predictions() -> None:
    labels = np.array([0, 1, 2, 3, 4])
    assert evaluate(labels, labels).quadratic_weighted_kappa == 1.0
    assert evaluate(labels, 4 - labels).quadratic_weighted_kappa == pytest.approx(-1.0)
    assert evaluate(labels, np.full(5, 2)).quadratic_weighted_kappa == pytest.approx(0.0)
    assert evaluate(np.zeros(3, int), np.zeros(3, int)).quadratic_weighted_kappa == 1.0


def test_an_absent_class_has_no_recall_and_does_not_lower_the_balance() -> None:
    found = evaluate(np.array([0, 0, 1]), np.array([0, 2, 1]))
    assert found.recall[:2] == (0.5, 1.0)
    assert all(math.isnan(value) for value in found.recall[2:])
    assert found.balanced_accuracy == 0.75
    assert found.images == 3


@pytest.mark.parametrize(
    ("labels", "predictions"), [([], []), ([0, 1], [0]), ([5], [0]), ([0], [-1]), ([[0]], [[0]])]
)
def test_vectors_that_cannot_be_compared_are_refused(
    labels: list[int], predictions: list[int]
) -> None:
    with pytest.raises(InvalidInputError):
        confusion_matrix(np.array(labels, dtype=int), np.array(predictions, dtype=int))
