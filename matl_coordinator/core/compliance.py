"""Whether an update carries the privacy noise that the study promised its patients.

Every bound holds for honest training whatever its data, so that an honest update is
refused with a probability of at most ``FALSE_REFUSAL``; the standard deviation comes from
the study's policy and the enrolled size, never from the hospital. What the bounds leave
open is large where the longest honest signal exceeds the noise; ``quiet_part`` has no such
gap. Nothing here decides what a refusal costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matl_common.ids import NodeId
from matl_coordinator.core.robust.gram import Float64Array, Gram

FALSE_REFUSAL = 1e-6
"""At most this probability that an honest update is refused; shared out over six bounds."""
SIZE_TOLERANCE = 0.1
"""How far the number of patients a hospital divides by may be from the enrolled one."""

_TAIL = math.log(6 / FALSE_REFUSAL)


@dataclass(frozen=True, slots=True)
class QuietPart:
    """The part of an update in which honest training leaves nothing but noise."""

    squared_norm: float
    dimensions: int


def quiet_part(weight: NDArray[np.floating], bias: NDArray[np.floating]) -> QuietPart:
    """Project the update of a softmax classifier's last layer on where its signal is zero.

    The cross-entropy gradient of one patient is (p - y) ⊗ (features, 1) with Σ_c (p - y) = 0,
    however it is scaled by clipping. Summed over classes every gradient vanishes, so the sum
    over classes of the update, divided by √classes, is the sum of the steps' noise itself:
    N(0, σ²) in every coordinate. Softmax does not see that sum either, so later steps do
    not contract it.

    Args:
        weight: shape ``(classes, k)``, of the update.
        bias: shape ``(classes,)``.
    """
    both = np.concatenate([weight, bias[:, None]], axis=1).astype(np.float64)
    summed = both.sum(axis=0) / math.sqrt(both.shape[0])
    return QuietPart(float(summed @ summed), summed.size)


@dataclass(frozen=True, slots=True)
class Band:
    """The norms honest training can give, but for a probability of half ``FALSE_REFUSAL``."""

    least: float
    most: float


def norm_band(*, std: float, signal_bound: float, elements: int, steps: int) -> Band:
    """Bounds on ‖x‖ of an update x = s + η with η ~ N(0, σ²I) over all steps and ‖s‖ ≤ S.

    The signal s of a later step depends on the noise of an earlier one, and curvature may
    contract it. Two lower bounds survive: the triangle inequality, ‖η‖ - S; and the noise of
    the last step alone, because given everything before it x is a constant plus
    N(0, σ²/steps I), whose norm is in distribution at least that of the noise. The upper
    bound is ‖η‖ + S.
    """
    low = math.sqrt(_chi_square_bound(elements, upper=False) * elements)
    high = math.sqrt(_chi_square_bound(elements, upper=True) * elements)
    slack = 1.0 + SIZE_TOLERANCE
    longest = slack * signal_bound
    least = max(std / slack * low - longest, std / slack / math.sqrt(steps) * low, 0.0)
    return Band(least, std * slack * high + longest)


def distribution_limit(*, std: float, signal_bound: float, samples: int, steps: int) -> float:
    """The largest Kolmogorov distance of honest coordinates from N(0, σ²).

    An update of zeros is at a distance of .5 and none is beyond 1, so that a limit above
    those says little or nothing; that is so unless the noise is far longer than the signal.

    Dvoretzky-Kiefer-Wolfowitz with Massart's constant (1990) bounds the noise's own distance
    ε. A signal of norm at most S = Rσ carries a coordinate over a threshold only across the
    gap between them; filling the gaps nearest to it first, at a density of at most
    φ = 1/√2π, moves a share of at most (3 φ² R² / m)^⅓ of m coordinates. That holds for a
    signal that depends on the noise. With one step it does not, and the mean value theorem
    and Cauchy-Schwarz give φ R / √m, with Bretagnolle's (1980) factor e for coordinates that
    are independent and not alike.
    """
    slack = 1.0 + SIZE_TOLERANCE
    ratio = (slack**2 * signal_bound / std) ** 2 / samples
    dependent = math.sqrt((_TAIL + math.log(2)) / (2 * samples))
    dependent += math.cbrt(3.0 * ratio / (2.0 * math.pi))
    fixed = math.sqrt((_TAIL + math.log(2) + 1.0) / (2 * samples))
    fixed += math.sqrt(ratio / (2.0 * math.pi))
    # x φ(x) is at most φ(1): what another σ within the tolerance changes.
    tolerance = math.log(slack) * math.exp(-0.5) / math.sqrt(2.0 * math.pi)
    return (min(dependent, fixed) if steps == 1 else dependent) + tolerance


def distribution_distance(bins: Sequence[int]) -> float:
    """Kolmogorov distance at the bounds of equally probable bins; never above the true one."""
    counts: Float64Array = np.asarray(bins, dtype=np.float64)
    found: Float64Array = np.cumsum(counts)[:-1] / counts.sum()
    expected: Float64Array = np.arange(1, counts.size) / counts.size
    return float(np.abs(found - expected).max(initial=0.0))


def refusals(
    gram: Gram, *, steps: int, quiet: Mapping[NodeId, QuietPart] | None = None
) -> dict[NodeId, str]:
    """The updates without the promised noise, each with a phrase; empty without a promise.

    Args:
        gram: the updates, with ``gram.noise`` where the study promises privacy.
        steps: gradient steps of a round.
        quiet: by hospital, where the recipe has a part without signal.
    """
    if gram.noise is None:
        return {}
    refused = {}
    norms = gram.norms
    for index, node in enumerate(gram.nodes):
        std, bound = float(gram.noise.std[index]), gram.noise.signal_bound
        if std <= 0.0:
            continue
        band = norm_band(std=std, signal_bound=bound, elements=gram.elements, steps=steps)
        phrase = (
            _against_quiet((quiet or {}).get(node), std)
            or _against_band(float(norms[index]), band)
            or _against_bins(gram.facts[index].bins, std, bound, steps)
        )
        if phrase:
            refused[node] = phrase
    return refused


def _against_quiet(part: QuietPart | None, std: float) -> str | None:
    if part is None or not part.dimensions:
        return None
    slack = 1.0 + SIZE_TOLERANCE
    low = math.sqrt(_chi_square_bound(part.dimensions, upper=False)) / slack
    high = math.sqrt(_chi_square_bound(part.dimensions, upper=True)) * slack
    ratio = math.sqrt(part.squared_norm / part.dimensions) / std
    if low <= ratio <= high:
        return None
    return (
        f"its update carries {ratio:.2f} times the promised privacy noise where training "
        f"leaves nothing else; honest updates carry {low:.2f} to {high:.2f} times; check that "
        "noise is on and that the declared number of patients is the enrolled one"
    )


def _against_band(norm: float, band: Band) -> str | None:
    if norm < band.least:
        return (
            f"its update is {norm:.4g} long; with the promised privacy noise it would be at "
            f"least {band.least:.4g}"
        )
    if norm > band.most:
        return (
            f"its update is {norm:.4g} long; training with the promised privacy noise gives at "
            f"most {band.most:.4g}"
        )
    return None


def _against_bins(bins: Sequence[int], std: float, bound: float, steps: int) -> str | None:
    if len(bins) < 2 or not sum(bins):
        return None
    limit = distribution_limit(std=std, signal_bound=bound, samples=sum(bins), steps=steps)
    distance = distribution_distance(bins)
    if distance <= limit:
        return None
    return (
        "the values of its update are not distributed like the promised privacy noise: "
        f"distance {distance:.3f}, at most {limit:.3f} in honest ones"
    )


def _chi_square_bound(dimensions: int, *, upper: bool) -> float:
    """u beyond which χ²/dimensions is with a probability of at most e^-_TAIL.

    Chernoff: P(χ² beyond u·d) ≤ exp(-d/2 · (u - 1 - ln u)), on either side of u = 1.
    """
    wanted = 2.0 * _TAIL / dimensions
    inner = 1.0
    outer = 2.0 * wanted + 4.0 if upper else math.exp(-1.0 - wanted)
    for _ in range(100):
        middle = 0.5 * (inner + outer)
        if middle - 1.0 - math.log(middle) < wanted:
            inner = middle
        else:
            outer = middle
    return outer
