"""What hyper-parameters are chosen from."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Final

from benchmarks.utility.mechanisms import Descent, InputMap, LeastSquares
from matl.demo.study import RECIPE

DEMO: Final = Descent(
    InputMap(RECIPE.dimensions, RECIPE.whitening),
    # Six rounds of four steps, as the demonstration runs.
    steps=24,
    learning_rate=RECIPE.learning_rate,
    averaged=False,
)
"""The demonstration's recipe, before any lever is pulled."""


def learning_rates(of: Descent) -> list[Descent]:
    """The same with other learning rates."""
    rates = (8.0, 32.0, 128.0, 512.0)
    return [replace(of, learning_rate=rate) for rate in rates]


def step_counts(of: Descent) -> list[Descent]:
    """The same with other numbers of steps, and learning rates as they ask for."""
    return [
        replace(of, steps=steps, learning_rate=rate)
        for steps, rate in product((4, 8, 16, 32), (64.0, 128.0, 256.0, 512.0))
    ]


def input_maps(of: Descent) -> list[Descent]:
    """The same over other projections."""
    return [
        replace(of, inputs=replace(of.inputs, dimensions=size, whitening=power))
        for size, power in product((32, 64, 128), (0.25, 0.5, 0.75, 1.0))
    ]


def clipping_norms(of: Descent) -> list[Descent]:
    """The same, gradients clipped; the learning rate makes up for some of it."""
    return [
        replace(of, max_grad_norm=norm, learning_rate=rate * of.learning_rate)
        for norm, rate in product((1.0, 0.7, 0.5, 0.35), (1.0, 2.0))
    ]


def descents(*, hidden: bool = False) -> list[Descent]:
    """Noisy gradient descent with every lever, for any ε."""
    return [
        Descent(InputMap(size, power, hidden), steps, rate, norm)
        for size, power, steps, rate, norm in product(
            (64, 128), (0.5, 0.75), (8, 16, 32), (256.0, 512.0), (1.0, 0.5)
        )
    ]


def least_squares(*, gram_shares: Sequence[float] = (0.05, 0.2, 0.5)) -> list[LeastSquares]:
    """One-shot noisy least squares."""
    return [
        LeastSquares(InputMap(size, power), share, ridge)
        for size, power, share, ridge in product(
            (16, 32, 64), (0.0, 0.5), gram_shares, (1e-4, 1e-3, 1e-2)
        )
    ]


NON_PRIVATE: Final = tuple(
    Descent(InputMap(size, 0.75), steps, 512.0, averaged=False)
    for size, steps in ((128, 100), (512, 100))
)
"""Without privacy, from few directions to many and from few steps to many."""
