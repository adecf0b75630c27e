"""The beginning of a study: its first model, and the plan that never changes after.

Done once, by the first start on an empty store. Every later start reads the plan back,
looks over the holdout set again, and refuses to go on with a configuration that contradicts it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import datetime

import structlog

from matl_common.errors import ConfigurationError, MatlError
from matl_common.ids import Digest, digest_of
from matl_common.privacy.budget import calibrate_noise
from matl_common.privacy.calibration import calibrate_apart
from matl_common.privacy.mechanisms import Adjacency, PrivacyUnit
from matl_common.protocol import (
    EvaluationTerms,
    PayloadType,
    PrivacyTerms,
    Recipe,
    StudyPlan,
    TrainingPlan,
)
from matl_common.signing import Signer, sign, verify
from matl_common.tensors import ModelSchema, read_schema
from matl_common.wire.documents import format_study_plan, parse_study_plan
from matl_coordinator.config import Config, Study
from matl_coordinator.ports import (
    ModelRecord,
    ModelStore,
    PutModel,
    PutStudy,
    Scorer,
    State,
    StudyRecord,
)
from matl_coordinator.service.entries import Fact, entry
from matl_coordinator.service.register import Decision, Register
from matl_coordinator.service.story import envelope_facts

MINIMUM_PER_CLASS = 16
"""Half of a class scores, in four folds that must not be empty or all but empty."""
RECOMMENDED_HOLDOUT = 500

log = structlog.get_logger(__name__)


class StudyMismatchError(MatlError):
    """The configuration and the study in the store are not the same study."""


async def found_or_resume(
    *,
    config: Config,
    register: Register,
    models: ModelStore,
    scorer: Scorer,
    signer: Signer,
    clock: Callable[[], datetime],
    check: Callable[[StudyPlan], None] = lambda _: None,
) -> StudyPlan:
    """The study's plan; the study begins if the store has none.

    Args:
        config: describes the study.
        register: where it begins.
        models: takes the first model.
        scorer: makes it, and looks over the holdout set.
        signer: of the coordinator.
        clock: now.
        check: refuses plans that cannot work by raising, before a study begins with one.

    Raises:
        ConfigurationError: the holdout set is too small, or what ``check`` raises.
        StudyMismatchError: the store holds another study, or one with other terms.
        WorkerError: the first model could not be made.
        StoreError: the store did not confirm; start again.
    """
    state = await register.state()
    if state.study is not None:
        # Before the holdout set is read: another study's configuration is seen at once.
        _check_same_study(plan_of(state.study, signer), config)
    if config.holdout is not None:
        # At every start: a set that lost images since would fail rounds that cost budget.
        log.info("holdout_reading", study=config.federation.study)
        await _check_holdout(scorer)
    if state.study is None:
        log.info("founding_study", study=config.federation.study, step="making the first model")
        first = await scorer.initial_model(models.incoming)
        digest = await asyncio.to_thread(models.adopt, first.path)
        schema = await asyncio.to_thread(read_schema, models.path(digest))
        noise_multiplier = await _calibrated(config)
        plan = planned(config, schema, first.backbone_digest, noise_multiplier=noise_multiplier)
        check(plan)
        model = ModelRecord(digest, schema.file_bytes, 0, clock())
        await found(plan, model, register=register, signer=signer)
        state = await register.state()
    assert state.study is not None, "the study has just been founded"
    plan = plan_of(state.study, signer)
    _check_same_study(plan, config)
    check(plan)
    return plan


def plan_of(study: StudyRecord, signer: Signer) -> StudyPlan:
    """The plan of a study that was founded with this key.

    Raises:
        IntegrityError: it is not signed with it.
    """
    payload = verify(study.plan, signer.public_key, PayloadType.STUDY_PLAN)
    return parse_study_plan(payload)


async def _check_holdout(scorer: Scorer) -> None:
    facts = await scorer.prepare()
    log.info("holdout_ready", images=facts.images, skipped=facts.skipped, per_class=facts.per_class)
    lacking = [label for label, images in enumerate(facts.per_class) if images < MINIMUM_PER_CLASS]
    if lacking:
        raise ConfigurationError(
            f"the holdout set has fewer than {MINIMUM_PER_CLASS} images of classes {lacking}; "
            "without them no update can be scored for those classes"
        )
    if facts.images < RECOMMENDED_HOLDOUT:
        log.warning(
            "holdout_small",
            images=facts.images,
            recommended=RECOMMENDED_HOLDOUT,
            reason="honest hospitals are wrongly excluded more often below that",
        )


async def found(plan: StudyPlan, model: ModelRecord, *, register: Register, signer: Signer) -> None:
    """Begin a study with this plan and first model, unless the store has one.

    Raises:
        StoreError: the store did not confirm.
    """
    payload = format_study_plan(plan)
    record = StudyRecord(
        plan=sign(PayloadType.STUDY_PLAN, payload, signer),
        plan_digest=digest_of(payload),
        paused=False,
        pause_reason="",
    )
    is_private = math.isfinite(plan.privacy.target_epsilon)
    written = entry(
        "study_founded",
        at=model.released_at,
        federation=plan.federation_id,
        study=plan.study_id,
        plan=record.plan_digest,
        plan_envelope=envelope_facts(record.plan),
        model=model.digest,
        recipe=plan.training.recipe.value,
        epsilon=plan.privacy.target_epsilon if is_private else None,
        delta=plan.privacy.target_delta,
        noise=plan.privacy.noise.value,
        noise_multiplier=plan.privacy.noise_multiplier,
        adjacency=plan.privacy.adjacency,
        unit=plan.privacy.unit,
        max_steps=plan.privacy.max_steps,
        evaluation=_evaluation_facts(plan),
        average_from=plan.average_from or None,
        send_after_seconds=plan.send_after_seconds,
    )

    def decide(state: State) -> Decision[None]:
        if state.study is not None:
            return Decision(None)
        return Decision(None, (PutStudy(record), PutModel(model)), (written,))

    await register.decide(decide)
    log.info(
        "study_founded",
        study=plan.study_id,
        recipe=plan.training.recipe.value,
        model=model.digest[:12],
        trainable=plan.schema.update_elements,
        noise_multiplier=round(plan.privacy.noise_multiplier, 4),
    )


def _evaluation_facts(plan: StudyPlan) -> Fact:
    terms = plan.privacy.evaluation
    if terms is None:
        return None
    return {
        "noise_multiplier": terms.noise_multiplier,
        "max_evaluations": terms.max_evaluations,
    }


def planned(
    config: Config,
    schema: ModelSchema,
    backbone_digest: Digest | None,
    *,
    noise_multiplier: float,
) -> StudyPlan:
    """The plan that a configuration describes, with noise calibrated for all its rounds."""
    study = config.study
    training = TrainingPlan(
        recipe=study.recipe,
        backbone=study.backbone,
        backbone_digest=backbone_digest,
        image_size=study.image_size,
        views=study.views,
        steps_per_round=study.steps_per_round,
        learning_rate=study.learning_rate,
        batch_size=study.batch_size,
    )
    privacy = PrivacyTerms(
        unit=PrivacyUnit.PATIENT.value,
        adjacency=Adjacency.ADD_OR_REMOVE_ONE.value,
        target_epsilon=study.epsilon,
        target_delta=study.delta,
        noise_multiplier=noise_multiplier,
        max_grad_norm=study.max_grad_norm,
        sample_rate=study.sample_rate,
        max_steps=study.max_steps,
        noise=study.noise,
        evaluation=_evaluation_terms(study, noise_multiplier=noise_multiplier),
    )
    return StudyPlan(
        config.federation.id,
        config.federation.study,
        schema,
        training,
        privacy,
        average_from=study.average_from,
        send_after_seconds=study.send_after_seconds,
    )


def _evaluation_terms(study: Study, *, noise_multiplier: float) -> EvaluationTerms | None:
    """One evaluation a round, all of which take their share of Σ 1/s².

    Training has T steps of noise s and the share 1 - w, so R evaluations of noise e with
    R/e² : T/s² = w : (1 - w) have the share w.
    """
    if not study.evaluates:
        return None
    share = study.evaluation_share
    per_step = study.max_rounds / study.max_steps
    noise = noise_multiplier * math.sqrt((1.0 - share) / share * per_step)
    return EvaluationTerms(noise, study.max_rounds)


async def _calibrated(config: Config) -> float:
    study = config.study
    if not study.is_private:
        return 0.0
    if study.recipe is Recipe.HEAD:
        return await asyncio.to_thread(
            calibrate_noise,
            study.epsilon,
            study.delta,
            steps=study.max_steps,
            noise=study.noise,
            share=1.0 - study.evaluation_share if study.evaluates else 1.0,
        )
    return await calibrate_apart(
        study.epsilon, study.delta, sample_rate=study.sample_rate, steps=study.max_steps
    )


def _check_same_study(plan: StudyPlan, config: Config) -> None:
    named = (plan.federation_id, plan.study_id)
    if named != (config.federation.id, config.federation.study):
        raise StudyMismatchError(
            f"{config.state_dir} holds study {plan.study_id} of {plan.federation_id}; "
            "give another study a state_dir and database of its own"
        )
    # Calibrated once, when the study began: everything it was calibrated for is compared.
    noise_multiplier = plan.privacy.noise_multiplier
    described = planned(
        config, plan.schema, plan.training.backbone_digest, noise_multiplier=noise_multiplier
    )
    if described != plan:
        raise StudyMismatchError(
            "the [study] section differs from the plan the study began with, which its "
            "hospitals rely on; restore it, or begin another study"
        )
