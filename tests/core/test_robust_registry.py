from dataclasses import replace

import numpy as np
import pytest

from matl_common.errors import ConfigurationError
from matl_coordinator.core.robust.distances import mda_most_n
from matl_coordinator.core.robust.gram import AggregationError, Float64Array, Needs
from matl_coordinator.core.robust.registry import (
    DEFAULT_RULE,
    PRE_AGGREGATIONS,
    RULES,
    Choice,
    make_aggregator,
)
from matl_coordinator.core.robust.spectral import smea_most_n
from tests.core.robust_rows import aggregator, carried_out, gram_of, round_of

NAMES = {
    "weighted_mean", "clipped_weighted_mean", "krum", "multi_krum", "geometric_median",
    "centered_clipping", "mda", "smea", "caf", "fltrust", "zeno_plus_plus", "dnc", "foolsgold",
    "matl", "coordinate_median", "trimmed_mean", "meamed", "bulyan",
}  # fmt: skip


def test_the_registry_has_every_rule_with_its_source() -> None:
    assert set(RULES) == NAMES
    assert set(PRE_AGGREGATIONS) == {"nnm", "arc", "bucketing", "clip_to_median_norm"}
    assert DEFAULT_RULE in RULES
    assert all(entry.source for entry in RULES.values())
    assert all(entry.source for entry in PRE_AGGREGATIONS.values())


def test_the_registry_names_the_valid_choices() -> None:
    with pytest.raises(ConfigurationError, match=r"'krumm' is not an aggregation rule.*krum"):
        make_aggregator(Choice("krumm"), f=1)
    with pytest.raises(ConfigurationError, match=r"not a pre-aggregation; choose one of .*nnm"):
        aggregator("krum", "krum")
    with pytest.raises(ConfigurationError, match="it takes: f, extra_neighbours"):
        make_aggregator(Choice("krum", {"neighbours": 1}), f=1)
    with pytest.raises(ConfigurationError, match="it takes: none"):
        make_aggregator(Choice("weighted_mean", {"f": 1}), f=1)
    with pytest.raises(ConfigurationError, match="arc has no parameter 'factor'; it takes: f"):
        make_aggregator(Choice("matl"), [Choice("arc", {"factor": 1.0})], f=1)


@pytest.mark.parametrize(
    ("rule", "key", "value"),
    [
        ("trimmed_mean", "f", -1),
        ("trimmed_mean", "f", 1.0),
        ("trimmed_mean", "f", True),
        ("trimmed_mean", "f", 10_001),
        ("krum", "extra_neighbours", 2),
        ("geometric_median", "steps", 2.5),
        ("geometric_median", "smoothing", 0.0),
        ("clipped_weighted_mean", "factor", 0.0),
        ("clipped_weighted_mean", "factor", float("nan")),
        ("centered_clipping", "tau", float("inf")),
        ("dnc", "iterations", 0),
    ],
)
def test_the_registry_refuses_a_parameter_out_of_range(rule: str, key: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=r"out of range for .*use a .*number from"):
        make_aggregator(Choice(rule, {key: value}), f=1)


def test_a_study_that_fears_too_many_is_refused_with_what_f_means() -> None:
    with pytest.raises(ConfigurationError, match="the study's Byzantine hospitals unless set"):
        make_aggregator(Choice("krum"), f=10_001)


def test_every_default_is_within_its_own_range() -> None:
    for name in RULES:
        for f in (0, 1, 4):
            checked = aggregator(name, f=f)
            again = make_aggregator(checked.rule, f=0)
            assert again.rule.parameters == checked.rule.parameters
    for name in PRE_AGGREGATIONS:
        assert aggregator("matl", name, f=1).pre[0].name == name


def test_a_whole_number_does_for_a_real_one() -> None:
    factor_two = make_aggregator(Choice("clipped_weighted_mean", {"factor": 2}), f=1)
    assert factor_two.rule.parameters == {"factor": 2}


def test_f_is_the_studys_unless_it_is_set() -> None:
    values = np.array([[0.0], [1.0], [2.0], [3.0], [100.0]])
    trimmed = make_aggregator(Choice("trimmed_mean"), f=2)
    assert carried_out(trimmed(gram_of(values)), values) == pytest.approx(2.0)
    fixed = make_aggregator(Choice("trimmed_mean", {"f": 0}), f=2)
    assert carried_out(fixed(gram_of(values)), values) == pytest.approx(21.2)
    assert fixed.with_f(1).rule.parameters["f"] == 0
    assert trimmed.with_f(1).rule.parameters["f"] == 1
    mixed = aggregator("krum", "nnm", f=3).with_f(1)
    assert (mixed.least_n, mixed.pre[0].parameters["f"]) == (5, 1)


@pytest.mark.parametrize(
    ("stages", "f", "least"),
    [
        (("weighted_mean",), 2, 1),
        (("matl",), 2, 1),
        (("coordinate_median",), 2, 5),
        (("trimmed_mean",), 2, 5),
        (("krum",), 2, 7),
        (("multi_krum",), 0, 3),
        (("bulyan",), 2, 11),
        (("geometric_median",), 9, 19),
        (("matl", "nnm"), 2, 5),
        (("matl", "arc"), 2, 3),
        (("krum", "nnm"), 2, 7),
        # Seven buckets of two: thirteen updates, one bucket of one.
        (("krum", "bucketing"), 2, 13),
        # Five for NNM would do, but the buckets behind it need more.
        (("trimmed_mean", "nnm", "bucketing"), 2, 9),
        (("trimmed_mean", "bucketing", "nnm"), 2, 9),
    ],
)
def test_the_least_number_of_updates_is_that_of_all_stages(
    stages: tuple[str, ...], f: int, least: int
) -> None:
    checked = aggregator(*stages, f=f)
    assert checked.least_n == least
    rows = np.random.default_rng(0).standard_normal((least, 3))
    checked(gram_of(rows))
    with pytest.raises(AggregationError, match="at least"):
        checked(gram_of(rows[1:]))


def test_rules_that_search_subsets_say_how_many_updates_they_handle() -> None:
    for name, most in (("mda", mda_most_n), ("smea", smea_most_n)):
        # Twenty hospitals with nine hostile, the hardest the studies here ask for.
        assert most(9) >= 20
        checked = aggregator(name, f=4)
        assert checked.most_n == most(4)
        rows = np.random.default_rng(0).standard_normal((most(4) + 1, 2))
        with pytest.raises(AggregationError, match=f"at most {most(4)} updates"):
            checked(gram_of(rows))
        halved = aggregator(name, "bucketing", f=4)
        assert halved.most_n == 2 * most(4)
        with pytest.raises(ConfigurationError, match="use a smaller f"):
            aggregator(name, f=50)
    assert aggregator("krum", f=4).most_n is None
    assert mda_most_n(0) > 1000


def test_an_aggregator_says_what_must_be_measured() -> None:
    assert make_aggregator(Choice("dnc", {"iterations": 3}), f=1).needs == Needs(subsets=3)
    assert aggregator("foolsgold").needs == Needs(history=True)
    assert aggregator("centered_clipping", "nnm").needs == Needs(previous=True)
    assert {n for n in RULES if aggregator(n).needs.root} == {"fltrust", "zeno_plus_plus"}
    assert aggregator("matl").needs == Needs()


def test_foolsgold_behind_buckets_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="leave one of them out"):
        aggregator("foolsgold", "bucketing")
    aggregator("foolsgold", "nnm", "arc", f=1)


def test_an_aggregator_describes_its_stages_in_order() -> None:
    assert (
        aggregator("krum", "clip_to_median_norm", "nnm", f=2).describe()
        == "clip_to_median_norm(factor=1.5) then nnm(f=2) then krum(f=2, extra_neighbours=0)"
    )


def test_a_rule_that_misses_what_it_needs_refuses_the_round() -> None:
    rows = np.eye(5)
    gram = gram_of(rows)
    for name in ("fltrust", "zeno_plus_plus"):
        with pytest.raises(AggregationError, match="needs a root gradient"):
            aggregator(name)(gram)
    with pytest.raises(AggregationError, match="needs the updates summed over rounds"):
        aggregator("foolsgold")(gram)
    full, _ = round_of(rows, root=np.ones(5), previous=np.ones(5))
    unsound = np.full((5, 5), np.nan)
    with pytest.raises(AggregationError, match="sum of past updates is not finite"):
        aggregator("foolsgold")(replace(full, history=unsound))
    one = replace(full, subsets=(full.matrix,))
    with pytest.raises(AggregationError, match="1 sets of coordinates were measured"):
        make_aggregator(Choice("dnc", {"iterations": 2}), f=1)(one)
    many = replace(full, subsets=tuple(rows_of_one(index) for index in range(5)))
    with pytest.raises(AggregationError, match="dropped every update"):
        make_aggregator(Choice("dnc", {"iterations": 5}), f=1)(many)


def rows_of_one(index: int) -> Float64Array:
    matrix = np.zeros((7, 7))
    matrix[index, index] = 1.0
    return matrix
