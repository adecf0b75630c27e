"""What a hospital says of a model is taken as a number that can be, or as a doubt."""

import math

import pytest

from matl_common.protocol import NoisedCount
from matl_coordinator.core.evaluations import HospitalEvaluation, take_evaluation


@pytest.mark.parametrize("correct", [0.0, 900.5, 1000.0, -719.0, 1099.0 + 720.0])
def test_a_count_that_noise_can_explain_is_kept_as_it_is(correct: float) -> None:
    found = take_evaluation(NoisedCount(correct, 120.0), enrolled_patients=1000)
    assert found == HospitalEvaluation(correct, 120.0, 1000)


@pytest.mark.parametrize(
    ("correct", "why"),
    [
        (math.nan, "no number"),
        (math.inf, "no number"),
        (-math.inf, "no number"),
        (-721.0, "cannot be"),
        (1100.0 + 721.0, "1821 correct of 1000"),
        (1e300, "cannot be"),
    ],
)
def test_a_count_that_cannot_be_is_a_doubt_and_no_number(correct: float, why: str) -> None:
    found = take_evaluation(NoisedCount(correct, 120.0), enrolled_patients=1000)
    assert found.correct is None
    assert why in found.doubt
    assert (found.stddev, found.patients) == (120.0, 1000)
