"""The two passes where floats are strange, rows are long, or many threads look."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matl_common.ids import NodeId
from matl_coordinator.aggregation import LocalExecutor, Row, aggregate_chunks, measure
from matl_coordinator.aggregation.gram_pass import NEAREST, SINGLE_PRECISION_FROM
from matl_coordinator.aggregation.rows import GROUP_ELEMENTS, chunk_elements
from matl_coordinator.aggregation.samples import BINS, SUBSET_ELEMENTS
from matl_coordinator.core.robust.gram import AggregationError, Float64Array, Needs
from matl_coordinator.core.robust.plan import (
    CoordinateMedian,
    CoordinateTrimmedMean,
    Identity,
    MeanAroundMedian,
    Plan,
)
from matl_coordinator.core.robust.selection import Float32Array
from tests.core.robust_rows import carried_out

RESNET50_BYTES = 102_228_128
LONG = SINGLE_PRECISION_FROM + 3 * GROUP_ELEMENTS + 77


def spooled(folder: Path, values: Float32Array) -> list[Row]:
    rows = []
    for index, row in enumerate(values):
        path = folder / f"n{index}.f32"
        row.astype("<f4").tofile(path)
        rows.append(Row(f"n{index}", path))
    return rows


def whole(plan: Plan, rows: list[Row], elements: int, threads: int = 1) -> Float32Array:
    return np.concatenate(
        list(aggregate_chunks(plan, rows, elements=elements, executor=LocalExecutor(threads)))
    )


def exact_gram(values: Float32Array) -> Float64Array:
    wide = values.astype(np.float64)
    result: Float64Array = wide @ wide.T
    return result


def distances(gram: Float64Array) -> Float64Array:
    squares = np.diagonal(gram)
    result: Float64Array = squares[:, None] + squares - 2.0 * gram
    return result


# --- precision -------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5, 70])
def test_long_rows_lose_less_than_1e_8_of_their_norms_to_single_precision(
    tmp_path: Path, n: int
) -> None:
    values = np.random.default_rng(n).standard_normal((n, LONG), dtype=np.float32) * 1e-4 + 2e-5
    gram = measure(spooled(tmp_path, values), elements=LONG, executor=LocalExecutor(2)).matrix
    exact = exact_gram(values)
    lengths = np.sqrt(np.outer(np.diagonal(exact), np.diagonal(exact)))
    error = (np.abs(gram - exact) / lengths).max()
    assert 0 < error < 1e-8, "single precision was not used, or does not do"
    np.testing.assert_array_equal(gram, gram.T)


def test_long_constant_rows_lose_less_than_1e_6_though_their_rounding_is_all_one_way(
    tmp_path: Path,
) -> None:
    values = np.repeat(np.array([[0.1], [0.7], [-1.9]], dtype=np.float32), LONG, axis=1)
    values[:, ::3] *= np.array([[-0.3], [0.5], [0.9]], dtype=np.float32)
    gram = measure(spooled(tmp_path, values), elements=LONG, executor=LocalExecutor(2)).matrix
    exact = exact_gram(values)
    lengths = np.sqrt(np.outer(np.diagonal(exact), np.diagonal(exact)))
    assert (np.abs(gram - exact) / lengths).max() < 1e-6


@pytest.mark.parametrize("jitter", [1e-1, 1e-2, 1e-4, 1e-6, 0.0])
def test_the_distance_of_nearly_equal_long_rows_keeps_six_digits(
    tmp_path: Path, jitter: float
) -> None:
    random = np.random.default_rng(7)
    one, other, noise = random.standard_normal((3, LONG), dtype=np.float32)
    values = np.stack([one, (one + np.float32(jitter) * noise), other])
    gram = measure(spooled(tmp_path, values), elements=LONG).matrix
    wide = values.astype(np.float64)
    exact = np.array([[((a - b) ** 2).sum() for b in wide] for a in wide])
    floor = 1e-14 * exact_gram(values).max()
    np.testing.assert_allclose(distances(gram), exact, rtol=1e-6, atol=floor)
    assert NEAREST > 1e-8 / 1e-6, "what single precision is left with keeps six digits"


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 3 * GROUP_ELEMENTS), st.integers(1, 6), st.integers(0, 2**32))
def test_short_rows_are_multiplied_in_double_precision(
    tmp_path_factory: pytest.TempPathFactory, elements: int, n: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    base = random.standard_normal(elements, dtype=np.float32)
    values = base + random.standard_normal((n, elements), dtype=np.float32) * np.float32(1e-4)
    rows = spooled(tmp_path_factory.mktemp("rows"), values)
    gram = measure(rows, elements=elements).matrix
    exact = exact_gram(values)
    np.testing.assert_allclose(gram, exact, rtol=1e-13, atol=1e-13 * np.abs(exact).max())


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e18, 1e30])
def test_long_rows_of_any_scale_have_their_gram_matrix(tmp_path: Path, scale: float) -> None:
    values = np.random.default_rng(1).standard_normal((3, LONG), dtype=np.float32)
    values *= np.float32(scale)
    gram = measure(spooled(tmp_path, values), elements=LONG).matrix
    exact = exact_gram(values)
    np.testing.assert_allclose(gram, exact, rtol=0, atol=1e-8 * exact.max())


@pytest.mark.hostile
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_one_poisoned_value_in_a_long_row_is_counted_and_kept_out(
    tmp_path: Path, poison: float
) -> None:
    values = np.random.default_rng(2).standard_normal((3, LONG), dtype=np.float32)
    values[1, [0, LONG - 1]] = poison
    rows = spooled(tmp_path, values)
    gram = measure(rows, elements=LONG, executor=LocalExecutor(2))
    assert [facts.non_finite for facts in gram.facts] == [0, 2, 0]
    values[1, [0, LONG - 1]] = 0.0
    np.testing.assert_allclose(gram.matrix, exact_gram(values), rtol=1e-10, atol=1e-6)
    for reduction in (CoordinateMedian(), CoordinateTrimmedMean(1), MeanAroundMedian(2)):
        with pytest.raises(AggregationError, match="not finite"):
            whole(Plan(gram.row_names, np.eye(3), reduction), rows, LONG)


STRANGE = np.array(
    [
        [3.4e38, 1e-45, -0.0, 1e38, 1.0, 1e-38],
        [3.3e38, 0.0, -0.0, -1e38, 1.0, -1e-38],
        [3.4e38, -1e-45, 0.0, 1e38, 1.0, 1e-38],
        [-3.4e38, 1e-40, -0.0, -1e38, 1.0, 3e-39],
    ],
    dtype=np.float32,
)


@pytest.mark.hostile
def test_huge_tiny_and_negative_zero_values_aggregate_like_any_other(tmp_path: Path) -> None:
    rows = spooled(tmp_path, STRANGE)
    names = tuple(row.name for row in rows)
    for plan in (
        Plan(names, np.full((1, 4), 0.25), Identity()),
        Plan(names, np.eye(4), CoordinateMedian()),
        Plan(names, np.eye(4), CoordinateTrimmedMean(1)),
        Plan(names, np.eye(4), MeanAroundMedian(3)),
        Plan(names, np.eye(4) / 2 + 0.125, CoordinateMedian()),
    ):
        result = whole(plan, rows, STRANGE.shape[1])
        exact = carried_out(plan, STRANGE.astype(np.float64))
        # As if each value were a few half units of its last place off; subnormals have fewer.
        off = 4 * 2.0**-24 * np.abs(STRANGE.astype(np.float64)).max(axis=0) + 4e-45
        assert (np.abs(result - exact) <= off).all(), plan.reduction
        if not isinstance(plan.reduction, Identity):
            assert not np.signbit(result[2])


# --- weighted sums ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5, 32, 33, 200])
def test_a_weighted_sum_is_off_by_at_most_32_half_units_of_the_last_place(
    tmp_path: Path, n: int
) -> None:
    elements = 2 * GROUP_ELEMENTS + 333
    random = np.random.default_rng(n)
    values = random.standard_normal((n, elements), dtype=np.float32)
    weights = random.random((1, n))
    rows = spooled(tmp_path, values)
    result = whole(Plan(tuple(r.name for r in rows), weights, Identity()), rows, elements)
    wide = values.astype(np.float64)
    bound = (np.abs(weights) @ np.abs(wide))[0] * 2.0**-24 * 33
    assert (np.abs(result - (weights @ wide)[0]) <= bound).all()


@pytest.mark.parametrize("n", [3, 33, 70])
def test_mixtures_of_many_rows_are_made_in_double_precision(tmp_path: Path, n: int) -> None:
    elements = GROUP_ELEMENTS + 129
    random = np.random.default_rng(n)
    values = random.standard_normal((n, elements), dtype=np.float32)
    mixing = random.standard_normal((n, n))
    rows = spooled(tmp_path, values)
    plan = Plan(tuple(row.name for row in rows), mixing, CoordinateTrimmedMean(1))
    exact = carried_out(plan, values.astype(np.float64))
    np.testing.assert_allclose(whole(plan, rows, elements), exact, rtol=2e-7, atol=2e-6)


def test_a_row_that_is_selected_twice_counts_twice(tmp_path: Path) -> None:
    values = np.random.default_rng(6).standard_normal((4, 50), dtype=np.float32)
    rows = spooled(tmp_path, values)
    mixing = np.eye(4)[[2, 0, 0, 3, 1, 2, 0]]
    for reduction in (CoordinateMedian(), CoordinateTrimmedMean(1), MeanAroundMedian(4)):
        plan = Plan(tuple(row.name for row in rows), mixing, reduction)
        expected = carried_out(plan, values.astype(np.float64))
        np.testing.assert_allclose(whole(plan, rows, 50), expected, rtol=1e-6, atol=1e-7)


# --- bits --------------------------------------------------------------------------------


def test_chunks_of_another_length_and_other_threads_change_no_bit(tmp_path: Path) -> None:
    # Long and numerous enough that the length of a chunk follows the number of threads.
    elements, n = 40 * GROUP_ELEMENTS + 5, 40
    assert len({chunk_elements(n, threads=threads) for threads in (1, 2, 3, 60)}) == 4
    values = np.random.default_rng(0).standard_normal((n, elements), dtype=np.float32)
    rows = spooled(tmp_path, values)
    names = tuple(row.name for row in rows)
    noise = {NodeId("n3"): 1.0}
    random = np.random.default_rng(1)
    plans = [
        Plan(names, np.full((1, n), 1 / n), Identity()),
        Plan(names, np.eye(n), CoordinateTrimmedMean(3)),
        Plan(names, random.random((5, n)), MeanAroundMedian(3)),
    ]
    seen: set[object] = set()
    for threads in (1, 2, 3, 60):
        gram = measure(
            rows,
            elements=elements,
            executor=LocalExecutor(threads),
            needs=Needs(subsets=2),
            noise=noise,
            seed=9,
        )
        arrays: list[Float64Array | Float32Array] = [gram.matrix, *gram.subsets]
        arrays += [whole(p, rows, elements, threads) for p in plans]
        seen.add((gram.facts, *(each.tobytes() for each in arrays)))
    assert len(seen) == 1


# --- samples -----------------------------------------------------------------------------


def test_promised_noise_fills_its_bins_evenly_and_absent_noise_does_not(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    values = random.standard_normal((3, LONG), dtype=np.float32) * np.float32(0.5)
    values[2] /= 2.0
    noise = {NodeId("n0"): 0.5, NodeId("n2"): 0.5}
    rows = spooled(tmp_path, values)
    facts = measure(rows, elements=LONG, noise=noise, seed=5).facts
    assert facts[1].bins == ()
    honest, quiet = np.array(facts[0].bins), np.array(facts[2].bins)
    assert len(honest) == BINS == 64
    assert LONG / 2 - 100 < honest.sum() == quiet.sum() <= 1 << 20
    expected = honest.sum() / BINS
    # Chi-squared with 63 degrees of freedom: 130 is beyond 1 in 100,000.
    assert ((honest - expected) ** 2 / expected).sum() < 130
    assert ((quiet - expected) ** 2 / expected).sum() > 1e5
    # Another seed looks elsewhere.
    assert measure(rows, elements=LONG, noise=noise, seed=6).facts[0].bins != facts[0].bins


def test_every_coordinate_of_a_short_row_is_counted(tmp_path: Path) -> None:
    values = np.random.default_rng(4).standard_normal((1, 20_001), dtype=np.float32)
    (facts,) = measure(spooled(tmp_path, values), elements=20_001, noise={NodeId("n0"): 2.0}).facts
    assert sum(facts.bins) == 20_001
    assert facts.bins[0] < facts.bins[BINS // 2]


@pytest.mark.parametrize(
    ("noise", "message"),
    [({"n9": 1.0}, "n9, which has no update"), ({"n0": 0.0}, "0.0"), ({"n0": np.nan}, "nan")],
)
def test_noise_that_cannot_be_tested_is_refused(
    tmp_path: Path, noise: dict[str, float], message: str
) -> None:
    rows = spooled(tmp_path, np.ones((1, 4), dtype=np.float32))
    with pytest.raises(AggregationError, match=message):
        measure(rows, elements=4, noise={NodeId(key): std for key, std in noise.items()})


def test_sets_of_coordinates_differ_by_seed_and_cost_little(tmp_path: Path) -> None:
    # Ones: a Gram matrix counts the coordinates of its set.
    elements = 100 * GROUP_ELEMENTS + 9
    values = np.ones((2, elements), dtype=np.float32)
    values[1] = np.arange(elements) % 8191
    rows = spooled(tmp_path, values)
    needs = Needs(subsets=3)
    grams = [measure(rows, elements=elements, needs=needs, seed=seed) for seed in (1, 1, 2)]
    assert [len(gram.subsets) for gram in grams] == [3, 3, 3]
    np.testing.assert_array_equal(grams[0].subsets, grams[1].subsets)
    different = {each.tobytes() for gram in grams for each in gram.subsets}
    assert len(different) == 6
    for subset in grams[0].subsets:
        assert 0.9 * SUBSET_ELEMENTS < subset[0, 0] < 1.2 * SUBSET_ELEMENTS
        np.testing.assert_array_equal(subset, subset.T)
        assert subset[0, 1] / subset[0, 0] == pytest.approx(4095, rel=0.1)


def test_a_set_of_a_small_models_coordinates_is_all_of_them(tmp_path: Path) -> None:
    values = np.random.default_rng(4).standard_normal((3, 500), dtype=np.float32)
    gram = measure(spooled(tmp_path, values), elements=500, needs=Needs(subsets=2))
    for subset in gram.subsets:
        np.testing.assert_allclose(subset, gram.matrix, rtol=1e-12)


# --- size --------------------------------------------------------------------------------


def test_a_model_without_values_has_an_empty_aggregate(tmp_path: Path) -> None:
    rows = spooled(tmp_path, np.empty((2, 0), dtype=np.float32))
    gram = measure(rows, elements=0, executor=LocalExecutor(2))
    assert not gram.matrix.any()
    assert (
        list(aggregate_chunks(Plan(("n0", "n1"), np.eye(2), CoordinateMedian()), rows, elements=0))
        == []
    )


PEAK_SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
from matl_coordinator.aggregation import LocalExecutor, Row, aggregate_chunks, measure
from matl_coordinator.core.robust.plan import CoordinateMedian, Identity, Plan

def status(key):
    (line,) = [each for each in open("/proc/self/status") if each.startswith(key)]
    return int(line.split()[1]) * 1024

folder, elements, reduce = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
rows = [Row(path.name, path) for path in sorted(folder.iterdir())]
names, n = tuple(row.name for row in rows), len(rows)
idle, count, total = status("VmRSS"), 0, 0.0
if reduce == "median":
    measure(rows, elements=elements, executor=LocalExecutor(2))
    plan = Plan(names, np.eye(n), CoordinateMedian())
else:
    plan = Plan(names, np.full((1, n), 1 / n), Identity())
for chunk in aggregate_chunks(plan, rows, elements=elements, executor=LocalExecutor(2)):
    count += len(chunk)
    total += float(chunk.sum(dtype=np.float64))
print(json.dumps({"above": status("VmHWM") - idle, "count": count, "total": total}))
"""


def sparse(folder: Path, elements: int, values: list[float]) -> None:
    """Rows of zeros that take no disk, but for the last value of each."""
    folder.mkdir()
    for index, value in enumerate(values):
        with (folder / f"n{index:03}").open("wb") as file:
            file.seek(4 * (elements - 1))
            file.write(np.float32(value).tobytes())


def peak(folder: Path, elements: int, reduction: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", PEAK_SCRIPT, str(folder), str(elements), reduction],
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def test_a_row_of_seven_gigabytes_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    elements = 7_000_000_000 // 4
    # Holes in a file in memory are read without filling the page cache with zeros.
    memory = Path("/dev/shm")
    folder = memory if os.access(memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=folder) as name:
        sparse(Path(name) / "rows", elements, [3.0])
        measured = peak(Path(name) / "rows", elements, "mean")
    assert measured["count"] == elements
    assert measured["total"] == pytest.approx(3.0)
    assert measured["above"] < 64 << 20


@pytest.mark.parametrize("n", [5, 200])
def test_both_passes_stay_below_two_models_and_64_megabytes(tmp_path: Path, n: int) -> None:
    # ResNet-50's 102 MB would take long at n = 200; what is used does not depend on it.
    elements = 4_000_000 if n == 5 else 300_000
    sparse(tmp_path / "rows", elements, [float(index) for index in range(n)])
    measured = peak(tmp_path / "rows", elements, "median")
    assert measured["total"] == pytest.approx((n - 1) / 2)
    assert measured["above"] < 2 * RESNET50_BYTES + (64 << 20)
