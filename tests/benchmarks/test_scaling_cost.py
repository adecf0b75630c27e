"""The model of what aggregation would cost, where it can be reckoned by hand."""

from dataclasses import replace

import pytest

from benchmarks.scaling_runs.cost import Federation, Rates, cost_of

RATES = Rates(read=1e9, multiply=1e10, add=1e10, link=1e9)
SMALL = Federation(n=10, d=16_384 * 1000, workers=2, per_machine=4)


def test_the_parts_are_those_reckoned_by_hand() -> None:
    cost = cost_of(SMALL, RATES)
    total = 10 * 4 * 16_384_000
    assert total == SMALL.round_bytes
    assert cost.receive == pytest.approx(total / 1e9)
    # Two workers, and one link that both share.
    assert cost.aggregate == pytest.approx(total / 1e9)
    assert cost.geometry == pytest.approx(total / 1e9 + 100 * 16_384_000 / 2e10)
    assert cost.sums == pytest.approx(55 * 8 * 1000 / 1e9)
    assert cost.worker_bytes == 11 << 20
    assert cost.wall == pytest.approx(cost.receive + cost.geometry + cost.aggregate)


def test_more_workers_on_more_machines_shorten_the_passes_and_not_the_reception() -> None:
    few, many = (cost_of(replace(SMALL, workers=each), RATES) for each in (4, 40))
    assert many.geometry == pytest.approx(few.geometry / 10)
    assert many.receive == few.receive
    assert many.bottleneck == "the coordinator's link"


def test_products_are_the_bottleneck_of_many_hospitals_and_few_workers() -> None:
    assert cost_of(replace(SMALL, n=1000), RATES).bottleneck == "the first pass"
    sums = cost_of(replace(SMALL, n=100_000, workers=10**9), replace(RATES, multiply=1e18))
    assert sums.bottleneck == "sums into the coordinator"
