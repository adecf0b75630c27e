"""What was, or will be, done to private data, as frozen values.

An event holds the parameters necessary and sufficient to account for it, and nothing
else. This module computes no privacy loss and draws no noise.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from matl_common.errors import InvalidInputError


class Adjacency(StrEnum):
    """Which two data sets count as neighbours; the same noise means another ε for each."""

    ADD_OR_REMOVE_ONE = "add-or-remove-one"
    ZERO_OUT = "zero-out"
    REPLACE_ONE = "replace-one"


class PrivacyUnit(StrEnum):
    """Whose presence is hidden: all records of a patient, or one image only."""

    PATIENT = "patient"
    IMAGE = "image"


class Noise(StrEnum):
    """What is added to a sum; the same size of it means another ε for each."""

    GAUSSIAN = "gaussian"
    """Continuous, in floating point, rounded to a public grid afterwards."""
    DISCRETE_GAUSSIAN = "discrete-gaussian"
    """Exact, on integers: the hardened mechanism (``discrete.py``)."""


@dataclass(frozen=True, slots=True)
class PrivacyGuarantee:
    """An (ε, δ) statement, which means nothing without the relation it is made under."""

    epsilon: float
    delta: float
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
    unit: PrivacyUnit = PrivacyUnit.PATIENT

    def __str__(self) -> str:
        relation = f"{self.adjacency.value} {self.unit.value}"
        return f"ε = {self.epsilon:.4g}, δ = {self.delta:.3g} ({relation})"


@dataclass(frozen=True, slots=True)
class GaussianEvent:
    """``steps`` sums over *all* records, each clipped to norm C, with noise.

    The noise is Gaussian with standard deviation ``noise_multiplier`` · C.

    Attributes:
        noise_multiplier: s, the noise standard deviation in units of C.
        steps: how many such sums are released.
    """

    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        _check_noise_multiplier(self.noise_multiplier)
        _check_steps(self.steps)


@dataclass(frozen=True, slots=True)
class DiscreteGaussianEvent:
    """As ``GaussianEvent``, of integer vectors and with discrete Gaussian noise.

    Attributes:
        noise_multiplier: s, the noise's parameter σ in units of C.
        steps: how many such sums are released.
    """

    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        _check_noise_multiplier(self.noise_multiplier)
        _check_steps(self.steps)


@dataclass(frozen=True, slots=True)
class PoissonSampledGaussianEvent:
    """As ``GaussianEvent``, over a batch in which each record is present with ``sample_rate``.

    The records are drawn independently of one another, afresh at each step; empty
    batches are noised and counted as any other.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        _check_noise_multiplier(self.noise_multiplier)
        _check_steps(self.steps)
        if not 0.0 < self.sample_rate <= 1.0:
            raise InvalidInputError(
                f"sample_rate is {self.sample_rate}; it must be above 0 and at most 1"
            )


FullBatchEvent = GaussianEvent | DiscreteGaussianEvent
DpEvent = FullBatchEvent | PoissonSampledGaussianEvent


def full_batch_event(noise: Noise, noise_multiplier: float, steps: int) -> FullBatchEvent:
    """``steps`` sums over all records with noise of this kind."""
    match noise:
        case Noise.GAUSSIAN:
            return GaussianEvent(noise_multiplier, steps)
        case Noise.DISCRETE_GAUSSIAN:
            return DiscreteGaussianEvent(noise_multiplier, steps)


def _check_noise_multiplier(noise_multiplier: float) -> None:
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0.0):
        raise InvalidInputError(
            f"noise_multiplier is {noise_multiplier}; it must be finite and above 0"
        )


def _check_steps(steps: int) -> None:
    if steps < 0:
        raise InvalidInputError(f"steps is {steps}; it must be 0 or more")
