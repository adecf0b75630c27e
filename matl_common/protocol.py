"""What coordinator and participant say to each other, as values.

These are the signed documents of a study (plan, round start, update manifest,
receipt) and the facts around them. ``matl_common.wire`` turns protobuf into
these values and back; nothing here parses, signs, reads a clock or does I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from matl_common.ids import Digest, NodeId, RoundId
from matl_common.privacy.mechanisms import Noise
from matl_common.tensors import ModelSchema


class PayloadType(StrEnum):
    """DSSE payload types; one per document, so that none passes for another."""

    STUDY_PLAN = "application/vnd.matl.study-plan.v1"
    ROUND_START = "application/vnd.matl.round-start.v1"
    UPDATE = "application/vnd.matl.update.v1"
    RECEIPT = "application/vnd.matl.receipt.v1"
    SCORE = "application/vnd.matl.score.v1"


class Recipe(StrEnum):
    """How a hospital trains under differential privacy."""

    HEAD = "head"
    """Frozen public backbone; full-batch noisy gradient descent on a linear head."""
    FULL = "full"
    """GroupNorm ResNet-50 end to end; DP-SGD with Poisson sampling."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What every hospital computes in a round."""

    recipe: Recipe
    backbone: str
    backbone_digest: Digest | None
    """SHA-256 of the public weights file; ``None`` when nothing is pretrained."""
    image_size: int
    """Pixels a side."""
    views: int
    """Deterministic views averaged per image (``head``)."""
    steps_per_round: int
    learning_rate: float
    batch_size: int
    """Expected Poisson batch (``full``); unused by ``head``."""


@dataclass(frozen=True, slots=True)
class EvaluationTerms:
    """Hospitals count, each round, how many of their patients the base model gets right."""

    noise_multiplier: float
    """Standard deviation of the noise on a count, in patients: one patient moves it by 1."""
    max_evaluations: int
    """Over the whole study."""


@dataclass(frozen=True, slots=True)
class PrivacyTerms:
    """The privacy promise of a study, the same for every hospital."""

    unit: str
    adjacency: str
    target_epsilon: float
    target_delta: float
    noise_multiplier: float
    """Standard deviation of the noise on a summed gradient, in units of
    ``max_grad_norm``; 0 means that the study promises no privacy."""
    max_grad_norm: float
    sample_rate: float
    max_steps: int
    """Over the whole study."""
    noise: Noise = Noise.GAUSSIAN
    evaluation: EvaluationTerms | None = None
    """``None``: no count is asked for."""


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """What a study asks of its hospitals; frozen and signed before round 1."""

    federation_id: str
    study_id: str
    schema: ModelSchema
    training: TrainingPlan
    privacy: PrivacyTerms
    average_from: int = 0
    """From which release on, counted from 1, the mean of the rounds' own models since then is
    released; training goes on from the last round's own. 0: every release is the round's own."""
    send_after_seconds: float = 0.0
    """A hospital that looked at its data says nothing before this long after it began to, or a
    multiple of it, so that its silence does not tell of the data; 0 hides nothing."""


@dataclass(frozen=True, slots=True)
class RoundStart:
    """The coordinator opens a round."""

    federation_id: str
    study_id: str
    round_id: RoundId
    nonce: bytes
    """32 random bytes; an update that does not repeat them is a replay."""
    plan_digest: Digest
    base_model: Digest
    base_model_bytes: int
    opened_at: datetime
    deadline: datetime


@dataclass(frozen=True, slots=True)
class PrivacySpend:
    """The mechanism behind one update, as charged in the hospital's ledger."""

    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    steps: int
    noise: Noise = Noise.GAUSSIAN


@dataclass(frozen=True, slots=True)
class NoisedCount:
    """How many of a hospital's patients a model gets right, as the hospital says."""

    correct: float
    """In patients, with noise; of a hostile hospital anything, NaN included."""
    noise_multiplier: float
    """As charged in the hospital's ledger; as in ``EvaluationTerms``."""


@dataclass(frozen=True, slots=True)
class UpdateManifest:
    """What a hospital signs about one update."""

    federation_id: str
    study_id: str
    round_id: RoundId
    nonce: bytes
    plan_digest: Digest
    base_model: Digest
    schema_digest: Digest
    byte_count: int
    chunk_bytes: int
    chunk_root: bytes
    """RFC 6962 tree hash over the chunks."""
    privacy: PrivacySpend
    expires_at: datetime
    evaluation: NoisedCount | None = None
    """Of ``base_model``; ``None`` where none is asked for, or the hospital refuses."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The coordinator admitted an update and logged that it did."""

    federation_id: str
    study_id: str
    round_id: RoundId
    node_id: NodeId
    update_digest: Digest
    log_index: int
    log_leaf_hash: Digest
    admitted_at: datetime


@dataclass(frozen=True, slots=True)
class ScoreReceipt:
    """What the coordinator's holdout set said of one update, signed by the coordinator."""

    federation_id: str
    study_id: str
    round_id: RoundId
    node_id: NodeId
    base_model: Digest
    update_digest: Digest
    root_digest: Digest
    """Of the holdout set's gradients that the update was compared with; see the log's entry
    ``round_scored``."""
    z: float
    """Of the update along the holdout set's descent, in standard errors."""
    loss_improvement: float
    """On the holdout set; 0 where the study promises privacy."""
    pogq: float
    """The score of MATL's paper, 0 to 1."""
    quality: float
    """What trust moves towards, 0 to 1."""
    harm: bool
    trust: float
    """After this round."""
    state: str


@dataclass(frozen=True, slots=True)
class Standing:
    """How the coordinator sees one hospital."""

    trust: float
    state: str
    as_of_round: int
    """0 before the first score."""
    reason: str
