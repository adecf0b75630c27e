"""Whether a study's plan is acceptable to this hospital, before any data is read.

The plan's own words are not believed: its ε is computed again from its noise, its
sampling rate and its steps. Pure.
"""

import math
from dataclasses import dataclass

from matl_common.ids import Digest
from matl_common.privacy.charges import epsilon_of
from matl_common.privacy.mechanisms import (
    Adjacency,
    Noise,
    PoissonSampledGaussianEvent,
    PrivacyUnit,
)
from matl_common.privacy.poisson import is_accountable
from matl_common.protocol import Recipe, StudyPlan
from matl_participant.core.account import Planned

# Noise is calibrated from above, so an honest plan needs this only where the accountant of
# sampled plans differs in its last digits between two machines.
_RELATIVE_TOLERANCE = 1e-6
# Less protects nobody, and its square must not vanish in the account.
_LEAST_NOISE_MULTIPLIER = 1e-3
# More drowns everything, and its square must not overflow in the account.
_LARGEST_NOISE_MULTIPLIER = 1e9


@dataclass(frozen=True, slots=True)
class PrivacyLimits:
    """What the hospital allows one study, whatever the coordinator asks."""

    max_epsilon: float
    """``inf`` allows studies without any noise."""
    max_delta: float
    min_send_after_seconds: float = 0.0
    require_discrete_noise: bool = False


def why_refused(plan: StudyPlan, limits: PrivacyLimits, *, federation_id: str) -> str | None:
    """Say why this hospital does not take part in such a study, or nothing."""
    terms = plan.privacy
    if plan.federation_id != federation_id:
        return (
            f"the plan belongs to federation {plan.federation_id!r}; this participant is "
            f"configured for {federation_id!r}"
        )
    if terms.adjacency != Adjacency.ADD_OR_REMOVE_ONE or terms.unit != PrivacyUnit.PATIENT:
        return (
            f"the plan protects {terms.unit!r} under {terms.adjacency!r}; only 'patient' under "
            "'add-or-remove-one' is supported"
        )
    if plan.send_after_seconds < limits.min_send_after_seconds:
        return (
            f"the plan has updates sent {plan.send_after_seconds:g} s after training began; this "
            f"hospital asks for {limits.min_send_after_seconds:g} s at least "
            "(privacy.min_send_after_seconds), so that the time does not tell of its data"
        )
    if plan.training.steps_per_round > terms.max_steps:
        return "one round of the plan takes more steps than the whole study may"
    if why := (
        _why_noise_refused(plan, limits)
        or _why_evaluation_refused(plan)
        or _why_unaccountable(plan)
    ):
        return why
    if terms.noise_multiplier == 0.0:
        if math.isinf(limits.max_epsilon):
            return None
        return (
            "the plan adds no noise and so protects nobody; to take part all the same, set "
            "privacy.max_epsilon = inf"
        )
    return _why_over_limits(plan, limits)


def _why_noise_refused(plan: StudyPlan, limits: PrivacyLimits) -> str | None:
    terms, training = plan.privacy, plan.training
    if terms.noise is Noise.DISCRETE_GAUSSIAN:
        if training.recipe is Recipe.HEAD and terms.sample_rate == 1.0 and terms.noise_multiplier:
            return None
        return (
            "the plan asks for discrete noise where there is no mechanism with it; only recipe "
            "'head' has one"
        )
    if limits.require_discrete_noise:
        return (
            f"the plan's noise is {terms.noise.value!r}; this hospital asks for discrete noise "
            "(privacy.require_discrete_noise)"
        )
    return None


def _why_evaluation_refused(plan: StudyPlan) -> str | None:
    """A hospital that does not want evaluations refuses none: it leaves them out."""
    terms, training = plan.privacy, plan.training
    if terms.evaluation is None:
        return None
    if training.recipe is not Recipe.HEAD or terms.sample_rate < 1.0 or not terms.noise_multiplier:
        return (
            "the plan asks for evaluations where there is no mechanism for them; only recipe "
            "'head' with noise has one"
        )
    rounds = terms.max_steps // training.steps_per_round
    if terms.evaluation.max_evaluations < rounds:
        return (
            f"the plan has {terms.evaluation.max_evaluations} evaluations for {rounds} rounds, "
            "each of which takes one; the study is planned wrongly"
        )
    return None


def _why_unaccountable(plan: StudyPlan) -> str | None:
    """What nothing could be trained with, or no ε be computed of."""
    terms, evaluation = plan.privacy, plan.privacy.evaluation
    if plan.training.recipe is Recipe.HEAD and terms.sample_rate < 1.0:
        return (
            f"the plan samples patients at a rate of {terms.sample_rate:g}, but recipe 'head' "
            "uses all of them at every step; the study is planned wrongly"
        )
    multipliers = [terms.noise_multiplier] + ([evaluation.noise_multiplier] if evaluation else [])
    if any(0.0 < each < _LEAST_NOISE_MULTIPLIER for each in multipliers):
        return (
            f"the plan's noise multiplier is {min(multipliers):g}, which protects nobody; the "
            "study is planned wrongly"
        )
    if any(each > _LARGEST_NOISE_MULTIPLIER for each in multipliers):
        return (
            f"the plan's noise multiplier is {max(multipliers):g}, which drowns whatever is "
            "trained; the study is planned wrongly"
        )
    if terms.noise_multiplier > 0.0 and math.isinf(terms.target_epsilon):
        return "the plan adds noise and names no ε; the study is planned wrongly"
    if terms.sample_rate == 1.0 or terms.noise_multiplier == 0.0:
        return None
    sampled = PoissonSampledGaussianEvent(
        terms.noise_multiplier, terms.sample_rate, terms.max_steps
    )
    if not is_accountable([sampled]):
        return (
            f"the plan has {terms.max_steps} steps with noise multiplier "
            f"{terms.noise_multiplier:g} at a sampling rate of {terms.sample_rate:g}; of so many "
            "steps with so little noise no ε is computed that would protect anybody, and the "
            "study is planned wrongly"
        )
    return None


def _why_over_limits(plan: StudyPlan, limits: PrivacyLimits) -> str | None:
    terms = plan.privacy
    if not 0.0 < terms.target_delta <= limits.max_delta:
        return (
            f"the plan's δ is {terms.target_delta:g}; this hospital allows at most "
            f"{limits.max_delta:g} (privacy.max_delta)"
        )
    if not 0.0 < terms.target_epsilon <= limits.max_epsilon:
        return (
            f"the plan's ε is {terms.target_epsilon:g}; this hospital allows at most "
            f"{limits.max_epsilon:g} (privacy.max_epsilon)"
        )
    evaluations = 0 if terms.evaluation is None else terms.evaluation.max_evaluations
    epsilon = epsilon_of(terms, steps=terms.max_steps, evaluations=evaluations)
    if epsilon > terms.target_epsilon * (1.0 + _RELATIVE_TOLERANCE):
        return (
            f"the plan promises ε = {terms.target_epsilon:g}, but its noise and steps amount to "
            f"ε = {epsilon:.4g} at δ = {terms.target_delta:g}; the study is planned wrongly"
        )
    return None


def why_images_refused(plan: StudyPlan, images_per_patient: int | None) -> str | None:
    """Say why these images cannot serve the plan's recipe, or nothing.

    Args:
        images_per_patient: the most of any patient, where it is not known which belong together.
    """
    if plan.training.recipe is Recipe.FULL and (images_per_patient or 1) > 1:
        return (
            "recipe 'full' draws one image of each patient, and data.images_per_patient does not "
            "say which belong together; give the labels a group_key column instead"
        )
    return None


def why_changed(planned: Planned, plan: StudyPlan, digest: Digest) -> str | None:
    """Say how the coordinator's plan differs from the one in the ledger, or nothing."""
    if digest == planned.plan_digest:
        return None
    return (
        f"the coordinator's plan of study {plan.study_id!r} is {digest[:12]}…, the ledger's is "
        f"{planned.plan_digest[:12]}…: a study's plan never changes. Ask the coordinator's "
        "operator to restore it, or to give the new one a new study id"
    )
