"""What hyper-parameters are chosen from."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Final

from benchmarks.utility.mechanisms import Descent, InputMap, LeastSquares
from matl.demo.study import RECIPE

QUIET: Final = 8.0
"""The ε from which on noise limits neither steps nor directions."""

PUBLIC_STEPS: Final = 64

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
        for norm, rate in product((1.0, 0.5, 0.35, 0.2), (1.0, 2.0))
    ]


def descents(epsilon: float = 1.0, *, hidden: bool = False) -> list[Descent]:
    """Noisy gradient descent from zero with every lever."""
    if epsilon >= QUIET:
        return _quiet(hidden=hidden)
    return [
        Descent(InputMap(size, power, hidden), steps, rate, norm)
        for size, power, steps, rate, norm in product(
            (64, 128, 256), (0.25, 0.5), (16, 32, 64), (512.0, 1024.0), (0.4, 0.2)
        )
    ]


def started_descents(epsilon: float = 1.0) -> list[Descent]:
    """The same from public images' labels; less is left to learn, so fewer steps."""
    if epsilon >= QUIET:
        return [replace(each, public_steps=PUBLIC_STEPS) for each in _quiet()]
    return [
        Descent(InputMap(size, power), steps, rate, norm, public_steps=PUBLIC_STEPS)
        for size, power, steps, rate, norm in product(
            (128, 256, 512), (0.25, 0.6), (8, 16, 32), (128.0, 512.0), (0.4, 0.2)
        )
    ]


def kernel_descents() -> list[Descent]:
    """From zero, over similarities to public images."""
    return [
        Descent(InputMap(size, power, sharpness=2.0), steps, rate, norm)
        for size, power, steps, rate, norm in product(
            (128, 256), (0.6, 0.75), (16, 32), (512.0, 1024.0), (0.4, 0.2)
        )
    ]


def _quiet(*, hidden: bool = False) -> list[Descent]:
    return [
        Descent(InputMap(size, power, hidden), 64, rate, norm)
        for size, power, rate, norm in product(
            (128, 256, 512), (0.25, 0.6), (256.0, 512.0), (1.0, 0.5)
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
    Descent(InputMap(size, 0.75), 100, 512.0, averaged=False, public_steps=before)
    for size, before in product((128, 512), (0, PUBLIC_STEPS))
)
"""Without privacy: few directions and many, from zero and from public labels."""
