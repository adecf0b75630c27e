import numpy as np
import pytest

from matl_common.errors import InvalidInputError
from matl_common.vision.linear_head import (
    BIAS_INPUT,
    INPUT_NORM,
    Float64Array,
    Labels,
    head_logits,
)
from matl_common.vision.moments import (
    SENSITIVITY,
    augmented,
    moment_sums,
    solve_ridge,
    unpack_moments,
)

pytestmark = pytest.mark.privacy

CLASSES = 4
SHARES = [0.0, 0.2, 0.9]


def rows(count: int, dimensions: int = 6, *, seed: int = 0) -> tuple[Float64Array, Labels]:
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(count, dimensions))
    inputs = INPUT_NORM * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return inputs, rng.integers(0, CLASSES, count)


def sums(inputs: Float64Array, labels: Labels, share: float) -> Float64Array:
    return moment_sums(inputs, labels, classes=CLASSES, gram_share=share)


@pytest.mark.parametrize("share", SHARES)
def test_one_patient_moves_the_pair_by_at_most_the_sensitivity(share: float) -> None:
    inputs, labels = rows(50)
    whole = sums(inputs, labels, share)
    shifts = [
        np.linalg.norm(whole - sums(np.delete(inputs, i, 0), np.delete(labels, i), share))
        for i in range(50)
    ]
    # Rows as long as ``project`` makes them reach the bound: it could not be lower.
    assert np.allclose(shifts, SENSITIVITY)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("length", [0.0, 1e-300, 0.1, 1.0, 1e6, 1e150, 1e308])
def test_no_extreme_row_moves_the_pair_further(share: float, length: float) -> None:
    rng = np.random.default_rng(5)
    for label in range(CLASSES):
        for direction in (*np.eye(6), -np.eye(6)[0], rng.normal(size=6)):
            with np.errstate(over="ignore"):
                row = (length * direction)[None]
            assert np.linalg.norm(sums(row, np.array([label]), share)) <= SENSITIVITY + 1e-12


def test_a_random_search_for_a_row_that_moves_it_further_finds_none() -> None:
    rng = np.random.default_rng(6)
    worst = 0.0
    for _ in range(2000):
        row = rng.normal(size=(1, 6)) * np.exp(rng.normal(scale=3.0, size=(1, 6)))
        share, label = float(rng.uniform(0.0, 0.999)), rng.integers(0, CLASSES, 1)
        worst = max(worst, float(np.linalg.norm(sums(row, label, share))))
    assert 0.99 < worst <= SENSITIVITY + 1e-12


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_contributes_nothing(damage: float) -> None:
    inputs, labels = rows(20)
    inputs[3, 2] = damage
    without = sums(np.delete(inputs, 3, 0), np.delete(labels, 3), 0.5)
    assert np.array_equal(sums(inputs, labels, 0.5), without)


@pytest.mark.parametrize("share", SHARES)
def test_unpacking_undoes_the_scaling(share: float) -> None:
    inputs, labels = rows(30)
    found = unpack_moments(
        sums(inputs, labels, share), dimensions=6, classes=CLASSES, gram_share=share
    )
    u = augmented(inputs)
    assert np.allclose(found.cross, (np.eye(CLASSES)[labels] - 1.0 / CLASSES).T @ u)
    if share == 0.0:
        assert found.gram is None
    else:
        assert found.gram is not None
        assert np.allclose(found.gram, u.T @ u)


def test_the_ridge_solution_is_that_of_the_normal_equations() -> None:
    inputs, labels = rows(200)
    u, targets = augmented(inputs), np.eye(CLASSES)[labels] - 1.0 / CLASSES
    weight, bias = solve_ridge(u.T @ u, targets.T @ u, ridge=0.7)
    direct = np.linalg.solve(u.T @ u + 0.7 * np.eye(7), u.T @ targets)
    logits = head_logits(inputs, weight, bias)
    assert np.allclose(logits, u @ direct)
    assert weight.shape == (CLASSES, 6)
    assert u[0, -1] == pytest.approx(np.sqrt(2.0) * BIAS_INPUT)


def test_negative_eigenvalues_of_a_noised_gram_matrix_count_as_zero() -> None:
    gram, cross = np.diag([4.0, -3.0, -0.9]), np.ones((2, 3))
    weight, bias = solve_ridge(gram, cross, ridge=1.0)
    assert np.allclose(weight, np.sqrt(2.0) * np.array([[0.2, 1.0], [0.2, 1.0]]))
    assert np.allclose(bias, np.sqrt(2.0))


def test_what_cannot_be_is_refused() -> None:
    inputs, labels = rows(3)
    with pytest.raises(InvalidInputError, match="gram_share"):
        sums(inputs, labels, 1.0)
    with pytest.raises(InvalidInputError, match="classes"):
        moment_sums(inputs, np.zeros(3, np.int64), classes=1, gram_share=0.0)
    with pytest.raises(InvalidInputError, match="ridge"):
        solve_ridge(np.eye(3), np.ones((2, 3)), ridge=0.0)
    with pytest.raises(InvalidInputError, match="moments"):
        unpack_moments(np.zeros(9), dimensions=6, classes=CLASSES, gram_share=0.0)
