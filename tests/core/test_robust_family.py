"""What holds for every rule of the registry, whatever its formula."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from matl_common.ids import NodeId
from matl_coordinator.aggregation import Row, aggregate_chunks, measure
from matl_coordinator.core.robust.gram import (
    PREVIOUS_AGGREGATE,
    AggregationError,
    Float64Array,
    Gram,
    RowFacts,
)
from matl_coordinator.core.robust.registry import PRE_AGGREGATIONS, RULES
from tests.core.robust_rows import aggregator, carried_out, gram_of, round_of

EVERY: list[tuple[str, ...]] = [
    *((name,) for name in RULES),
    ("geometric_median", "nnm"),
    ("trimmed_mean", "arc", "nnm"),
    ("caf", "bucketing"),
    ("coordinate_median", "clip_to_median_norm"),
]
ROOTED = {"fltrust", "zeno_plus_plus"}
SEED = st.integers(0, 2**32 - 1)


def n_for(stages: Sequence[str], f: int) -> int:
    return max(aggregator(*stages, f=f).least_n, 2 * f + 2)


def a_round(
    seed: int, n: int, d: int
) -> tuple[Float64Array, Float64Array, Float64Array, list[str], list[float]]:
    generator = np.random.default_rng(seed)
    updates = generator.standard_normal((n, d)) + 0.8
    root = updates.mean(axis=0) + 0.1 * generator.standard_normal(d)
    previous = generator.standard_normal(d)
    weights = generator.uniform(0.5, 2.0, n).tolist()
    return updates, root, previous, [f"h{index}" for index in range(n)], weights


def answer(
    stages: Sequence[str],
    updates: Float64Array,
    *,
    f: int,
    root: Float64Array,
    previous: Float64Array,
    names: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
) -> Float64Array:
    gram, rows = round_of(updates, root=root, previous=previous, names=names, weights=weights)
    return carried_out(aggregator(*stages, f=f)(gram), rows)


@pytest.mark.parametrize("stages", EVERY, ids="-".join)
@settings(max_examples=15)
@given(seed=SEED, f=st.integers(0, 2), d=st.integers(2, 6))
def test_no_rule_depends_on_the_order_of_the_updates(
    stages: tuple[str, ...], seed: int, f: int, d: int
) -> None:
    n = n_for(stages, f)
    updates, root, previous, names, weights = a_round(seed, n, d)
    order = np.random.default_rng(seed).permutation(n)
    np.testing.assert_allclose(
        answer(
            stages,
            updates[order],
            f=f,
            root=root,
            previous=previous,
            names=[names[i] for i in order],
            weights=[weights[i] for i in order],
        ),
        answer(stages, updates, f=f, root=root, previous=previous, names=names, weights=weights),
        rtol=1e-7,
        atol=1e-7,
    )


@pytest.mark.parametrize("seed", [89, 96, 132, 188])
def test_the_geometric_median_starts_alike_where_mixed_updates_coincide(seed: int) -> None:
    # Mixing gives several hospitals the same neighbours, and so one row with different weights.
    updates, root, previous, _, weights = a_round(seed, 6, 3)
    order = np.random.default_rng(seed).permutation(6)
    stages = ("geometric_median", "nnm")
    plain = answer(stages, updates, f=2, root=root, previous=previous, weights=weights)
    turned = answer(
        stages,
        updates[order],
        f=2,
        root=root,
        previous=previous,
        weights=[weights[i] for i in order],
    )
    np.testing.assert_allclose(turned, plain, atol=1e-9)


# Others measure norms or directions from 0, which a translation moves.
TRANSLATED = [
    ("weighted_mean",),
    ("coordinate_median",),
    ("trimmed_mean",),
    ("meamed",),
    ("bulyan",),
    ("krum",),
    ("multi_krum",),
    ("mda",),
    ("geometric_median",),
    ("centered_clipping",),
    ("smea",),
    ("caf",),
    ("dnc",),
    ("geometric_median", "nnm"),
]


@pytest.mark.parametrize("stages", TRANSLATED, ids="-".join)
@settings(max_examples=15)
@given(seed=SEED, f=st.integers(0, 2), shift=st.floats(-50, 50))
def test_what_moves_all_updates_moves_the_aggregate(
    stages: tuple[str, ...], seed: int, f: int, shift: float
) -> None:
    updates, root, previous, _, weights = a_round(seed, n_for(stages, f), 4)
    here = answer(stages, updates, f=f, root=root, previous=previous, weights=weights)
    there = answer(
        stages, updates + shift, f=f, root=root, previous=previous + shift, weights=weights
    )
    np.testing.assert_allclose(there, here + shift, rtol=1e-6, atol=1e-5)


# Buckets are drawn by the norms.
@pytest.mark.parametrize("stages", [s for s in EVERY if "bucketing" not in s], ids="-".join)
@pytest.mark.parametrize("scale", [1e-12, 0.3, 1e15])
def test_what_scales_all_updates_scales_the_aggregate(
    stages: tuple[str, ...], scale: float
) -> None:
    for seed in range(5):
        updates, root, previous, names, weights = a_round(seed, n_for(stages, 2), 4)
        here = answer(
            stages, updates, f=2, root=root, previous=previous, names=names, weights=weights
        )
        there = answer(
            stages,
            updates * scale,
            f=2,
            root=root * scale,
            previous=previous * scale,
            names=names,
            weights=weights,
        )
        np.testing.assert_allclose(there, here * scale, rtol=1e-6)


@pytest.mark.parametrize("name", ["coordinate_median", "trimmed_mean", "meamed", "bulyan"])
@given(
    honest=arrays(np.float64, (7, 3), elements=st.floats(-1, 1)),
    hostile=arrays(np.float64, (2, 3), elements=st.floats(-1e6, 1e6)),
)
def test_coordinate_rules_stay_in_the_range_of_the_honest(
    name: str, honest: Float64Array, hostile: Float64Array
) -> None:
    f = 1 if name == "bulyan" else 2
    rows = np.vstack([hostile[:f], honest])
    result = carried_out(aggregator(name, f=f)(gram_of(rows)), rows)
    if name == "meamed":
        # It keeps n − f values and so f hostile ones, none farther from the median than the
        # honest values it drops for them.
        low = 2 * honest.min(axis=0) - honest.max(axis=0)
        high = 2 * honest.max(axis=0) - honest.min(axis=0)
    elif name == "bulyan":
        # Krum's choices hold at most f hostile rows.
        low = 2 * honest.min(axis=0) - honest.max(axis=0)
        high = 2 * honest.max(axis=0) - honest.min(axis=0)
    else:
        low, high = honest.min(axis=0), honest.max(axis=0)
    assert (result >= low - 1e-12).all()
    assert (result <= high + 1e-12).all()


# The least number of hostile updates at one far place that carries the aggregate there,
# with f = 2 and as few updates as the rule takes (5 where it takes any number).
BREAKS_AT = {
    "weighted_mean": 1,
    "multi_krum": 3,
    # A choice among clones needs n − f − 2 = f + 1 neighbours beside itself.
    "krum": 4,
    # Krum's choices must be theirs in the middle, where so few are kept.
    "bulyan": 5,
    # Alone it is unlike everyone; together they are alike.
    "foolsgold": 1,
    "fltrust": None,
    "zeno_plus_plus": None,
}


@pytest.mark.parametrize("name", RULES)
def test_each_rule_breaks_where_it_says_and_not_before(name: str) -> None:
    rule = aggregator(name, f=2)
    n = max(5, rule.least_n)
    broken = []
    for hostile in range(n):
        generator = np.random.default_rng(hostile)
        rows = 1.0 + 0.1 * generator.standard_normal((n, 5))
        rows[n - hostile :] = -1e6
        result = answer((name,), rows, f=2, root=np.ones(5), previous=np.zeros(5))
        if np.linalg.norm(result - 1.0) > 100.0:
            broken.append(hostile)
    assert (broken[0] if broken else None) == BREAKS_AT.get(name, 3)


def test_rooted_rules_follow_a_root_gradient_that_lies() -> None:
    rows = np.ones((5, 3)) + 0.1 * np.eye(5, 3)
    rows[3:] *= -1.0
    for name in ROOTED:
        result = answer((name,), rows, f=2, root=-np.ones(3), previous=np.zeros(3))
        assert (result < 0).all()
        gram, _ = round_of(rows[:3], root=-np.ones(3), previous=np.zeros(3))
        with pytest.raises(AggregationError, match="hold the round"):
            aggregator(name)(gram)


def worst_excess(
    result: Float64Array, rows: Float64Array, f: int, kappa: float, *, spectral: bool = False
) -> float:
    """The most by which ‖F − x̄_S‖² passes κ times the variance of S, over all S of n − f."""
    worst = -np.inf
    for subset in combinations(range(len(rows)), len(rows) - f):
        chosen = rows[list(subset)]
        apart = chosen - chosen.mean(axis=0)
        spread = np.linalg.norm(apart, ord=2 if spectral else "fro") ** 2 / len(chosen)
        gap = float(np.sum((result - chosen.mean(axis=0)) ** 2))
        worst = max(worst, gap - kappa * float(spread))
    return worst


def kappa_of(stages: tuple[str, ...], n: int, f: int) -> float:
    part = f / (n - 2 * f)
    kappa = {
        "coordinate_median": 4 * (1 + part) ** 2,
        "geometric_median": 4 * (1 + part) ** 2,
        "trimmed_mean": 6 * part * (1 + part),
        "krum": 6 * (1 + part),
        "smea": 4 * f / (n - f) * (1 + part) ** 2,
    }[stages[0]]
    return 8 * f / (n - f) * (kappa + 1) if "nnm" in stages else kappa


@pytest.mark.parametrize(
    "stages",
    [
        ("coordinate_median",),
        ("geometric_median",),
        ("trimmed_mean",),
        ("krum",),
        ("smea",),
        ("coordinate_median", "nnm"),
        ("geometric_median", "nnm"),
        ("trimmed_mean", "nnm"),
        ("krum", "nnm"),
    ],
    ids="-".join,
)
@settings(max_examples=60, deadline=None)
@given(
    rows=arrays(np.float64, (9, 2), elements=st.floats(-100, 100)),
    f=st.integers(1, 3),
)
def test_rules_are_as_near_to_every_honest_mean_as_their_kappa_says(
    stages: tuple[str, ...], rows: Float64Array, f: int
) -> None:
    # Allouah et al., AISTATS 2023 (and ICML 2023 for SMEA, in the spectral sense).
    result = carried_out(aggregator(*stages, f=f)(gram_of(rows)), rows)
    kappa = kappa_of(stages, 9, f)
    excess = worst_excess(result, rows, f, kappa, spectral=stages == ("smea",))
    assert excess <= 1e-7 * (1.0 + float(np.sum(rows**2)))


@pytest.mark.parametrize("name", RULES)
def test_every_rule_refuses_too_few_updates_and_takes_enough(name: str) -> None:
    for f in (0, 1, 2, 3):
        rule = aggregator(name, f=f)
        updates, root, previous, _, _ = a_round(f, rule.least_n, 3)
        gram, rows = round_of(np.abs(updates), root=np.abs(root), previous=previous)
        assert np.isfinite(carried_out(rule(gram), rows)).all()
        if rule.least_n > 1:
            with pytest.raises(AggregationError, match=f"at least {rule.least_n} updates"):
                rule(gram.select(gram.nodes[1:]))
    empty, _ = round_of(np.zeros((0, 3)), root=np.ones(3), previous=np.ones(3))
    with pytest.raises(AggregationError, match="at least"):
        aggregator(name, f=0)(empty)


@pytest.mark.parametrize("name", PRE_AGGREGATIONS)
def test_every_pre_aggregation_refuses_too_few_updates_and_takes_enough(name: str) -> None:
    for f in (0, 1, 2, 3):
        both = aggregator("weighted_mean", name, f=f)
        rows, _, _, _, _ = a_round(f, both.least_n, 3)
        assert np.isfinite(carried_out(both(gram_of(rows)), rows)).all()
        with pytest.raises(AggregationError, match="at least"):
            both(gram_of(rows[1:]))


@pytest.mark.parametrize("stages", EVERY, ids="-".join)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_rule_refuses_an_update_that_is_not_finite(
    stages: tuple[str, ...], bad: float
) -> None:
    updates, root, previous, _, _ = a_round(1, n_for(stages, 1), 3)
    updates[1, 2] = bad
    gram = Gram.of(
        {NodeId(f"n{i}"): row for i, row in enumerate(updates)},
        {"root": root, PREVIOUS_AGGREGATE: previous},
    )
    gram = replace(
        gram,
        reference=np.array([0.0] * gram.n + [1.0, 0.0]),
        history=gram.matrix[: gram.n, : gram.n],
    )
    with pytest.raises(AggregationError, match=r"update of n1 is not finite; exclude it"):
        aggregator(*stages, f=1)(gram)
    infinite = gram.matrix.copy()
    infinite[0, 0] = np.inf
    good = replace(gram, facts=(RowFacts(),) * (gram.n + 2), matrix=infinite)
    with pytest.raises(AggregationError, match="Gram matrix is not finite"):
        aggregator(*stages, f=1)(good)


def test_rules_refuse_an_extra_row_that_is_not_finite_only_where_they_use_it() -> None:
    updates, root, previous, _, _ = a_round(1, 7, 3)
    gram, _ = round_of(np.abs(updates), root=np.abs(root), previous=previous)
    facts = list(gram.facts)
    for row, users in ((7, ROOTED), (8, {"centered_clipping"})):
        facts = [*gram.facts]
        facts[row] = RowFacts(non_finite=1)
        bad = replace(gram, facts=tuple(facts))
        for name in RULES:
            rule = aggregator(name, f=1)
            if name in users:
                with pytest.raises(AggregationError, match="is not finite"):
                    rule(bad)
            else:
                rule(bad)


@pytest.mark.parametrize("stages", EVERY, ids="-".join)
@pytest.mark.parametrize("value", [0.0, -0.0, 5e-324, 1e-40, 1e38, -1e38, 1.0])
@pytest.mark.parametrize("d", [1, 3])
def test_equal_updates_aggregate_to_themselves_however_small_or_large(
    stages: tuple[str, ...], value: float, d: int
) -> None:
    for f in (0, 2):
        n = n_for(stages, f)
        rows = np.full((n, d), value)
        gram, everything = round_of(rows, root=np.full(d, value), previous=np.zeros(d))
        # So small that their squares vanish: without direction, as 0 is.
        has_no_direction = not gram.norms.all()
        if stages[0] in ROOTED and has_no_direction:
            with pytest.raises(AggregationError, match="root gradient is 0"):
                aggregator(*stages, f=f)(gram)
            continue
        if stages[0] == "foolsgold" and not has_no_direction and n > 1:
            with pytest.raises(AggregationError, match="acts like another"):
                aggregator(*stages, f=f)(gram)
            continue
        result = carried_out(aggregator(*stages, f=f)(gram), everything)
        np.testing.assert_allclose(result, rows[0], rtol=1e-6, atol=1e-300)


@pytest.mark.parametrize("stages", EVERY, ids="-".join)
@pytest.mark.parametrize("huge", [1e38, -3.4e38])
def test_one_huge_update_does_no_harm_where_the_rule_bears_one(
    stages: tuple[str, ...], huge: float
) -> None:
    if stages[0] in {"weighted_mean", "foolsgold"}:
        return
    f = 1
    n = max(n_for(stages, f), 7)
    updates, root, previous, _, _ = a_round(2, n, 4)
    updates[0] = huge
    result = answer(stages, updates, f=f, root=root, previous=previous)
    assert np.isfinite(result).all()
    assert np.linalg.norm(result) < 20.0


@pytest.mark.parametrize(
    "name", [name for name in RULES if aggregator(name, f=0).least_n == 1 and name not in ROOTED]
)
@pytest.mark.parametrize("d", [1, 5])
def test_one_update_alone_is_the_aggregate(name: str, d: int) -> None:
    rows = np.random.default_rng(0).standard_normal((1, d))
    result = answer((name,), rows, f=0, root=rows[0], previous=np.zeros(d))
    np.testing.assert_allclose(result, rows[0], rtol=1e-9)


BY_WEIGHT = ["weighted_mean", "clipped_weighted_mean", "geometric_median", "foolsgold", "matl"]


@pytest.mark.parametrize("name", BY_WEIGHT)
def test_an_update_of_weight_zero_has_no_part(name: str) -> None:
    updates, root, previous, _, weights = a_round(3, 8, 5)
    updates[7] = [40.0, -40.0, 40.0, -40.0, 40.0]
    with_it = answer(
        (name,), updates, f=0, root=root, previous=previous, weights=[*weights[:7], 0.0]
    )
    without = answer((name,), updates[:7], f=0, root=root, previous=previous, weights=weights[:7])
    if name == "foolsgold":
        # Its history still tells who acts alike.
        assert np.abs(with_it).max() < 5.0
    else:
        np.testing.assert_allclose(with_it, without, rtol=1e-9)
    doubled = answer(
        (name,), updates, f=0, root=root, previous=previous, weights=[2 * w for w in weights]
    )
    plain = answer((name,), updates, f=0, root=root, previous=previous, weights=weights)
    np.testing.assert_allclose(doubled, plain, rtol=1e-9)
    np.testing.assert_array_less(1e-3, np.abs(plain - with_it).max())


def test_rules_by_weight_refuse_a_round_without_weight() -> None:
    updates, root, previous, _, _ = a_round(3, 5, 4)
    gram, _ = round_of(updates, root=root, previous=previous, weights=[0.0] * 5)
    for name in BY_WEIGHT:
        with pytest.raises(AggregationError, match="hold the round"):
            aggregator(name, f=1)(gram)


@pytest.mark.parametrize("stages", EVERY, ids="-".join)
def test_plans_carried_out_on_files_give_what_they_give_in_memory(
    stages: tuple[str, ...], tmp_path: Path
) -> None:
    n = max(7, n_for(stages, 1))
    generator = np.random.default_rng(4)
    # Far apart, so that float32 changes no choice.
    values = (0.8 + generator.standard_normal((n + 2, 501))).astype("<f4")
    values[n] = np.abs(values[n])
    names = [*(f"n{index}" for index in range(n)), "root", PREVIOUS_AGGREGATE]
    files = []
    for name, row in zip(names, values, strict=True):
        path = tmp_path / f"{name}.f32"
        path.write_bytes(row.tobytes())
        files.append(Row(name, path))
    measured = measure(files[:n], files[n:], elements=501)
    measured = replace(
        measured,
        reference=np.array([0.0] * n + [1.0, 0.0]),
        history=measured.matrix[:n, :n],
    )
    rule = aggregator(*stages, f=1)
    on_disk = np.concatenate(list(aggregate_chunks(rule(measured), files, elements=501)))
    whole = values.astype(np.float64)
    in_memory = answer(stages, whole[:n], f=1, root=whole[n], previous=whole[n + 1])
    if "bucketing" in stages:
        # Which buckets are drawn depends on the last bit of the norms.
        in_memory = carried_out(rule(measured), whole)
    np.testing.assert_allclose(on_disk, in_memory, rtol=2e-5, atol=2e-6)
