"""Which releases are means, counted through whole studies."""

from __future__ import annotations

import pytest

from matl_coordinator.config import Study
from matl_coordinator.core.averaging import models_before


def study(**settings: object) -> Study:
    return Study.model_validate({"public_images": "/public", **settings})


def of_how_many(average_from: int, *, rounds: int) -> list[int]:
    """Whose mean each release of a study is, in order."""
    return [models_before(released, average_from=average_from) + 1 for released in range(rounds)]


def test_without_averaging_every_release_is_the_rounds_own() -> None:
    assert of_how_many(0, rounds=50) == [1] * 50


@pytest.mark.parametrize("rounds", [1, 2, 3, 6, 7, 50])
def test_the_last_release_is_the_mean_of_the_second_half(rounds: int) -> None:
    first = study(rounds=rounds, averaging="second-half").average_from
    counts = of_how_many(first, rounds=rounds)
    half = rounds - rounds // 2
    assert counts == [1] * (rounds // 2) + list(range(1, half + 1))


def test_a_study_averages_if_it_says_so() -> None:
    assert study(rounds=6).average_from == 0
    assert study(rounds=6, averaging="none").average_from == 0
    assert study(rounds=6, averaging="second-half").average_from == 4
