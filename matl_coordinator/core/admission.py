"""Whether an update may count in a round.

Decided twice: on the signed manifest, before a byte of the update is taken, and on
the complete contents. Nothing here verifies signatures (``matl_common.signing``),
looks at who is enrolled (the allow-list), or reads a file. Sample counts are not
looked at because a manifest has none: weights come from enrolment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from matl_common.ids import NodeId
from matl_common.protocol import NoisedCount, PrivacySpend, StudyPlan, UpdateManifest
from matl_common.tensors import CHUNK_BYTES
from matl_common.tlog.merkle import merkle_root
from matl_coordinator.core.rounds import Phase, Round

HASH_BYTES = 32
CLOCK_SKEW = timedelta(minutes=5)
"""How far a hospital's clock may be off before its manifest counts as expired."""
NORM_SLACK = 2.0
"""Covers rounding of the enrolled number of patients and the noise's upper tail."""


class RefusalCode(StrEnum):
    """Why an update does not count; a bounded label for metrics and the log."""

    BAD_SIGNATURE = "bad_signature"
    MALFORMED = "malformed"
    NO_ROUND = "no_round"
    NOT_INVITED = "not_invited"
    WRONG_STUDY = "wrong_study"
    REPLAYED = "replayed"
    WRONG_BASE_MODEL = "wrong_base_model"
    WRONG_SCHEMA = "wrong_schema"
    WRONG_SIZE = "wrong_size"
    WRONG_PRIVACY = "wrong_privacy"
    EXPIRED = "expired"
    WRONG_CHUNKS = "wrong_chunks"
    EQUIVOCATION = "equivocation"
    NOT_FINITE = "not_finite"
    NORM = "norm"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused update: a code, and a sentence the hospital can act on."""

    code: RefusalCode
    reason: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What a scan of the complete update found."""

    non_finite: int
    """Values that are NaN or infinite."""
    norm: float
    """Euclidean norm, accumulated in float64; infinite values make it infinite."""


def check_manifest(
    manifest: UpdateManifest, *, node_id: NodeId, rnd: Round | None, plan: StudyPlan, now: datetime
) -> Refusal | None:
    """Judge a manifest whose signature has been verified."""
    if rnd is None or rnd.phase is not Phase.COLLECTING or manifest.round_id != rnd.round_id:
        return Refusal(RefusalCode.NO_ROUND, f"round {manifest.round_id} is not collecting updates")
    if node_id not in rnd.invited:
        return Refusal(RefusalCode.NOT_INVITED, f"{node_id} is not in round {rnd.round_id}")
    if (manifest.federation_id, manifest.study_id) != (plan.federation_id, plan.study_id):
        return Refusal(RefusalCode.WRONG_STUDY, "the update is for another study")
    if manifest.nonce != rnd.nonce:
        return Refusal(RefusalCode.REPLAYED, "the nonce is not this round's: a replayed update")
    if manifest.plan_digest != rnd.plan_digest:
        return Refusal(RefusalCode.WRONG_STUDY, "the update follows another study plan")
    if manifest.base_model != rnd.base_model:
        return Refusal(
            RefusalCode.WRONG_BASE_MODEL,
            f"the update starts from model {manifest.base_model[:12]}, "
            f"the round from {rnd.base_model[:12]}",
        )
    if manifest.expires_at + CLOCK_SKEW < now:
        return Refusal(
            RefusalCode.EXPIRED,
            f"the manifest expired at {manifest.expires_at.isoformat()}; check the clock",
        )
    return (
        _check_declared_size(manifest, plan)
        or _check_privacy(manifest.privacy, plan)
        or _check_evaluation(manifest.evaluation, plan)
    )


def _check_declared_size(manifest: UpdateManifest, plan: StudyPlan) -> Refusal | None:
    if manifest.schema_digest != plan.schema.digest:
        return Refusal(RefusalCode.WRONG_SCHEMA, "names or shapes differ from the study's model")
    if manifest.byte_count != plan.schema.update_bytes:
        return Refusal(
            RefusalCode.WRONG_SIZE,
            f"{manifest.byte_count} bytes declared, the schema has {plan.schema.update_bytes}",
        )
    if manifest.chunk_bytes != CHUNK_BYTES:
        return Refusal(RefusalCode.WRONG_SIZE, f"chunks must have {CHUNK_BYTES} bytes")
    return None


def _check_privacy(spend: PrivacySpend, plan: StudyPlan) -> Refusal | None:
    promised = PrivacySpend(
        noise_multiplier=plan.privacy.noise_multiplier,
        max_grad_norm=plan.privacy.max_grad_norm,
        sample_rate=plan.privacy.sample_rate,
        steps=plan.training.steps_per_round,
        noise=plan.privacy.noise,
    )
    if spend != promised:
        return Refusal(
            RefusalCode.WRONG_PRIVACY, f"declared mechanism {spend}, the plan asks for {promised}"
        )
    return None


def _check_evaluation(count: NoisedCount | None, plan: StudyPlan) -> Refusal | None:
    """Only the mechanism; a hospital may leave the evaluation out, and its number says nothing."""
    if count is None:
        return None
    terms = plan.privacy.evaluation
    if terms is None:
        return Refusal(
            RefusalCode.WRONG_PRIVACY, "the update brings an evaluation, and the plan asks for none"
        )
    if count.noise_multiplier != terms.noise_multiplier:
        return Refusal(
            RefusalCode.WRONG_PRIVACY,
            f"declared noise of the evaluation {count.noise_multiplier}, the plan asks for "
            f"{terms.noise_multiplier}",
        )
    return None


def check_chunk_hashes(chunk_hashes: bytes, manifest: UpdateManifest) -> Refusal | None:
    """Judge the list of chunk hashes against the root the hospital signed."""
    count = chunk_count(manifest.byte_count)
    if len(chunk_hashes) != count * HASH_BYTES:
        return Refusal(
            RefusalCode.WRONG_CHUNKS,
            f"{len(chunk_hashes)} bytes of chunk hashes for {count} chunks",
        )
    if merkle_root(split_hashes(chunk_hashes)) != manifest.chunk_root:
        return Refusal(RefusalCode.WRONG_CHUNKS, "the chunk hashes do not give the signed root")
    return None


def chunk_count(byte_count: int) -> int:
    return -(-byte_count // CHUNK_BYTES)


def split_hashes(chunk_hashes: bytes) -> list[bytes]:
    return [
        chunk_hashes[start : start + HASH_BYTES]
        for start in range(0, len(chunk_hashes), HASH_BYTES)
    ]


def check_contents(
    contents: Contents, *, plan: StudyPlan, enrolled_patients: int
) -> Refusal | None:
    """Judge a complete update."""
    if contents.non_finite:
        return Refusal(RefusalCode.NOT_FINITE, f"{contents.non_finite} values are NaN or infinite")
    limit = norm_limit(plan, enrolled_patients=enrolled_patients)
    if not contents.norm <= limit:
        return Refusal(
            RefusalCode.NORM,
            f"the update's norm {contents.norm:.4g} is above {limit:.4g}, the most that "
            f"the plan allows {enrolled_patients} patients",
        )
    return None


def norm_limit(plan: StudyPlan, *, enrolled_patients: int) -> float:
    """The largest norm that honest training by the plan gives, with slack.

    Plain gradient descent moves at most ``learning_rate · max_grad_norm`` a step, and
    each step adds Gaussian noise of standard deviation
    ``learning_rate · noise_multiplier · max_grad_norm / (sample_rate · patients)`` a
    coordinate. The noise's norm stays below ``√d + 6`` of those, but for a probability
    of e⁻¹⁸ (concentration of the Gaussian norm).
    """
    training, privacy = plan.training, plan.privacy
    step = training.learning_rate * privacy.max_grad_norm
    batch = privacy.sample_rate * max(1, enrolled_patients)
    noise = step * privacy.noise_multiplier / batch * math.sqrt(training.steps_per_round)
    return NORM_SLACK * (
        step * training.steps_per_round + noise * (math.sqrt(plan.schema.update_elements) + 6.0)
    )
