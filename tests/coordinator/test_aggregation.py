import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from matl_common.ids import digest_of_file
from matl_common.tensors import (
    Float32Vector,
    TensorSpec,
    parse_schema,
    read_model,
    store_model,
)
from matl_coordinator.aggregation import (
    LocalExecutor,
    Row,
    aggregate_chunks,
    apply_update,
    measure,
)
from matl_coordinator.aggregation.gram_pass import SINGLE_PRECISION_FROM
from matl_coordinator.aggregation.rows import GROUP_ELEMENTS
from matl_coordinator.core.robust.gram import AggregationError
from matl_coordinator.core.robust.plan import CoordinateMedian, Identity, Plan
from matl_coordinator.core.robust.registry import Choice, make_aggregator
from tests.core.robust_rows import mean_around_median

D = 2 * GROUP_ELEMENTS + 137


def spooled(folder: Path, values: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> list[Row]:
    rows = []
    for index, row in enumerate(values):
        path = folder / f"n{index}.f32"
        row.astype("<f4").tofile(path)
        rows.append(Row(f"n{index}", path))
    return rows


@pytest.fixture
def values() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(3).standard_normal((5, D), dtype=np.float32)


def test_the_gram_matrix_is_the_one_numpy_computes_at_once(
    tmp_path: Path, values: np.ndarray[tuple[int, int], np.dtype[np.float32]]
) -> None:
    rows = spooled(tmp_path, values)
    gram = measure(rows[:3], rows[3:], elements=D)
    exact = values.astype(np.float64) @ values.astype(np.float64).T
    np.testing.assert_allclose(gram.matrix, exact, rtol=1e-12, atol=1e-9)
    np.testing.assert_array_equal(gram.matrix, gram.matrix.T)
    assert gram.nodes == ("n0", "n1", "n2")
    assert gram.extras == ("n3", "n4")
    assert gram.elements == D


@pytest.mark.parametrize(
    "elements",
    [
        1,
        7,
        511,
        513,
        GROUP_ELEMENTS - 1,
        GROUP_ELEMENTS,
        GROUP_ELEMENTS + 1,
        16 * GROUP_ELEMENTS + 1,
    ],
)
@pytest.mark.parametrize("n", [1, 2, 20])
def test_every_rule_gives_what_numpy_gives_on_whole_rows(
    tmp_path: Path, elements: int, n: int
) -> None:
    values = np.random.default_rng(n).standard_normal((n, elements), dtype=np.float32)
    rows = spooled(tmp_path, values)
    gram = measure(rows, elements=elements)
    f = (n - 1) // 2
    norms = np.linalg.norm(values.astype(np.float64), axis=1)
    clip = np.minimum(1.0, 1.5 * np.median(norms) / norms)[:, None]
    expected = {
        "weighted_mean": values.mean(axis=0, dtype=np.float64),
        "clipped_weighted_mean": (clip * values).mean(axis=0),
        "coordinate_median": np.median(values.astype(np.float64), axis=0),
        "trimmed_mean": np.sort(values, axis=0)[f : n - f].mean(axis=0, dtype=np.float64),
        "meamed": mean_around_median(values.astype(np.float64), n - f),
    }
    for name, exact in expected.items():
        plan = make_aggregator(Choice(name), f=f)(gram)
        result = np.concatenate(list(aggregate_chunks(plan, rows, elements=elements)))
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, exact, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_median_of_mixed_rows_is_the_median_of_the_mixtures(
    tmp_path: Path, values: np.ndarray[tuple[int, int], np.dtype[np.float32]]
) -> None:
    rows = spooled(tmp_path, values)
    mixing = np.random.default_rng(1).standard_normal((4, 5))
    plan = Plan(tuple(row.name for row in rows), mixing, CoordinateMedian())
    result = np.concatenate(list(aggregate_chunks(plan, rows, elements=D)))
    np.testing.assert_allclose(result, np.median(mixing @ values, axis=0), rtol=1e-4, atol=1e-5)


def test_the_number_of_threads_changes_no_bit(
    tmp_path: Path, values: np.ndarray[tuple[int, int], np.dtype[np.float32]]
) -> None:
    rows = spooled(tmp_path, values)
    grams = [measure(rows, elements=D, executor=LocalExecutor(threads)) for threads in (1, 2, 5)]
    assert len({gram.matrix.tobytes() for gram in grams}) == 1
    for name in ("clipped_weighted_mean", "coordinate_median"):
        plan = make_aggregator(Choice(name), f=0)(grams[0])
        results = {
            np.concatenate(
                list(aggregate_chunks(plan, rows, elements=D, executor=LocalExecutor(threads)))
            ).tobytes()
            for threads in (1, 2, 5)
        }
        assert len(results) == 1


DIGEST_SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from matl_common.ids import digest_of
from matl_coordinator.aggregation import Row, aggregate_chunks, measure
from matl_coordinator.core.robust.plan import CoordinateMedian, Identity, Plan
elements = int(sys.argv[2])
rows = [Row(f"n{i}", Path(sys.argv[1]) / f"n{i}.f32") for i in range(20)]
names, n = tuple(row.name for row in rows), len(rows)
arrays = [measure(rows, elements=elements).matrix]
for plan in (
    Plan(names, np.full((1, n), 1 / n), Identity()),
    Plan(names, np.full((n, n), 1 / n) + np.eye(n), CoordinateMedian()),
):
    arrays += aggregate_chunks(plan, rows, elements=elements)
print(digest_of(b"".join(each.tobytes() for each in arrays)))
"""


@pytest.mark.parametrize("elements", [D, SINGLE_PRECISION_FROM + 99])
def test_the_threads_of_the_linear_algebra_library_change_no_bit(
    tmp_path: Path, elements: int
) -> None:
    spooled(tmp_path, np.random.default_rng(0).standard_normal((20, elements), dtype=np.float32))
    printed = {
        subprocess.run(
            [sys.executable, "-c", DIGEST_SCRIPT, str(tmp_path), str(elements)],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for threads in ("1", "2", "4")
    }
    assert len(printed) == 1


@pytest.mark.hostile
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_counted_and_spoils_no_other_row(
    tmp_path: Path, values: np.ndarray[tuple[int, int], np.dtype[np.float32]], poison: float
) -> None:
    clean = measure(spooled(tmp_path, values), elements=D)
    poisoned = values.copy()
    poisoned[2, [5, D - 1]] = poison
    rows = spooled(tmp_path, poisoned)
    gram = measure(rows, elements=D)
    assert [facts.non_finite for facts in gram.facts] == [0, 0, 2, 0, 0]
    assert gram.non_finite_nodes() == ("n2",)
    others = [node for node in gram.nodes if node != "n2"]
    np.testing.assert_array_equal(gram.select(others).matrix, clean.select(others).matrix)
    plan = make_aggregator(Choice("coordinate_median"), f=0)(gram.select(others))
    assert all(np.isfinite(chunk).all() for chunk in aggregate_chunks(plan, rows, elements=D))
    for reckless in (
        Plan(gram.row_names, np.eye(5), CoordinateMedian()),
        Plan(gram.row_names, np.full((1, 5), 0.2), Identity()),
    ):
        with pytest.raises(AggregationError, match="not finite"):
            list(aggregate_chunks(reckless, rows, elements=D))


@pytest.mark.hostile
def test_the_largest_floats_and_subnormals_do_not_overflow_the_gram_matrix(tmp_path: Path) -> None:
    values = np.array([[3.4e38, 1e-45], [-3.4e38, 0.0]], dtype=np.float32)
    gram = measure(spooled(tmp_path, values), elements=2)
    assert np.isfinite(gram.matrix).all()
    assert gram.matrix[0, 1] == pytest.approx(-(float(values[0, 0]) ** 2))


def test_rows_may_be_given_in_any_order_and_unused_ones_left_out(tmp_path: Path) -> None:
    rows = spooled(tmp_path, np.array([[1.0], [2.0], [4.0]], dtype=np.float32))
    plan = Plan(("n0", "n1", "n2"), np.array([[1.0, 0.0, 0.5]]), Identity())
    (chunk,) = aggregate_chunks(plan, [rows[2], rows[0]], elements=1)
    assert chunk == pytest.approx([3.0])
    with pytest.raises(AggregationError, match="not at hand: n2"):
        list(aggregate_chunks(plan, rows[:2], elements=1))


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    rows = spooled(tmp_path, np.ones((2, 8), dtype=np.float32))
    rows[1].path.write_bytes(b"1234")
    with pytest.raises(AggregationError, match="row n1 has 4 bytes, not 32"):
        measure(rows, elements=8)
    with pytest.raises(AggregationError, match="no update"):
        measure([], elements=8)


SCHEMA = parse_schema(
    (
        TensorSpec("projection", (3, GROUP_ELEMENTS // 2), trainable=False),
        TensorSpec("weight", (2, GROUP_ELEMENTS)),
        TensorSpec("scale", (), trainable=False),
        TensorSpec("bias", (7,)),
    )
)


def cut(vector: Float32Vector, size: int) -> Iterator[Float32Vector]:
    for start in range(0, len(vector), size):
        yield vector[start : start + size]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    random = np.random.default_rng(5)
    blocks = [
        random.standard_normal(spec.elements, dtype=np.float32).data for spec in SCHEMA.tensors
    ]
    return tmp_path / f"{store_model(tmp_path, SCHEMA, blocks)}.safetensors"


@pytest.mark.parametrize("size", [1000, GROUP_ELEMENTS, 10**9])
def test_a_new_model_is_the_base_plus_the_aggregate_with_frozen_tensors_kept(
    tmp_path: Path, base: Path, size: int
) -> None:
    aggregate = np.random.default_rng(6).standard_normal(SCHEMA.update_elements, dtype=np.float32)
    digest = apply_update(base, cut(aggregate, size), tmp_path)
    path = tmp_path / f"{digest}.safetensors"
    assert digest_of_file(path) == digest
    schema, new = read_model(path)
    _, old = read_model(base)
    assert schema == SCHEMA
    start = 0
    for spec in SCHEMA.tensors:
        change = np.zeros(spec.shape, dtype=np.float32)
        if spec.trainable:
            change = aggregate[start : start + spec.elements].reshape(spec.shape)
            start += spec.elements
        np.testing.assert_array_equal(new[spec.name], old[spec.name] + change)


@pytest.mark.parametrize("surplus", [-1, 1])
def test_an_aggregate_of_the_wrong_length_leaves_no_model(
    tmp_path: Path, base: Path, surplus: int
) -> None:
    aggregate = np.zeros(SCHEMA.update_elements + surplus, dtype=np.float32)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(AggregationError, match="than the model's trainable part"):
        apply_update(base, cut(aggregate, 4096), tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_that_overflows_is_not_stored(tmp_path: Path, base: Path) -> None:
    aggregate = np.zeros(SCHEMA.update_elements, dtype=np.float32)
    aggregate[-1] = np.inf
    with pytest.raises(AggregationError, match="tensor bias are not finite"):
        apply_update(base, [aggregate], tmp_path)
