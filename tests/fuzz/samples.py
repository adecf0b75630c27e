"""Sound documents from the project's own encoders, which fuzzing starts from."""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec

from matl_common.ids import NodeId, RoundId, digest_of
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
    StudyPlan,
    TrainingPlan,
    UpdateManifest,
)
from matl_common.tensors import CHUNK_BYTES, TensorSpec, parse_schema
from tests.signers import SoftwareSigner

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SCHEMA = parse_schema(
    [TensorSpec("head.weight", (5, 3)), TensorSpec("mean", (8,), trainable=False)]
)
# Any scalar will do, and the same one makes the same corpus.
SIGNER = SoftwareSigner(ec.derive_private_key(2026, ec.SECP256R1()))
TERMS = PrivacyTerms(
    "patient",
    "add-or-remove-one",
    1.0,
    1e-5,
    20.0,
    1.0,
    1.0,
    32,
    Noise.DISCRETE_GAUSSIAN,
    EvaluationTerms(120.3, 52),
)
PLAN = StudyPlan(
    federation_id="dr-study",
    study_id="study-1",
    schema=SCHEMA,
    training=TrainingPlan(Recipe.HEAD, "resnet50", digest_of(b"weights"), 224, 2, 4, 0.5, 1),
    privacy=TERMS,
    average_from=4,
    send_after_seconds=300.0,
)
START = RoundStart(
    federation_id="dr-study",
    study_id="study-1",
    round_id=RoundId(3),
    nonce=bytes(range(32)),
    plan_digest=digest_of(b"plan"),
    base_model=digest_of(b"model"),
    base_model_bytes=1000,
    opened_at=NOW,
    deadline=NOW,
)
MANIFEST = UpdateManifest(
    federation_id="dr-study",
    study_id="study-1",
    round_id=RoundId(3),
    nonce=bytes(range(32)),
    plan_digest=digest_of(b"plan"),
    base_model=digest_of(b"model"),
    schema_digest=SCHEMA.digest,
    byte_count=60,
    chunk_bytes=CHUNK_BYTES,
    chunk_root=bytes(32),
    privacy=PrivacySpend(20.0, 1.0, 1.0, 4),
    expires_at=NOW,
    evaluation=NoisedCount(17.5, 120.3),
)
RECEIPT = Receipt(
    federation_id="dr-study",
    study_id="study-1",
    round_id=RoundId(3),
    node_id=NodeId("hospital_b"),
    update_digest=digest_of(b"update"),
    log_index=7,
    log_leaf_hash=digest_of(b"leaf"),
    admitted_at=NOW,
)
SCORE = ScoreReceipt(
    federation_id="dr-study",
    study_id="study-1",
    round_id=RoundId(3),
    node_id=NodeId("hospital_b"),
    base_model=digest_of(b"model"),
    update_digest=digest_of(b"update"),
    root_digest=digest_of(b"root"),
    z=-1.25,
    loss_improvement=0.5,
    pogq=0.7,
    quality=1.0,
    harm=False,
    trust=0.6,
    state="marginal",
)
