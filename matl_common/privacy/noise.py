"""Noise that protects patients: from the operating system's entropy, and nothing else.

Every call takes a fresh 256-bit key, expands it with ChaCha20, and forgets it. There is
no seed, no state and no global generator, so no call can be repeated by anybody.

Gaussian samples are half the sum of four independent Box-Muller normals in float64, which
takes the reconstruction of the low bits (Mironov, CCS 2012) out of reach (Holohan &
Braghin, arXiv 2107.10138); callers then round the noised sum to a public grid before
anything is derived from it. This module never sees data.
"""

import math
import os
from collections.abc import Iterator

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from matl_common.errors import InvalidInputError

Float64Array = NDArray[np.float64]

_KEY_BYTES = 32
_NONCE_BYTES = 16
_MANTISSA_BITS = 53
_CHUNK_SAMPLES = 1 << 16
_GRID_BITS_BELOW_STDDEV = 20


def gaussian_noise(count: int, *, stddev: float) -> Float64Array:
    """``count`` independent draws of N(0, stddev²), shape ``(count,)``.

    Raises:
        InvalidInputError: ``count`` is negative, or ``stddev`` is not a finite positive number.
    """
    _check_stddev(stddev)
    out = np.empty(_checked_count(count), dtype=np.float64)
    stream = _fresh_keystream()
    for part in _parts(count):
        out[part] = _four_gaussian_sums(stream, part.stop - part.start)
    out *= stddev
    return out


def uniforms(count: int) -> Float64Array:
    """``count`` independent draws from (0, 1], multiples of 2⁻⁵³."""
    return _uniforms(_fresh_keystream(), _checked_count(count))


def poisson_sample(count: int, *, sample_rate: float) -> NDArray[np.intp]:
    """Indices below ``count``, each present independently with ``sample_rate``; may be empty."""
    if not 0.0 <= sample_rate <= 1.0:
        raise InvalidInputError(f"sample_rate is {sample_rate}; it must lie between 0 and 1")
    return np.flatnonzero(uniforms(count) <= sample_rate)


def public_grid(stddev: float) -> float:
    """The spacing of released values: a power of two about a millionth of ``stddev``."""
    _check_stddev(stddev)
    return math.ldexp(1.0, math.floor(math.log2(stddev)) - _GRID_BITS_BELOW_STDDEV)


def round_to_grid(values: Float64Array, *, grid: float) -> Float64Array:
    """The nearest multiples of ``grid`` (a power of two, so the result is exact)."""
    rounded: Float64Array = np.rint(values / grid) * grid
    return rounded


def _four_gaussian_sums(stream: CipherContext, count: int) -> Float64Array:
    """``count`` standard normals; two outputs share four Box-Muller pairs, never a normal."""
    half = (count + 1) // 2
    # A uniform is in (0, 1], so its logarithm is finite.
    radius = np.sqrt(-2.0 * np.log(_uniforms(stream, 4 * half)))
    angle = (2.0 * np.pi) * _uniforms(stream, 4 * half)
    cosines = (radius * np.cos(angle)).reshape(4, half).sum(axis=0)
    sines = (radius * np.sin(angle)).reshape(4, half).sum(axis=0)
    sums: Float64Array = np.concatenate([cosines, sines])[:count] / 2.0
    return sums


def _uniforms(stream: CipherContext, count: int) -> Float64Array:
    words = np.frombuffer(stream.update(bytes(8 * count)), dtype="<u8")
    scaled: Float64Array = ((words >> np.uint64(64 - _MANTISSA_BITS)) + np.uint64(1)).astype(
        np.float64
    )
    return scaled * 2.0**-_MANTISSA_BITS


def _fresh_keystream() -> CipherContext:
    cipher = Cipher(ChaCha20(os.urandom(_KEY_BYTES), bytes(_NONCE_BYTES)), mode=None)
    return cipher.encryptor()


def _parts(count: int) -> Iterator[slice]:
    for start in range(0, count, _CHUNK_SAMPLES):
        yield slice(start, min(start + _CHUNK_SAMPLES, count))


def _checked_count(count: int) -> int:
    if count < 0:
        raise InvalidInputError(f"count is {count}; it must be 0 or more")
    return count


def _check_stddev(stddev: float) -> None:
    if not (math.isfinite(stddev) and stddev > 0.0):
        raise InvalidInputError(f"stddev is {stddev}; it must be finite and above 0")
