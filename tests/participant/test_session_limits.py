"""What a hospital refuses in a study's plan, before any data is read."""

import math
from dataclasses import replace

import pytest

from matl_common.ids import digest_of
from matl_common.privacy.budget import calibrate_noise
from matl_common.privacy.mechanisms import Noise
from matl_common.privacy.poisson import calibrate_poisson_noise
from matl_common.protocol import EvaluationTerms, PrivacyTerms, Recipe, StudyPlan
from matl_participant.core.limits import PrivacyLimits, why_changed, why_refused
from tests.participant.simulator import PLAN, TERMS
from tests.participant.test_ledger import PLANNED

pytestmark = pytest.mark.privacy

LIMITS = PrivacyLimits(max_epsilon=1.0, max_delta=1e-5)


def refusal(terms: PrivacyTerms, limits: PrivacyLimits = LIMITS) -> str | None:
    return why_refused(replace(PLAN, privacy=terms), limits, federation_id="dr-study")


def test_a_plan_within_the_limits_is_accepted() -> None:
    assert refusal(TERMS) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target_epsilon": 1.01}, "at most 1 (privacy.max_epsilon)"),
        ({"target_epsilon": 0.0}, "max_epsilon"),
        ({"target_epsilon": math.inf}, "names no ε"),
        ({"target_delta": 2e-5}, "at most 1e-05 (privacy.max_delta)"),
        ({"target_delta": 0.0}, "max_delta"),
        ({"noise_multiplier": 0.0}, "protects nobody"),
        ({"noise_multiplier": TERMS.noise_multiplier * 0.9999}, "amount to"),
        ({"noise_multiplier": 1e-200}, "protects nobody"),
        ({"max_steps": TERMS.max_steps + 1}, "amount to"),
        ({"target_epsilon": 0.9}, "amount to"),
        ({"adjacency": "replace-one"}, "only 'patient'"),
        ({"unit": "image"}, "only 'patient'"),
        ({"max_steps": 9}, "more steps"),
    ],
)
def test_a_plan_beyond_the_limits_or_its_own_promise_is_refused(
    change: dict[str, float | str | int], reason: str
) -> None:
    found = refusal(replace(TERMS, **change))  # type: ignore[arg-type]
    assert found is not None
    assert reason in found


def test_a_poisson_plan_is_accounted_for_with_its_sampling_rate() -> None:
    def found(terms: PrivacyTerms) -> str | None:
        full = replace(PLAN, privacy=terms, training=replace(PLAN.training, recipe=Recipe.FULL))
        return why_refused(full, LIMITS, federation_id="dr-study")

    least = calibrate_poisson_noise(1.0, 1e-5, sample_rate=0.128, steps=1200)
    terms = replace(TERMS, sample_rate=0.128, noise_multiplier=least, max_steps=1200)
    assert found(terms) is None
    # Two thousandths are the most by which calibration may be above what is needed.
    assert "amount to" in (found(replace(terms, noise_multiplier=least - 0.002)) or "")
    assert "amount to" in (found(replace(terms, sample_rate=0.2)) or "")


@pytest.mark.parametrize(
    ("noise_multiplier", "sample_rate", "max_steps"),
    [(1.0, 0.5, 10_000_000), (0.1, 0.5, 100), (0.001, 1e-9, 100), (20.0, 0.5, 10_000_000)],
)
@pytest.mark.parametrize("limits", [LIMITS, PrivacyLimits(math.inf, 1e-5)], ids=["1", "inf"])
def test_a_sampled_plan_that_no_accountant_could_be_asked_about_is_refused_at_once(
    noise_multiplier: float, sample_rate: float, max_steps: int, limits: PrivacyLimits
) -> None:
    terms = replace(
        TERMS,
        noise_multiplier=noise_multiplier,
        sample_rate=sample_rate,
        max_steps=max_steps,
        target_epsilon=1.0 if math.isfinite(limits.max_epsilon) else 1e300,
    )
    full = replace(PLAN, privacy=terms, training=replace(PLAN.training, recipe=Recipe.FULL))
    found = why_refused(full, limits, federation_id="dr-study")
    assert found is not None
    assert f"{max_steps} steps with noise multiplier {noise_multiplier:g}" in found


def test_noise_whose_square_is_no_number_is_refused() -> None:
    assert "drowns" in (refusal(replace(TERMS, noise_multiplier=1e200)) or "")
    loud = EvaluationTerms(1e200, TERMS.max_steps)
    assert "drowns" in (refusal(replace(evaluating(Noise.GAUSSIAN), evaluation=loud)) or "")


def test_a_plan_that_samples_for_a_recipe_that_does_not_is_refused_before_it_is_charged() -> None:
    terms = replace(TERMS, sample_rate=0.128, noise_multiplier=16.7, max_steps=1200)
    assert "uses all of them" in (refusal(terms) or "")


def test_noise_without_an_epsilon_is_refused_where_studies_without_noise_are_allowed() -> None:
    terms = replace(TERMS, target_epsilon=math.inf)
    assert "names no ε" in (refusal(terms, PrivacyLimits(math.inf, 1e-5)) or "")


def test_an_evaluation_with_next_to_no_noise_is_refused() -> None:
    terms = evaluating(Noise.GAUSSIAN)
    for noise_multiplier in (1e-200, 1e-4):
        bare = replace(terms, evaluation=EvaluationTerms(noise_multiplier, TERMS.max_steps))
        assert "protects nobody" in (refusal(bare) or "")


def test_a_study_without_noise_needs_the_hospital_to_say_so() -> None:
    terms = replace(TERMS, noise_multiplier=0.0, target_epsilon=math.inf)
    assert refusal(terms) is not None
    assert refusal(terms, PrivacyLimits(math.inf, 1e-5)) is None
    # Allowing it does not make a broken promise acceptable.
    lying = replace(TERMS, noise_multiplier=1.0)
    assert refusal(lying, PrivacyLimits(math.inf, 1e-5)) is not None


HARDENED = replace(
    TERMS,
    noise=Noise.DISCRETE_GAUSSIAN,
    noise_multiplier=calibrate_noise(
        1.0, 1e-5, steps=TERMS.max_steps, noise=Noise.DISCRETE_GAUSSIAN
    ),
)


def test_discrete_noise_is_accepted_where_there_is_a_mechanism_and_with_its_own_accounting() -> (
    None
):
    assert refusal(HARDENED) is None
    # What continuous noise may do with is too little.
    assert "amount to" in (
        refusal(replace(HARDENED, noise_multiplier=TERMS.noise_multiplier)) or ""
    )
    for terms in (
        replace(HARDENED, sample_rate=0.5),
        replace(HARDENED, noise_multiplier=0.0, target_epsilon=math.inf),
    ):
        assert "no mechanism" in (refusal(terms, PrivacyLimits(math.inf, 1e-5)) or "")
    full = replace(PLAN, privacy=HARDENED, training=replace(PLAN.training, recipe=Recipe.FULL))
    assert "no mechanism" in (why_refused(full, LIMITS, federation_id="dr-study") or "")


def evaluating(noise: Noise, *, share: float = 0.05) -> PrivacyTerms:
    rounds = TERMS.max_steps // PLAN.training.steps_per_round
    training, evaluation = (
        calibrate_noise(1.0, 1e-5, steps=steps, noise=noise, share=part)
        for steps, part in ((TERMS.max_steps, 1.0 - share), (rounds, share))
    )
    return replace(
        TERMS,
        noise=noise,
        noise_multiplier=training,
        evaluation=EvaluationTerms(evaluation, rounds),
    )


@pytest.mark.parametrize("noise", Noise)
def test_evaluations_are_accounted_for_beside_training(noise: Noise) -> None:
    terms = evaluating(noise)
    assert terms.evaluation is not None
    assert refusal(terms) is None
    # Neither with training's noise as it would be alone, nor with less noise on the counts,
    # nor with more of them than that noise is for.
    alone = calibrate_noise(1.0, 1e-5, steps=TERMS.max_steps, noise=noise)
    for lying in (
        replace(terms, noise_multiplier=alone),
        replace(terms, evaluation=replace(terms.evaluation, noise_multiplier=80.0 / 3)),
        replace(terms, evaluation=replace(terms.evaluation, max_evaluations=6)),
    ):
        assert "amount to" in (refusal(lying) or "")
    too_few = replace(terms, evaluation=replace(terms.evaluation, max_evaluations=4))
    assert "4 evaluations for 5 rounds" in (refusal(too_few) or "")


def test_evaluations_are_refused_where_there_is_no_mechanism_for_them() -> None:
    terms = evaluating(Noise.GAUSSIAN)
    for changed in (
        replace(terms, sample_rate=0.5),
        replace(terms, noise_multiplier=0.0, target_epsilon=math.inf),
    ):
        assert "evaluations" in (refusal(changed, PrivacyLimits(math.inf, 1e-5)) or "")
    full = replace(PLAN, privacy=terms, training=replace(PLAN.training, recipe=Recipe.FULL))
    assert "evaluations" in (why_refused(full, LIMITS, federation_id="dr-study") or "")


def test_a_hospital_may_insist_on_discrete_noise() -> None:
    limits = replace(LIMITS, require_discrete_noise=True)
    assert "privacy.require_discrete_noise" in (refusal(TERMS, limits) or "")
    assert refusal(HARDENED, limits) is None


def test_a_hospital_may_insist_that_updates_leave_on_schedule() -> None:
    limits = replace(LIMITS, min_send_after_seconds=60.0)
    for seconds, why in ((0.0, "min_send_after_seconds"), (59.0, "60 s"), (60.0, "")):
        plan = replace(PLAN, send_after_seconds=seconds)
        assert why in (why_refused(plan, limits, federation_id="dr-study") or "")
        assert why_refused(plan, LIMITS, federation_id="dr-study") is None
    enough = replace(PLAN, send_after_seconds=60.0)
    assert why_refused(enough, limits, federation_id="dr-study") is None


def test_a_plan_of_another_federation_is_refused() -> None:
    other: StudyPlan = replace(PLAN, federation_id="other")
    assert "federation" in (why_refused(other, LIMITS, federation_id="dr-study") or "")


def test_a_plan_is_the_same_only_by_its_digest() -> None:
    assert why_changed(PLANNED, PLAN, PLANNED.plan_digest) is None
    assert "never changes" in (why_changed(PLANNED, PLAN, digest_of(b"changed")) or "")
