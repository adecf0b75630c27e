"""The hardened mechanism: sums of integers with exact discrete Gaussian noise.

No floating-point number is between the data and the release, so none of its rounding can
tell of the data: each gradient is truncated to a public grid, the sum is of integers, and
the noise is drawn with integer arithmetic only (Canonne, Kamath & Steinke, arXiv
2004.00010). What a draw takes in time depends on the noise drawn; so the noise is drawn in
bulk, before the data is looked at, and updates are sent on schedule.

Its accounting is in ``concentrated.py``.
"""

import math
import os
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from matl_common.errors import InvalidInputError
from matl_common.privacy.noise import Float64Array

Int64Array = NDArray[np.int64]

_BUFFER_BYTES = 1 << 14
_LARGEST_GRID_UNITS = 1 << 30
_GRID_BITS_BELOW_NORM = 24


def discrete_gaussian(count: int, *, variance: Fraction) -> Int64Array:
    """``count`` independent draws of N_Z(0, ``variance``), exactly; algorithm 3.

    Raises:
        InvalidInputError: ``count`` is negative, or ``variance`` not above 0.
    """
    if count < 0 or variance <= 0:
        raise InvalidInputError(
            f"count is {count} and variance {float(variance)}; they must be 0 or more, and above 0"
        )
    source = _Entropy()
    scale = math.isqrt(math.floor(variance)) + 1
    draws = (_one_gaussian(source, variance, scale) for _ in range(count))
    return np.fromiter(draws, dtype=np.int64, count=count)


def gradient_grid(max_grad_norm: float) -> float:
    """The public grid of the hardened mechanism: a power of two, about C/2²⁴.

    Truncation moves a coordinate of a million patients' sum by less than C/16, and noised sums
    stay below 2⁵³ grid units, where floating point is exact.
    """
    return math.ldexp(1.0, math.frexp(max_grad_norm)[1] - 1 - _GRID_BITS_BELOW_NORM)


def sum_on_grid(
    gradients: Float64Array, *, grid: float, max_grad_norm: float, rows_per_patient: int = 1
) -> Int64Array:
    """The sum of rows, each truncated to multiples of ``grid``, in those units.

    Truncation is towards zero, so that no row grows; one that is longer than
    ``max_grad_norm / rows_per_patient`` all the same, or not finite, contributes nothing. One
    patient moves the sum by a norm of at most ``max_grad_norm / grid``, exactly.

    Args:
        gradients: clipped rows, ``(n, d)``.
        grid: a power of two.
        max_grad_norm: C, at most 2³⁰ grid units.
        rows_per_patient: k, the most rows that can belong to one patient.

    Raises:
        InvalidInputError: the grid is not a power of two, or too fine for 64 bits.
    """
    if math.frexp(grid)[0] != 0.5 or not 1.0 <= max_grad_norm / grid <= _LARGEST_GRID_UNITS:
        raise InvalidInputError(
            f"grid is {grid}; it must be a power of two between C/2³⁰ and C = {max_grad_norm}"
        )
    units = Fraction(max_grad_norm) / Fraction(grid) / rows_per_patient
    usable = np.isfinite(gradients).all(axis=1)
    # Division by a power of two is exact. Far longer rows must not overflow below.
    reach = 2.0 * float(units)
    scaled = np.trunc(np.clip(gradients[usable] / grid, -reach, reach))
    integers: Int64Array = scaled.astype(np.int64)
    # In floating point first, for what could overflow; exactly then, for what is close.
    close = integers[np.square(scaled).sum(axis=1) <= 2.0 * float(units) ** 2]
    kept = close[np.square(close).sum(axis=1) <= math.floor(units**2)]
    total: Int64Array = kept.sum(axis=0)
    return total


def discrete_noised_sum(
    blocks: Iterable[Float64Array],
    *,
    dimensions: int,
    noise_multiplier: float,
    max_grad_norm: float,
    rows_per_patient: int = 1,
) -> Float64Array:
    """One release of the hardened mechanism: multiples of ``gradient_grid``, ``(dimensions,)``.

    The noise has a standard deviation of at least ``noise_multiplier * max_grad_norm``.

    Args:
        blocks: of clipped rows, as in ``sum_on_grid``; asked for after the noise was drawn.
        dimensions: of a row.
        noise_multiplier: s.
        max_grad_norm: C.
        rows_per_patient: as in ``sum_on_grid``.

    Raises:
        InvalidInputError: ``noise_multiplier`` is not finite and above 0.
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0.0):
        raise InvalidInputError(
            f"noise_multiplier is {noise_multiplier}; it must be finite and above 0"
        )
    grid = gradient_grid(max_grad_norm)
    exact = Fraction(noise_multiplier) * Fraction(max_grad_norm) / Fraction(grid)
    # Rounded up to an integer, with which the sampler's fractions stay small.
    total = discrete_gaussian(dimensions, variance=Fraction(math.ceil(exact**2)))
    for block in blocks:
        total += sum_on_grid(
            block, grid=grid, max_grad_norm=max_grad_norm, rows_per_patient=rows_per_patient
        )
    released: Float64Array = total.astype(np.float64) * grid
    return released


class _Entropy:
    """Exact uniform integers from a ChaCha20 stream under a fresh key."""

    def __init__(self) -> None:
        cipher = Cipher(ChaCha20(os.urandom(32), bytes(16)), mode=None)
        self._stream = cipher.encryptor()
        self._buffer = b""
        self._at = 0

    def below(self, bound: int) -> int:
        """A uniform integer from 0 to ``bound - 1``, by rejection."""
        bits = (bound - 1).bit_length()
        size = (bits + 7) // 8
        while True:
            found = int.from_bytes(self._take(size)) >> (8 * size - bits)
            if found < bound:
                return found

    def _take(self, size: int) -> bytes:
        if self._at + size > len(self._buffer):
            self._buffer = self._stream.update(bytes(max(_BUFFER_BYTES, size)))
            self._at = 0
        self._at += size
        return self._buffer[self._at - size : self._at]


def _one_gaussian(source: _Entropy, variance: Fraction, scale: int) -> int:
    while True:
        proposed = _one_laplace(source, scale)
        excess = (abs(proposed) - variance / scale) ** 2 / (2 * variance)
        if _is_exponential(source, excess.numerator, excess.denominator):
            return proposed


def _one_laplace(source: _Entropy, scale: int) -> int:
    """Discrete Laplace, P[x] ∝ exp(-|x|/scale); algorithm 2."""
    while True:
        remainder = source.below(scale)
        if not _is_exponential(source, remainder, scale):
            continue
        whole = 0
        while _is_exponential(source, 1, 1):
            whole += 1
        magnitude = remainder + scale * whole
        is_negative = source.below(2) == 1
        if is_negative and magnitude == 0:
            continue
        return -magnitude if is_negative else magnitude


def _is_exponential(source: _Entropy, numerator: int, denominator: int) -> bool:
    """True with probability exp(-numerator/denominator), exactly; algorithm 1."""
    whole, rest = divmod(numerator, denominator)
    return all(_is_exponential_below_one(source, 1, 1) for _ in range(whole)) and (
        _is_exponential_below_one(source, rest, denominator)
    )


def _is_exponential_below_one(source: _Entropy, numerator: int, denominator: int) -> bool:
    trial = 1
    while source.below(denominator * trial) < numerator:
        trial += 1
    return trial % 2 == 1
