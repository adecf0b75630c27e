from pathlib import Path

import numpy as np
import pytest

from matl_common.errors import InvalidInputError
from matl_common.ids import NodeId
from matl_coordinator.aggregation import Histories, Row, sketch_rows
from matl_coordinator.aggregation.sketch import SKETCH_WIDTH
from matl_coordinator.core.robust.gram import AggregationError
from matl_coordinator.core.robust.selection import Float32Array

ELEMENTS = 12 * SKETCH_WIDTH + 777
NODES = [NodeId(f"n{index}") for index in range(4)]


def spooled(folder: Path, values: Float32Array) -> list[Row]:
    folder.mkdir(exist_ok=True)
    rows = []
    for index, row in enumerate(values):
        path = folder / f"n{index}.f32"
        row.astype("<f4").tofile(path)
        rows.append(Row(f"n{index}", path))
    return rows


def updates(seed: int) -> Float32Array:
    values = np.random.default_rng(seed).standard_normal((4, ELEMENTS), dtype=np.float32)
    # n1 and n2 act alike.
    values[2] = values[1] + 0.1 * values[2]
    return values


def test_sums_of_sketches_over_rounds_estimate_the_inner_products_of_the_sums(
    tmp_path: Path,
) -> None:
    total, exact_sum = Histories(7, {}), np.zeros((4, ELEMENTS))
    for rnd in range(3):
        values = updates(rnd)
        total = total.plus(
            sketch_rows(spooled(tmp_path / str(rnd), values), elements=ELEMENTS, seed=7, threads=2)
        )
        exact_sum += values
    exact = exact_sum @ exact_sum.T
    lengths = np.sqrt(np.outer(np.diagonal(exact), np.diagonal(exact)))
    error = (total.inner_products(NODES) - exact) / lengths
    # The standard deviation is 1/256 off the diagonal, and √2 times that on it.
    assert np.abs(error).max() < 4 * np.sqrt(2) / 256
    assert error.std() > 1e-4, "an estimate that is exact is no sketch"


def test_the_error_of_a_sketch_is_about_1_in_256_and_has_no_bias(tmp_path: Path) -> None:
    elements = 3 * SKETCH_WIDTH
    one, other = np.random.default_rng(1).standard_normal((2, elements), dtype=np.float32)
    rows = spooled(tmp_path, np.stack([one, other]))
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    errors = [
        (
            sketch_rows(rows, elements=elements, seed=seed).inner_products(NODES[:2])[0, 1]
            - float(one.astype(np.float64) @ other)
        )
        / lengths
        for seed in range(60)
    ]
    # Within a stretch nothing collides, which leaves 2/3 of the variance of three stretches.
    expected = np.sqrt(2 / 3) / 256
    assert 0.7 * expected < np.std(errors) < 1.4 * expected
    assert abs(np.mean(errors)) < 4 * expected / np.sqrt(60)


def test_a_sketch_depends_on_its_seed_and_not_on_threads(tmp_path: Path) -> None:
    rows = spooled(tmp_path, updates(0))

    def encoded(seed: int, threads: int) -> bytes:
        return sketch_rows(rows, elements=ELEMENTS, seed=seed, threads=threads).encode()

    assert len({encoded(1, threads) for threads in (1, 2, 5)}) == 1
    a, b = (sketch_rows(rows, elements=ELEMENTS, seed=seed) for seed in (1, 2))
    assert not np.array_equal(a.sketches[NODES[0]], b.sketches[NODES[0]])
    with pytest.raises(AggregationError, match="different seeds"):
        a.plus(b)


def test_short_rows_are_sketched_without_loss(tmp_path: Path) -> None:
    values = np.random.default_rng(3).standard_normal((3, 1000), dtype=np.float32)
    histories = sketch_rows(spooled(tmp_path, values), elements=1000, seed=2)
    exact = values.astype(np.float64) @ values.astype(np.float64).T
    np.testing.assert_allclose(histories.inner_products(NODES[:3]), exact, rtol=1e-12)


@pytest.mark.hostile
def test_values_that_are_not_finite_do_not_enter_a_history(tmp_path: Path) -> None:
    values = np.ones((2, 10), dtype=np.float32)
    values[1, [2, 3, 4]] = [np.nan, np.inf, -np.inf]
    products = sketch_rows(spooled(tmp_path, values), elements=10, seed=0).inner_products(NODES[:2])
    np.testing.assert_array_equal(products, [[10.0, 7.0], [7.0, 7.0]])


def test_a_node_that_missed_a_round_keeps_its_history() -> None:
    one, two = np.ones((2, SKETCH_WIDTH), dtype=np.float32)
    early = Histories(1, {NODES[0]: one, NODES[1]: two})
    both = early.plus(Histories(1, {NODES[1]: two, NODES[2]: one}))
    products = both.inner_products([*NODES[:3], NodeId("unknown")]) / SKETCH_WIDTH
    np.testing.assert_array_equal(products, [[1, 2, 1, 0], [2, 4, 2, 0], [1, 2, 1, 0], [0] * 4])
    np.testing.assert_array_equal(early.sketches[NODES[1]], two)


def test_histories_survive_encoding_to_the_bit() -> None:
    random = np.random.default_rng(0)
    sketches = {node: random.standard_normal(SKETCH_WIDTH, dtype=np.float32) for node in NODES}
    data = Histories(3, sketches).encode()
    back = Histories.parse(data)
    assert back.seed == 3
    assert list(back.sketches) == NODES
    assert back.encode() == data
    assert Histories.parse(Histories(0, {}).encode()).sketches == {}


GOOD = Histories(3, {NODES[0]: np.zeros(SKETCH_WIDTH, dtype=np.float32)}).encode()
_LINE, _BODY = GOOD.split(b"\n", 1)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}\n",
        b"[]\n",
        b"\xff\n",
        _LINE,
        GOOD[:-1],
        GOOD + b"\0",
        GOOD.replace(b'"n0"', b'"N0"'),
        GOOD.replace(b'"n0"', b"0"),
        GOOD.replace(b'"seed":3', b'"seed":"3"'),
        GOOD.replace(b'"seed":3', b'"seed":-1'),
        GOOD.replace(b"histories 1", b"histories 2"),
        GOOD.replace(b'["n0"]', b'["n0","n0"]') + _BODY,
        GOOD[:-4] + b"\0\0\xc0\x7f",
    ],
)
def test_bytes_that_are_not_histories_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        Histories.parse(data)
