"""Accounting for the Poisson-sampled (``full``) recipe, by privacy loss distributions.

The plan is fixed before the first step: noise multiplier, sampling rate and the largest
number of steps. Only then is the loss of the whole plan a bound on every prefix of it;
stopping when an ε computed along the way passes a limit is not valid in general (arXiv
2602.06756). dp-accounting (and with it scipy) is imported at the first use only, and only for
what it answers in seconds and within a gigabyte: others choose a plan's figures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from matl_common.errors import InvalidInputError, MatlError
from matl_common.privacy.budget import full_batch_epsilon
from matl_common.privacy.mechanisms import (
    Adjacency,
    DiscreteGaussianEvent,
    DpEvent,
    GaussianEvent,
    PoissonSampledGaussianEvent,
    PrivacyGuarantee,
)

_CALIBRATION_TOLERANCE = 1e-3
# A loss distribution takes memory by the range of the loss, one step's about 10/σ + 1/2σ², and
# all steps' by its variance too. Within these limits, where ε is below 100, 700 MiB and 4 s
# were the most at their edge (AMD EPYC, 2026-11-28); beyond them, it was 25 GB.
_LEAST_NOISE_MULTIPLIER = 0.25
_LARGEST_LOSS_VARIANCE = 100.0
MOST_SAMPLED_STEPS = 1_000_000


class PlanViolationError(MatlError):
    """A request differs from the frozen plan it should follow."""


@dataclass(frozen=True, slots=True)
class PoissonPlan:
    """The frozen parameters of one study under Poisson sampling."""

    noise_multiplier: float
    sample_rate: float
    max_steps: int

    def guarantee(self, delta: float) -> PrivacyGuarantee:
        """What the complete plan promises; it holds for every prefix too."""
        return poisson_guarantee(self.events(self.max_steps), delta)

    def events(self, steps: int) -> PoissonSampledGaussianEvent:
        return PoissonSampledGaussianEvent(self.noise_multiplier, self.sample_rate, steps)

    def would_exceed(self, *, steps_spent: int, request: PoissonSampledGaussianEvent) -> bool:
        """Whether ``request`` passes the plan's steps.

        Raises:
            PlanViolationError: the request has another noise multiplier or sampling rate.
        """
        if (request.noise_multiplier, request.sample_rate) != (
            self.noise_multiplier,
            self.sample_rate,
        ):
            raise PlanViolationError(
                f"the plan fixes noise multiplier {self.noise_multiplier} and sample rate "
                f"{self.sample_rate}; the request has {request.noise_multiplier} and "
                f"{request.sample_rate}; changing them needs a new, separately charged plan"
            )
        return steps_spent + request.steps > self.max_steps


def poisson_guarantee(event: PoissonSampledGaussianEvent, delta: float) -> PrivacyGuarantee:
    """The (pessimistic, tight) ε of ``event`` under add-or-remove-one."""
    return composed_guarantee([event], delta)


def composed_guarantee(events: Sequence[DpEvent], delta: float) -> PrivacyGuarantee:
    """The (pessimistic, tight) ε of all ``events`` on the same records, under add-or-remove-one.

    Their parameters must not depend on one another's releases. Full-batch events alone have
    an exact sum instead (``budget.py``), which may. Discrete noise has no loss distribution in
    dp-accounting: where both occur, each part gets half of δ and the two ε are added. Events
    that are not ``is_accountable`` get the ε they had without sampling, which is no less.
    """
    counted = [event for event in events if event.steps > 0]
    discrete = [event for event in counted if isinstance(event, DiscreteGaussianEvent)]
    others = tuple(event for event in counted if not isinstance(event, DiscreteGaussianEvent))
    share = delta / 2.0 if discrete and others else delta
    if not others:
        epsilon = 0.0
    elif is_accountable(others):
        epsilon = _pld_epsilon(others, share)
    else:
        unsampled = [GaussianEvent(each.noise_multiplier, each.steps) for each in others]
        epsilon = full_batch_epsilon(unsampled, share)
    if discrete:
        epsilon += full_batch_epsilon(discrete, share)
    return PrivacyGuarantee(epsilon, delta, Adjacency.ADD_OR_REMOVE_ONE)


def is_accountable(events: Sequence[GaussianEvent | PoissonSampledGaussianEvent]) -> bool:
    """Whether the loss distributions of ``events`` are computed in bounded time and memory.

    All are whose ε could be promised to anybody. A sampled step's variance is that of the
    central limit (Bu et al., arXiv 1911.11607): q²(e^(1/σ²) - 1).
    """
    variance = 0.0
    for event in events:
        match event:
            case GaussianEvent(noise_multiplier, steps):
                variance += steps / noise_multiplier**2
            case PoissonSampledGaussianEvent(noise_multiplier, sample_rate, steps):
                if noise_multiplier < _LEAST_NOISE_MULTIPLIER or steps > MOST_SAMPLED_STEPS:
                    return False
                variance += steps * sample_rate**2 * math.expm1(1.0 / noise_multiplier**2)
    return variance <= _LARGEST_LOSS_VARIANCE


@lru_cache(maxsize=64)
def _pld_epsilon(
    events: tuple[GaussianEvent | PoissonSampledGaussianEvent, ...], delta: float
) -> float:
    # 0.7 seconds and 70 MiB, which a hospital that trains only heads need not spend.
    import dp_accounting
    from dp_accounting import pld

    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for event in events:
        match event:
            case GaussianEvent(noise_multiplier, steps):
                one = dp_accounting.GaussianDpEvent(noise_multiplier)
            case PoissonSampledGaussianEvent(noise_multiplier, sample_rate, steps):
                gaussian = dp_accounting.GaussianDpEvent(noise_multiplier)
                one = dp_accounting.PoissonSampledDpEvent(sample_rate, gaussian)
        accountant.compose(dp_accounting.SelfComposedDpEvent(one, steps))
    return float(accountant.get_epsilon(delta))


def calibrate_poisson_noise(
    epsilon: float, delta: float, *, sample_rate: float, steps: int
) -> float:
    """The least noise multiplier, to 0.001 and from above, that keeps ``steps`` within (ε, δ).

    Of those whose ε is computed: no noise is found below 0.25, but without counting on sampling.
    """
    if not 1 <= steps <= MOST_SAMPLED_STEPS:
        raise InvalidInputError(
            f"steps is {steps}; noise is calibrated for 1 to {MOST_SAMPLED_STEPS} sampled steps"
        )

    def holds(noise_multiplier: float) -> bool:
        event = PoissonSampledGaussianEvent(noise_multiplier, sample_rate, steps)
        return poisson_guarantee(event, delta).epsilon <= epsilon

    upper = 1.0
    while not holds(upper):
        upper *= 2.0
    lower = upper / 2.0 if upper > 1.0 else _CALIBRATION_TOLERANCE
    while upper - lower > _CALIBRATION_TOLERANCE:
        middle = (lower + upper) / 2.0
        if holds(middle):
            upper = middle
        else:
            lower = middle
    return upper
