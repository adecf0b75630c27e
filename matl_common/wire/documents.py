"""Signed documents and envelopes: protobuf on the wire, frozen values inside.

``parse_*`` accept bytes from outside and refuse everything that is not a sound
document, so that inner code never checks again; ``format_*`` give the bytes that
are signed. Neither verifies a signature: ``matl_common.signing`` does, before a
payload comes here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from matl_common.errors import InvalidInputError
from matl_common.ids import parse_digest, parse_node_id, parse_round_id
from matl_common.privacy.mechanisms import Noise
from matl_common.protocol import (
    EvaluationTerms,
    NoisedCount,
    PrivacySpend,
    PrivacyTerms,
    Receipt,
    Recipe,
    RoundStart,
    ScoreReceipt,
    Standing,
    StudyPlan,
    TrainingPlan,
    UpdateManifest,
)
from matl_common.signing import Envelope, checked_envelope
from matl_common.tensors import CHUNK_BYTES, DTYPE, ModelSchema, TensorSpec, parse_schema
from matl_common.wire import federation_pb2 as pb

NONCE_BYTES = 32
HASH_BYTES = 32
MAX_NAME_CHARACTERS = 100
MAX_SEND_AFTER_SECONDS = 30 * 86400.0

_Message = TypeVar("_Message", bound=Message)


def envelope_to_wire(envelope: Envelope) -> pb.Envelope:
    return pb.Envelope(
        payload_type=envelope.payload_type,
        payload=envelope.payload,
        key_id=envelope.keyid,
        signature=envelope.signature,
    )


def envelope_from_wire(message: pb.Envelope) -> Envelope:
    """Take an envelope off the wire, its sizes checked, its signature not.

    Raises:
        InvalidInputError: a field is empty or too long.
    """
    return checked_envelope(
        message.payload_type, message.payload, message.key_id, message.signature
    )


def format_study_plan(plan: StudyPlan) -> bytes:
    training, privacy = plan.training, plan.privacy
    message = pb.StudyPlan(
        federation_id=plan.federation_id,
        study_id=plan.study_id,
        schema=pb.ModelSchema(
            tensors=[
                pb.TensorSpec(
                    name=spec.name,
                    dtype=DTYPE,
                    shape=spec.shape,
                    byte_count=spec.byte_count,
                    trainable=spec.trainable,
                )
                for spec in plan.schema.tensors
            ],
            digest=plan.schema.digest,
        ),
        training=pb.TrainingPlan(
            recipe=training.recipe.value,
            backbone=training.backbone,
            backbone_digest=training.backbone_digest or "",
            image_size=training.image_size,
            views=training.views,
            steps_per_round=training.steps_per_round,
            learning_rate=training.learning_rate,
            batch_size=training.batch_size,
        ),
        privacy=pb.PrivacyTerms(
            unit=privacy.unit,
            adjacency=privacy.adjacency,
            target_epsilon=privacy.target_epsilon,
            target_delta=privacy.target_delta,
            noise_multiplier=privacy.noise_multiplier,
            max_grad_norm=privacy.max_grad_norm,
            sample_rate=privacy.sample_rate,
            max_steps=privacy.max_steps,
            noise=_format_noise(privacy.noise),
            evaluation=_format_evaluation_terms(privacy.evaluation),
        ),
        average_from=plan.average_from,
        send_after_seconds=plan.send_after_seconds,
    )
    return message.SerializeToString(deterministic=True)


def parse_study_plan(payload: bytes) -> StudyPlan:
    """Read a study plan.

    Raises:
        InvalidInputError: it is not one, or a value is out of its range.
    """
    message = _decode(pb.StudyPlan, payload)
    return StudyPlan(
        federation_id=_name(message.federation_id, "federation_id"),
        study_id=_name(message.study_id, "study_id"),
        schema=_parse_model_schema(message.schema),
        training=_parse_training(message.training),
        privacy=_parse_privacy_terms(message.privacy),
        average_from=_within(message.average_from, 0, 1_000_000, "average_from"),
        send_after_seconds=_real(
            message.send_after_seconds,
            "send_after_seconds",
            at_least=0.0,
            at_most=MAX_SEND_AFTER_SECONDS,
        ),
    )


def _parse_model_schema(message: pb.ModelSchema) -> ModelSchema:
    for each in message.tensors:
        if each.dtype != DTYPE:
            raise InvalidInputError(f"tensor {each.name[:80]!r} is not of type {DTYPE}")
    schema = parse_schema(
        TensorSpec(each.name, tuple(each.shape), each.trainable) for each in message.tensors
    )
    if schema.digest != message.digest:
        raise InvalidInputError("the model schema does not match its digest")
    return schema


def _parse_training(message: pb.TrainingPlan) -> TrainingPlan:
    return TrainingPlan(
        recipe=_choice(Recipe, message.recipe, "recipe"),
        backbone=_name(message.backbone, "backbone"),
        backbone_digest=parse_digest(message.backbone_digest) if message.backbone_digest else None,
        image_size=_within(message.image_size, 8, 4096, "image_size"),
        views=_within(message.views, 1, 64, "views"),
        steps_per_round=_within(message.steps_per_round, 1, 100_000, "steps_per_round"),
        learning_rate=_real(message.learning_rate, "learning_rate", above=0.0),
        batch_size=_within(message.batch_size, 1, 1 << 20, "batch_size"),
    )


def _parse_privacy_terms(message: pb.PrivacyTerms) -> PrivacyTerms:
    return PrivacyTerms(
        unit=_name(message.unit, "unit"),
        adjacency=_name(message.adjacency, "adjacency"),
        target_epsilon=_real(message.target_epsilon, "target_epsilon", at_least=0.0, finite=False),
        target_delta=_real(message.target_delta, "target_delta", at_least=0.0, at_most=1.0),
        noise_multiplier=_real(message.noise_multiplier, "noise_multiplier", at_least=0.0),
        max_grad_norm=_real(message.max_grad_norm, "max_grad_norm", above=0.0),
        sample_rate=_real(message.sample_rate, "sample_rate", above=0.0, at_most=1.0),
        max_steps=_within(message.max_steps, 1, 10_000_000, "max_steps"),
        noise=_parse_noise(message.noise),
        evaluation=(
            _parse_evaluation_terms(message.evaluation) if message.HasField("evaluation") else None
        ),
    )


def _format_evaluation_terms(terms: EvaluationTerms | None) -> pb.EvaluationTerms | None:
    if terms is None:
        return None
    return pb.EvaluationTerms(
        noise_multiplier=terms.noise_multiplier, max_evaluations=terms.max_evaluations
    )


def _parse_evaluation_terms(message: pb.EvaluationTerms) -> EvaluationTerms:
    return EvaluationTerms(
        noise_multiplier=_real(message.noise_multiplier, "evaluation noise_multiplier", above=0.0),
        max_evaluations=_within(message.max_evaluations, 1, 10_000_000, "max_evaluations"),
    )


def _format_noise(noise: Noise) -> str:
    # One encoding for a value: documents from before there was a choice keep their bytes.
    return "" if noise is Noise.GAUSSIAN else noise.value


def _parse_noise(text: str) -> Noise:
    if text == Noise.GAUSSIAN:
        raise InvalidInputError("noise is 'gaussian', which is written as nothing")
    return _choice(Noise, text, "noise") if text else Noise.GAUSSIAN


def format_round_start(start: RoundStart) -> bytes:
    message = pb.RoundStart(
        federation_id=start.federation_id,
        study_id=start.study_id,
        round_id=start.round_id,
        nonce=start.nonce,
        plan_digest=start.plan_digest,
        base_model=start.base_model,
        base_model_bytes=start.base_model_bytes,
        opened_at_unix_ms=to_unix_ms(start.opened_at),
        deadline_unix_ms=to_unix_ms(start.deadline),
    )
    return message.SerializeToString(deterministic=True)


def parse_round_start(payload: bytes) -> RoundStart:
    """Read a round start.

    Raises:
        InvalidInputError: it is not one, or a value is out of its range.
    """
    message = _decode(pb.RoundStart, payload)
    return RoundStart(
        federation_id=_name(message.federation_id, "federation_id"),
        study_id=_name(message.study_id, "study_id"),
        round_id=parse_round_id(message.round_id),
        nonce=_exactly(message.nonce, NONCE_BYTES, "nonce"),
        plan_digest=parse_digest(message.plan_digest),
        base_model=parse_digest(message.base_model),
        base_model_bytes=_within(message.base_model_bytes, 1, 1 << 50, "base_model_bytes"),
        opened_at=from_unix_ms(message.opened_at_unix_ms),
        deadline=from_unix_ms(message.deadline_unix_ms),
    )


def format_update_manifest(manifest: UpdateManifest) -> bytes:
    message = pb.UpdateManifest(
        federation_id=manifest.federation_id,
        study_id=manifest.study_id,
        round_id=manifest.round_id,
        nonce=manifest.nonce,
        plan_digest=manifest.plan_digest,
        base_model=manifest.base_model,
        schema_digest=manifest.schema_digest,
        byte_count=manifest.byte_count,
        chunk_bytes=manifest.chunk_bytes,
        chunk_root=manifest.chunk_root,
        privacy=pb.PrivacySpend(
            noise_multiplier=manifest.privacy.noise_multiplier,
            max_grad_norm=manifest.privacy.max_grad_norm,
            sample_rate=manifest.privacy.sample_rate,
            steps=manifest.privacy.steps,
            noise=_format_noise(manifest.privacy.noise),
        ),
        expires_at_unix_ms=to_unix_ms(manifest.expires_at),
        evaluation=_format_noised_count(manifest.evaluation),
    )
    return message.SerializeToString(deterministic=True)


def parse_update_manifest(payload: bytes) -> UpdateManifest:
    """Read an update manifest.

    Raises:
        InvalidInputError: it is not one, or a value is out of its range.
    """
    message = _decode(pb.UpdateManifest, payload)
    return UpdateManifest(
        federation_id=_name(message.federation_id, "federation_id"),
        study_id=_name(message.study_id, "study_id"),
        round_id=parse_round_id(message.round_id),
        nonce=_exactly(message.nonce, NONCE_BYTES, "nonce"),
        plan_digest=parse_digest(message.plan_digest),
        base_model=parse_digest(message.base_model),
        schema_digest=parse_digest(message.schema_digest),
        byte_count=_within(message.byte_count, 4, 1 << 50, "byte_count"),
        chunk_bytes=_within(message.chunk_bytes, 1, CHUNK_BYTES, "chunk_bytes"),
        chunk_root=_exactly(message.chunk_root, HASH_BYTES, "chunk_root"),
        privacy=PrivacySpend(
            noise_multiplier=_real(
                message.privacy.noise_multiplier, "noise_multiplier", at_least=0.0
            ),
            max_grad_norm=_real(message.privacy.max_grad_norm, "max_grad_norm", above=0.0),
            sample_rate=_real(message.privacy.sample_rate, "sample_rate", above=0.0, at_most=1.0),
            steps=_within(message.privacy.steps, 1, 10_000_000, "steps"),
            noise=_parse_noise(message.privacy.noise),
        ),
        expires_at=from_unix_ms(message.expires_at_unix_ms),
        evaluation=(
            _parse_noised_count(message.evaluation) if message.HasField("evaluation") else None
        ),
    )


def _format_noised_count(count: NoisedCount | None) -> pb.NoisedCount | None:
    if count is None:
        return None
    return pb.NoisedCount(correct=count.correct, noise_multiplier=count.noise_multiplier)


def _parse_noised_count(message: pb.NoisedCount) -> NoisedCount:
    return NoisedCount(
        # Any number, NaN included: an absurd count is no reason to refuse the update beside it.
        correct=message.correct,
        noise_multiplier=_real(message.noise_multiplier, "evaluation noise_multiplier", above=0.0),
    )


def format_receipt(receipt: Receipt) -> bytes:
    message = pb.Receipt(
        federation_id=receipt.federation_id,
        study_id=receipt.study_id,
        round_id=receipt.round_id,
        node_id=receipt.node_id,
        update_digest=receipt.update_digest,
        log_index=receipt.log_index,
        log_leaf_hash=receipt.log_leaf_hash,
        admitted_at_unix_ms=to_unix_ms(receipt.admitted_at),
    )
    return message.SerializeToString(deterministic=True)


def parse_receipt(payload: bytes) -> Receipt:
    """Read a receipt.

    Raises:
        InvalidInputError: it is not one, or a value is out of its range.
    """
    message = _decode(pb.Receipt, payload)
    return Receipt(
        federation_id=_name(message.federation_id, "federation_id"),
        study_id=_name(message.study_id, "study_id"),
        round_id=parse_round_id(message.round_id),
        node_id=parse_node_id(message.node_id),
        update_digest=parse_digest(message.update_digest),
        log_index=message.log_index,
        log_leaf_hash=parse_digest(message.log_leaf_hash),
        admitted_at=from_unix_ms(message.admitted_at_unix_ms),
    )


def format_score_receipt(receipt: ScoreReceipt) -> bytes:
    message = pb.ScoreReceipt(
        federation_id=receipt.federation_id,
        study_id=receipt.study_id,
        round_id=receipt.round_id,
        node_id=receipt.node_id,
        base_model=receipt.base_model,
        update_digest=receipt.update_digest,
        root_digest=receipt.root_digest,
        z=receipt.z,
        loss_improvement=receipt.loss_improvement,
        pogq=receipt.pogq,
        quality=receipt.quality,
        harm=receipt.harm,
        trust=receipt.trust,
        state=receipt.state,
    )
    return message.SerializeToString(deterministic=True)


def parse_score_receipt(payload: bytes) -> ScoreReceipt:
    """Read a score receipt.

    Raises:
        InvalidInputError: it is not one, or a value is out of its range.
    """
    message = _decode(pb.ScoreReceipt, payload)
    return ScoreReceipt(
        federation_id=_name(message.federation_id, "federation_id"),
        study_id=_name(message.study_id, "study_id"),
        round_id=parse_round_id(message.round_id),
        node_id=parse_node_id(message.node_id),
        base_model=parse_digest(message.base_model),
        update_digest=parse_digest(message.update_digest),
        root_digest=parse_digest(message.root_digest),
        z=_real(message.z, "z"),
        loss_improvement=_real(message.loss_improvement, "loss_improvement"),
        pogq=_real(message.pogq, "pogq", at_least=0.0, at_most=1.0),
        quality=_real(message.quality, "quality", at_least=0.0, at_most=1.0),
        harm=message.harm,
        trust=_real(message.trust, "trust", at_least=0.0, at_most=1.0),
        state=_name(message.state, "state"),
    )


def standing_to_wire(standing: Standing) -> pb.Standing:
    return pb.Standing(
        trust=standing.trust,
        state=standing.state,
        as_of_round=standing.as_of_round,
        reason=standing.reason,
    )


def standing_from_wire(message: pb.Standing) -> Standing:
    """Raises InvalidInputError where trust is not within 0 and 1."""
    return Standing(
        trust=_real(message.trust, "trust", at_least=0.0, at_most=1.0),
        state=_name(message.state, "state"),
        as_of_round=message.as_of_round,
        reason=message.reason[:1000],
    )


def to_unix_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def from_unix_ms(unix_ms: int) -> datetime:
    """Raises InvalidInputError where the time is not within the years 2000 to 2200."""
    milliseconds = _within(unix_ms, 946_684_800_000, 7_258_118_400_000, "a time")
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)


def _decode(kind: Callable[[], _Message], payload: bytes) -> _Message:
    message = kind()
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise InvalidInputError(f"not a {type(message).__name__} document") from error
    return message


def _name(text: str, field: str) -> str:
    if not 0 < len(text) <= MAX_NAME_CHARACTERS or not text.isprintable():
        raise InvalidInputError(
            f"{field} must have 1 to {MAX_NAME_CHARACTERS} printable characters"
        )
    return text


_Choice = TypeVar("_Choice", bound=StrEnum)


def _choice(kind: type[_Choice], text: str, field: str) -> _Choice:
    try:
        return kind(text)
    except ValueError as error:
        choices = ", ".join(kind)
        raise InvalidInputError(f"{field} {text[:40]!r} is none of {choices}") from error


def _within(number: int, lowest: int, highest: int, field: str) -> int:
    if not lowest <= number <= highest:
        raise InvalidInputError(f"{field} is {number}; it must be within {lowest} and {highest}")
    return number


def _real(
    number: float,
    field: str,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    finite: bool = True,
) -> float:
    sound = at_least <= number <= at_most and number > above
    if not sound or (finite and not math.isfinite(number)):
        raise InvalidInputError(f"{field} is {number}, which is out of its range")
    return number


def _exactly(data: bytes, size: int, field: str) -> bytes:
    if len(data) != size:
        raise InvalidInputError(f"{field} has {len(data)} bytes instead of {size}")
    return data
