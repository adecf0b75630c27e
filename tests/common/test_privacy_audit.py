import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from matl_common.errors import InvalidInputError
from matl_common.privacy.audit import audit_epsilon, audit_p_value, correct_guesses

pytestmark = pytest.mark.privacy


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 4.0, 40.0])
@pytest.mark.parametrize(("guesses", "correct"), [(1, 1), (100, 60), (100, 0), (4000, 3300)])
def test_without_delta_the_p_value_is_the_binomial_tail(
    epsilon: float, guesses: int, correct: int
) -> None:
    found = audit_p_value(
        canaries=guesses, guesses=guesses, correct=correct, epsilon=epsilon, delta=0.0
    )
    expected = stats.binom.sf(correct - 1, guesses, 1.0 / (1.0 + math.exp(-epsilon)))
    assert found == pytest.approx(float(expected), rel=1e-9, abs=1e-15)


def test_delta_adds_what_the_theorem_says() -> None:
    canaries, guesses, correct, epsilon, delta = 500, 200, 130, 0.4, 1e-4
    binomial = stats.binom(guesses, 1.0 / (1.0 + math.exp(-epsilon)))
    steepest = max(
        (binomial.cdf(correct - 1) - binomial.cdf(correct - 1 - i)) / i
        for i in range(1, correct + 1)
    )
    found = audit_p_value(
        canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta
    )
    expected = binomial.sf(correct - 1) + 2 * canaries * delta * steepest
    assert found == pytest.approx(float(expected), rel=1e-9)


@given(st.integers(1, 300), st.data())
def test_more_correct_guesses_refute_more_and_a_larger_delta_less(
    guesses: int, data: st.DataObject
) -> None:
    correct = data.draw(st.integers(0, guesses - 1))

    def bound(correct: int, delta: float) -> float:
        return audit_epsilon(
            canaries=400, guesses=guesses, correct=correct, delta=delta, confidence=0.95
        )

    assert bound(correct, 1e-5) <= bound(correct + 1, 1e-5) + 1e-9
    assert bound(correct, 1e-2) <= bound(correct, 0.0) + 1e-9


def test_the_bound_of_randomised_response_holds_as_often_as_it_says() -> None:
    # Answers that are right with odds e^1 are exactly 1-private.
    rng = np.random.default_rng(5)
    correct = rng.binomial(200, math.e / (1.0 + math.e), 2000)
    counts, indices = np.unique(correct, return_inverse=True)
    bounds = np.array(
        [
            audit_epsilon(canaries=200, guesses=200, correct=int(c), delta=0.0, confidence=0.95)
            for c in counts
        ]
    )[indices]
    assert np.mean(bounds > 1.0) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
    assert np.median(bounds) > 0.6


def test_guessing_without_knowledge_refutes_nothing() -> None:
    assert (
        audit_epsilon(canaries=1000, guesses=1000, correct=500, delta=1e-5, confidence=0.95) == 0.0
    )


def test_guesses_are_the_extremes_of_the_scores() -> None:
    included = np.array([True, False, True, False, True])
    scores = np.array([9.0, 1.0, 0.0, 2.0, 3.0])
    assert correct_guesses(scores, included, guesses=2) == 1
    assert correct_guesses(scores, included, guesses=4) == 3
    assert correct_guesses(-scores, included, guesses=4) == 1


@pytest.mark.parametrize("guesses", [0, 3, 6, -2])
def test_guesses_that_cannot_be_halved_are_refused(guesses: int) -> None:
    with pytest.raises(InvalidInputError, match="guesses"):
        correct_guesses(np.zeros(5), np.zeros(5, dtype=np.bool_), guesses=guesses)


@pytest.mark.parametrize(("guesses", "correct"), [(5, 6), (11, 3), (5, -1)])
def test_counts_that_contradict_one_another_are_refused(guesses: int, correct: int) -> None:
    with pytest.raises(InvalidInputError, match="cannot be"):
        audit_p_value(canaries=10, guesses=guesses, correct=correct, epsilon=1.0, delta=0.0)
