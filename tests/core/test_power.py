import math

import pytest

from matl_common.ids import NodeId
from matl_coordinator.core.power import byzantine_power

A, B, C, D = (NodeId(name) for name in "abcd")


def test_power_is_the_sum_of_squared_reputation_on_either_side() -> None:
    found = byzantine_power({A: 1.0, B: 0.5, C: 1.0, D: 0.5}, against=[B, D])
    assert (found.against, found.honest) == (0.5, 2.0)
    assert found.ratio == 0.25
    assert not found.is_alarming


@pytest.mark.parametrize(("r", "is_alarming"), [(0.57, False), (0.58, True)])
def test_the_alarm_rings_above_a_third(r: float, is_alarming: bool) -> None:  # noqa: FBT001 - a column of the table
    assert byzantine_power({A: 1.0, B: r}, against=[B]).is_alarming is is_alarming


def test_power_without_anybody_honest_is_alarming_and_nobody_is_not() -> None:
    assert byzantine_power({A: 1.0}, against=[A]).ratio == math.inf
    assert byzantine_power({A: 1.0}, against=[A]).is_alarming
    assert not byzantine_power({}, against=[]).is_alarming
    # Those in quarantine have no say to lose.
    assert not byzantine_power({A: 0.0, B: 0.0}, against=[A]).is_alarming


def test_the_cartel_is_the_cluster_that_would_weigh_the_most_unshared() -> None:
    clusters = (frozenset({A, B}), frozenset({C, D}))
    found = byzantine_power(
        dict.fromkeys((A, B, C, D), 1.0),
        against=[],
        clusters=clusters,
        unshared={A: 1.0, B: 1.0, C: 3.0, D: 3.0},
    )
    assert found.cartel == frozenset({C, D})
    assert found.cartel_share == pytest.approx(0.75)
    assert "c, d sent nearly identical updates and would have held 75% of the weight" in (
        found.sentence()
    )
    assert "nearly identical" not in byzantine_power({A: 1.0}, against=[]).sentence()


def test_equal_cartels_are_told_apart_by_name_in_any_order() -> None:
    clusters = (frozenset({A, B}), frozenset({C, D}))
    weights = dict.fromkeys((A, B, C, D), 1.0)
    names = {
        byzantine_power(weights, against=[], clusters=order, unshared=weights).cartel
        for order in (clusters, clusters[::-1])
    }
    assert len(names) == 1
