"""The budget of full-batch Gaussian releases: one sum, Σ 1/s².

A sequence of Gaussian mechanisms with noise multipliers sᵢ is μ-GDP with
μ = √Σ 1/sᵢ², exactly (Dong, Roth & Su, arXiv 1905.02383), and stopping before the sum
passes a fixed limit is valid even when each is chosen after seeing what was released
before (Smith & Thakurta, arXiv 2210.17520). So the sum may be used as a filter; an ε
computed so far may not. Poisson-sampled events have no place here: ``poisson.py``.

That is proved for continuous noise. Where any of the releases has discrete noise, the same
sum is held against the lower limit of ``concentrated.py``, which covers both. Which kind a
release has must then not be chosen with another one in view.

Nothing here reads or writes a ledger.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from matl_common.errors import InvalidInputError
from matl_common.privacy.concentrated import zcdp_epsilon, zcdp_rho
from matl_common.privacy.mechanisms import (
    Adjacency,
    DiscreteGaussianEvent,
    FullBatchEvent,
    Noise,
    PrivacyGuarantee,
    PrivacyUnit,
    full_batch_event,
)

# Calibrated noise is larger than the exact solution by this part, so that a sum of many
# rounded terms still stays below the limit without any tolerance in ``would_exceed``.
_CALIBRATION_MARGIN = 1e-9

_BISECTIONS = 200
_LARGEST_MU = 1e3
_ASYMPTOTIC_FROM = 25.0


@dataclass(frozen=True, slots=True)
class Budget:
    """What one hospital may spend on one study, over its whole length."""

    epsilon: float
    delta: float
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
    unit: PrivacyUnit = PrivacyUnit.PATIENT

    def __post_init__(self) -> None:
        _check_epsilon_delta(self.epsilon, self.delta)

    @property
    def capacity(self) -> float:
        """The limit on Σ 1/s² (0.071851 for ε = 1, δ = 1e-5, add-or-remove-one)."""
        return (gaussian_mu(self.epsilon, self.delta) / sensitivity_factor(self.adjacency)) ** 2

    @property
    def concentrated_capacity(self) -> float:
        """The limit where any release has discrete noise (0.0612 for ε = 1, δ = 1e-5)."""
        rho = zcdp_rho(self.epsilon, self.delta)
        return 2.0 * rho / sensitivity_factor(self.adjacency) ** 2

    def capacity_for(self, events: Iterable[FullBatchEvent]) -> float:
        """The limit on Σ 1/s² of releases among which are ``events``."""
        return self.concentrated_capacity if _any_discrete(events) else self.capacity

    @property
    def guarantee(self) -> PrivacyGuarantee:
        return PrivacyGuarantee(self.epsilon, self.delta, self.adjacency, self.unit)


def sensitivity_factor(adjacency: Adjacency) -> float:
    """How far a sum of vectors of norm at most 1 can move between neighbours."""
    return 2.0 if adjacency is Adjacency.REPLACE_ONE else 1.0


def inverse_variance(events: Iterable[FullBatchEvent]) -> float:
    """Σ steps/s² over ``events``."""
    return math.fsum(event.steps / event.noise_multiplier**2 for event in events)


def full_batch_epsilon(events: Sequence[FullBatchEvent], delta: float) -> float:
    """The ε that ``events`` amount to under add-or-remove-one. For display, never for stopping."""
    return _epsilon_of_sum(events, delta, factor=1.0)


def spent_guarantee(budget: Budget, events: Sequence[FullBatchEvent]) -> PrivacyGuarantee:
    """The ε that ``events`` amount to at the budget's δ. For display, never for stopping."""
    epsilon = _epsilon_of_sum(events, budget.delta, factor=sensitivity_factor(budget.adjacency))
    return PrivacyGuarantee(epsilon, budget.delta, budget.adjacency, budget.unit)


def _epsilon_of_sum(events: Sequence[FullBatchEvent], delta: float, *, factor: float) -> float:
    mu = math.sqrt(inverse_variance(events)) * factor
    if _any_discrete(events):
        return zcdp_epsilon(mu**2 / 2.0, delta)
    return gaussian_epsilon(mu, delta)


def _any_discrete(events: Iterable[FullBatchEvent]) -> bool:
    return any(isinstance(event, DiscreteGaussianEvent) for event in events)


def fraction_spent(budget: Budget, events: Sequence[FullBatchEvent]) -> float:
    """Share of Σ 1/s² used so far; linear in rounds, as ε is not."""
    return inverse_variance(events) / budget.capacity_for(events)


def would_exceed(budget: Budget, spent: Iterable[FullBatchEvent], *request: FullBatchEvent) -> bool:
    """Whether granting ``request`` after ``spent`` would pass the budget.

    A valid privacy filter: ``request`` may depend on everything released so far.
    """
    events = [*spent, *request]
    return inverse_variance(events) > budget.capacity_for(events)


def rounds_left(budget: Budget, spent: Iterable[FullBatchEvent], *per_round: FullBatchEvent) -> int:
    """How many more times ``per_round`` would be granted.

    Raises:
        InvalidInputError: ``per_round`` has no step, and so costs nothing.
    """
    if not any(event.steps for event in per_round):
        raise InvalidInputError("a round of 0 steps spends nothing; rounds left is not defined")
    history = list(spent)
    capacity = budget.capacity_for([*history, *per_round])
    left = capacity - inverse_variance(history)
    estimate = max(0, math.floor(left / inverse_variance(per_round)))
    # Division and the filter's own sum may disagree by one at the limit: the filter decides.
    for rounds in (estimate + 1, estimate):
        wanted = [replace(event, steps=event.steps * rounds) for event in per_round]
        if not would_exceed(budget, history, *wanted):
            return rounds
    return max(0, estimate - 1)


def calibrate_noise(
    epsilon: float,
    delta: float,
    *,
    steps: int,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    noise: Noise = Noise.GAUSSIAN,
    share: float = 1.0,
) -> float:
    """The least noise multiplier with which ``steps`` full-batch sums stay within (ε, δ).

    Calibrate once for a whole study: calibrating each round to ε multiplies the budget.

    Args:
        epsilon, delta, adjacency: the budget.
        steps: how many sums there will be at most.
        noise: its kind.
        share: of the limit on Σ 1/s² that these sums may take; others may have the rest.
    """
    if steps < 1:
        raise InvalidInputError(f"steps is {steps}; at least 1 is needed to calibrate noise")
    if not 0.0 < share <= 1.0:
        raise InvalidInputError(f"share is {share}; it must be above 0 and at most 1")
    budget = Budget(epsilon, delta, adjacency)
    capacity = share * budget.capacity_for([full_batch_event(noise, 1.0, steps)])
    return math.sqrt(steps / capacity) * (1.0 + _CALIBRATION_MARGIN)


def gaussian_delta(mu: float, epsilon: float) -> float:
    """δ(ε) of a μ-GDP mechanism: Φ(-ε/μ + μ/2) - e^ε Φ(-ε/μ - μ/2).

    Balle & Wang, arXiv 1805.06530, theorem 8.
    """
    if mu <= 0.0:
        return 0.0
    upper = _log_normal_cdf(-epsilon / mu + mu / 2.0)
    lower = epsilon + _log_normal_cdf(-epsilon / mu - mu / 2.0)
    # lower <= upper in exact arithmetic; the difference of two equal numbers may round below 0.
    return math.exp(upper) * -math.expm1(min(0.0, lower - upper))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The least ε ≥ 0 with δ(ε) ≤ ``delta``, from above: never understated."""
    _check_delta(delta)
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    upper = mu * mu / 2.0 + mu * math.sqrt(2.0 * math.log(1.0 / delta))
    return _bisect(lambda epsilon: gaussian_delta(mu, epsilon) <= delta, 0.0, upper)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The greatest μ with δ(ε) ≤ ``delta``, from below (0.26805 for ε = 1, δ = 1e-5)."""
    _check_epsilon_delta(epsilon, delta)
    return -_bisect(lambda negative: gaussian_delta(-negative, epsilon) <= delta, -_LARGEST_MU, 0.0)


def group_epsilon(mu: float, delta: float, *, records: int) -> float:
    """ε for a patient with ``records`` separately clipped records, at a per-record μ."""
    return gaussian_epsilon(mu * records, delta)


def _bisect(holds: Callable[[float], bool], fails_at: float, holds_at: float) -> float:
    """The edge of a monotone condition, returned from the side on which it holds."""
    for _ in range(_BISECTIONS):
        middle = (fails_at + holds_at) / 2.0
        if holds(middle):
            holds_at = middle
        else:
            fails_at = middle
    return holds_at


def _log_normal_cdf(x: float) -> float:
    """log Φ(x), also where Φ(x) is below the smallest float."""
    if x > -_ASYMPTOTIC_FROM:
        return math.log(math.erfc(-x / math.sqrt(2.0)) / 2.0)
    # Abramowitz & Stegun 26.2.12; at 25 the first omitted term is below 1e-9.
    inverse = 1.0 / (x * x)
    series = 1.0 - inverse * (1.0 - 3.0 * inverse * (1.0 - 5.0 * inverse))
    return -x * x / 2.0 - math.log(-x * math.sqrt(2.0 * math.pi)) + math.log(series)


def _check_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise InvalidInputError(f"delta is {delta}; it must lie strictly between 0 and 1")


def _check_epsilon_delta(epsilon: float, delta: float) -> None:
    if not (math.isfinite(epsilon) and epsilon > 0.0):
        raise InvalidInputError(f"epsilon is {epsilon}; it must be finite and above 0")
    _check_delta(delta)
