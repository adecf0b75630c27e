"""What a study's terms make of steps and evaluations: events, ε, and shares of the budget.

Hospitals charge by these functions, and the coordinator tells operators by them what was
declared, so that both say the same. Nothing here reads a ledger or data.
"""

import math

from matl_common.errors import InvalidInputError
from matl_common.privacy.budget import full_batch_epsilon, inverse_variance
from matl_common.privacy.mechanisms import (
    DpEvent,
    FullBatchEvent,
    Noise,
    PoissonSampledGaussianEvent,
    full_batch_event,
)
from matl_common.privacy.poisson import composed_guarantee
from matl_common.protocol import PrivacyTerms


def full_batch_events(
    terms: PrivacyTerms, *, steps: int, evaluations: int = 0
) -> tuple[FullBatchEvent, ...]:
    """What so many steps and evaluations of a study with full batches do to the data.

    Raises:
        InvalidInputError: evaluations of a study whose terms have none.
    """
    training = full_batch_event(terms.noise, terms.noise_multiplier, steps)
    return (training, *_evaluation_events(terms, evaluations))


def events_of(terms: PrivacyTerms, *, steps: int, evaluations: int = 0) -> tuple[DpEvent, ...]:
    """What so many steps and evaluations of any study do to the data.

    Raises:
        InvalidInputError: no mechanism is known for the plan's noise and sampling together, or
            evaluations of a study whose terms have none.
    """
    if terms.sample_rate == 1.0:
        return full_batch_events(terms, steps=steps, evaluations=evaluations)
    if terms.noise is not Noise.GAUSSIAN:
        raise InvalidInputError(f"{terms.noise} noise is for full batches only")
    training = PoissonSampledGaussianEvent(terms.noise_multiplier, terms.sample_rate, steps)
    return (training, *_evaluation_events(terms, evaluations))


def _evaluation_events(terms: PrivacyTerms, evaluations: int) -> tuple[FullBatchEvent, ...]:
    if evaluations == 0:
        return ()
    if terms.evaluation is None:
        raise InvalidInputError("the study's plan has no evaluations that could be charged")
    return (full_batch_event(terms.noise, terms.evaluation.noise_multiplier, evaluations),)


def epsilon_of(terms: PrivacyTerms, *, steps: int, evaluations: int = 0) -> float:
    """ε of so many steps and evaluations at the plan's noise and δ; infinite without noise."""
    if steps == 0 and evaluations == 0:
        return 0.0
    if terms.noise_multiplier == 0.0:
        return math.inf
    if terms.sample_rate == 1.0:
        spent = full_batch_events(terms, steps=steps, evaluations=evaluations)
        return full_batch_epsilon(spent, terms.target_delta)
    events = events_of(terms, steps=steps, evaluations=evaluations)
    return composed_guarantee(events, terms.target_delta).epsilon


def fraction_of_plan(terms: PrivacyTerms, *, steps: int, evaluations: int = 0) -> float:
    """Share of what the whole plan costs: of its steps, or, with evaluations, of its Σ 1/s²."""
    if terms.evaluation is None:
        return steps / terms.max_steps
    spent = full_batch_events(terms, steps=steps, evaluations=evaluations)
    most = full_batch_events(
        terms, steps=terms.max_steps, evaluations=terms.evaluation.max_evaluations
    )
    return inverse_variance(spent) / inverse_variance(most)
