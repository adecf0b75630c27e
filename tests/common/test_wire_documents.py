"""Signed documents: what is formatted is parsed again, and nothing that is not sound is."""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from matl_common.errors import InvalidInputError
from matl_common.ids import Digest, RoundId, digest_of
from matl_common.privacy.mechanisms import Noise
from matl_common.protocol import (
    EvaluationTerms,
    NoisedCount,
    PrivacySpend,
    PrivacyTerms,
    Recipe,
    StudyPlan,
    TrainingPlan,
    UpdateManifest,
)
from matl_common.tensors import CHUNK_BYTES, TensorSpec, parse_schema
from matl_common.wire import federation_pb2 as pb
from matl_common.wire.documents import (
    format_score_receipt,
    format_study_plan,
    format_update_manifest,
    parse_score_receipt,
    parse_study_plan,
    parse_update_manifest,
)
from tests.fuzz.samples import SCORE

PLAN = StudyPlan(
    federation_id="dr-study",
    study_id="study-1",
    schema=parse_schema(
        [TensorSpec("head.weight", (5, 3)), TensorSpec("mean", (8,), trainable=False)]
    ),
    training=TrainingPlan(Recipe.HEAD, "resnet50", digest_of(b"weights"), 224, 2, 4, 0.5, 1),
    privacy=PrivacyTerms("patient", "add-or-remove-one", 1.0, 1e-5, 20.0, 1.0, 1.0, 32),
    send_after_seconds=300.0,
)
MANIFEST = UpdateManifest(
    federation_id="dr-study",
    study_id="study-1",
    round_id=RoundId(3),
    nonce=bytes(range(32)),
    plan_digest=digest_of(b"plan"),
    base_model=digest_of(b"model"),
    schema_digest=PLAN.schema.digest,
    byte_count=60,
    chunk_bytes=CHUNK_BYTES,
    chunk_root=bytes(32),
    privacy=PrivacySpend(20.0, 1.0, 1.0, 4),
    expires_at=datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
)


@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        replace(PLAN, send_after_seconds=0.0),
        replace(PLAN, training=replace(PLAN.training, recipe=Recipe.FULL, backbone_digest=None)),
        replace(PLAN, privacy=replace(PLAN.privacy, target_epsilon=math.inf, noise_multiplier=0.0)),
        replace(PLAN, privacy=replace(PLAN.privacy, noise=Noise.DISCRETE_GAUSSIAN)),
        replace(PLAN, privacy=replace(PLAN.privacy, evaluation=EvaluationTerms(120.3, 52))),
    ],
)
def test_a_plan_comes_back_from_its_bytes_and_gives_the_same_bytes_again(plan: StudyPlan) -> None:
    payload = format_study_plan(plan)
    assert parse_study_plan(payload) == plan
    assert format_study_plan(parse_study_plan(payload)) == payload


def test_a_score_receipt_comes_back_from_its_bytes_and_only_with_sound_values() -> None:
    payload = format_score_receipt(SCORE)
    assert parse_score_receipt(payload) == SCORE
    assert format_score_receipt(parse_score_receipt(payload)) == payload
    for wrong in (
        replace(SCORE, z=math.nan),
        replace(SCORE, loss_improvement=math.inf),
        replace(SCORE, pogq=1.5),
        replace(SCORE, quality=-0.1),
        replace(SCORE, trust=math.nan),
        replace(SCORE, state=""),
        replace(SCORE, root_digest=Digest("ab")),
    ):
        with pytest.raises(InvalidInputError):
            parse_score_receipt(format_score_receipt(wrong))


@pytest.mark.parametrize("noise", Noise)
def test_a_manifest_comes_back_from_its_bytes_and_gives_the_same_bytes_again(noise: Noise) -> None:
    manifest = replace(MANIFEST, privacy=replace(MANIFEST.privacy, noise=noise))
    for each in (manifest, replace(manifest, evaluation=NoisedCount(-3.25, 120.3))):
        payload = format_update_manifest(each)
        assert parse_update_manifest(payload) == each
        assert format_update_manifest(parse_update_manifest(payload)) == payload


def test_any_count_can_be_read_and_only_sound_noise() -> None:
    for correct in (math.inf, -math.inf, 1e308):
        manifest = replace(MANIFEST, evaluation=NoisedCount(correct, 1.0))
        assert parse_update_manifest(format_update_manifest(manifest)) == manifest
    absurd = replace(MANIFEST, evaluation=NoisedCount(math.nan, 1.0))
    read = parse_update_manifest(format_update_manifest(absurd)).evaluation
    assert read is not None
    assert math.isnan(read.correct)
    for noise in (0.0, -1.0, math.nan, math.inf):
        manifest = replace(MANIFEST, evaluation=NoisedCount(5.0, noise))
        with pytest.raises(InvalidInputError, match="noise_multiplier"):
            parse_update_manifest(format_update_manifest(manifest))
        terms = replace(PLAN.privacy, evaluation=EvaluationTerms(noise, 52))
        with pytest.raises(InvalidInputError, match="noise_multiplier"):
            parse_study_plan(format_study_plan(replace(PLAN, privacy=terms)))
    never = replace(PLAN.privacy, evaluation=EvaluationTerms(1.0, 0))
    with pytest.raises(InvalidInputError, match="max_evaluations"):
        parse_study_plan(format_study_plan(replace(PLAN, privacy=never)))


def test_a_plan_from_before_sending_on_schedule_and_discrete_noise_keeps_its_bytes() -> None:
    # Its bytes lack the fields, and its digest is what ledgers and rounds refer to.
    at_once = replace(PLAN, send_after_seconds=0.0)
    message = pb.StudyPlan.FromString(format_study_plan(at_once))
    assert 6 not in [field.number for field, _ in message.ListFields()]
    assert 9 not in [field.number for field, _ in message.privacy.ListFields()]


def _put(field: str, value: object) -> Callable[[pb.StudyPlan], None]:
    *path, name = field.split(".")

    def change(message: pb.StudyPlan) -> None:
        target: object = message
        for each in path:
            target = getattr(target, each)
        setattr(target, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_put("federation_id", ""), "federation_id"),
        (_put("study_id", "a\nb"), "study_id"),
        (_put("training.recipe", "magic"), "recipe"),
        (_put("training.learning_rate", math.nan), "learning_rate"),
        (_put("privacy.noise_multiplier", -1.0), "noise_multiplier"),
        (_put("privacy.noise_multiplier", math.inf), "noise_multiplier"),
        (_put("privacy.sample_rate", 1.5), "sample_rate"),
        (_put("privacy.max_steps", 0), "max_steps"),
        (_put("privacy.noise", "laplace"), "noise"),
        (_put("privacy.noise", "gaussian"), "noise"),
        (_put("send_after_seconds", -1.0), "send_after_seconds"),
        (_put("send_after_seconds", math.nan), "send_after_seconds"),
        (_put("send_after_seconds", math.inf), "send_after_seconds"),
        (_put("send_after_seconds", 1e9), "send_after_seconds"),
        (_put("schema.digest", "0" * 64), "digest"),
    ],
)
def test_a_plan_with_a_value_out_of_range_is_refused_by_name(
    change: Callable[[pb.StudyPlan], None], named: str
) -> None:
    message = pb.StudyPlan.FromString(format_study_plan(PLAN))
    change(message)
    with pytest.raises(InvalidInputError, match=named):
        parse_study_plan(message.SerializeToString())


def test_bytes_that_are_no_document_are_refused() -> None:
    for parse in (parse_study_plan, parse_update_manifest):
        with pytest.raises(InvalidInputError):
            parse(b"\xff\xff\xff")
