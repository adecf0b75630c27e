"""What is admitted, and the reason for everything that is not."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from matl_common.ids import Digest, NodeId, RoundId
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
from matl_common.tlog.merkle import leaf_hash, merkle_root
from matl_coordinator.core.admission import (
    Contents,
    Refusal,
    RefusalCode,
    check_chunk_hashes,
    check_contents,
    check_manifest,
    norm_limit,
)
from matl_coordinator.core.rounds import Opened, Phase, Round, RoundRules, advance

T0 = datetime(2026, 1, 1, tzinfo=UTC)
A, B = NodeId("hospital_a"), NodeId("hospital_b")
DIGEST, OTHER = Digest("ab" * 32), Digest("cd" * 32)
SCHEMA = parse_schema([TensorSpec("head.weight", (5, 100)), TensorSpec("head.bias", (5,))])
PLAN = StudyPlan(
    federation_id="dr-study",
    study_id="dr-2026",
    schema=SCHEMA,
    training=TrainingPlan(Recipe.HEAD, "resnet50", None, 224, 2, 4, 0.5, 1),
    privacy=PrivacyTerms("patient", "add-or-remove-one", 1.0, 1e-5, 20.0, 1.0, 1.0, 32),
)
CHUNK = bytes(SCHEMA.update_bytes)
HASHES = leaf_hash(CHUNK)
MANIFEST = UpdateManifest(
    federation_id="dr-study",
    study_id="dr-2026",
    round_id=RoundId(1),
    nonce=b"n" * 32,
    plan_digest=DIGEST,
    base_model=DIGEST,
    schema_digest=SCHEMA.digest,
    byte_count=SCHEMA.update_bytes,
    chunk_bytes=CHUNK_BYTES,
    chunk_root=merkle_root([HASHES]),
    privacy=PrivacySpend(20.0, 1.0, 1.0, 4),
    expires_at=T0 + timedelta(hours=1),
)


def collecting() -> Round:
    rules = RoundRules(1, 1, 3, timedelta(minutes=5))
    rnd = Round(RoundId(1), b"n" * 32, DIGEST, DIGEST, rules, opens_at=T0)
    return advance(rnd, Opened(T0, frozenset({A})))


def judge(manifest: UpdateManifest, *, node: NodeId = A, rnd: Round | None) -> Refusal | None:
    return check_manifest(manifest, node_id=node, rnd=rnd, plan=PLAN, now=T0)


def test_a_manifest_that_follows_the_round_is_admitted() -> None:
    assert judge(MANIFEST, rnd=collecting()) is None


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"round_id": RoundId(2)}, RefusalCode.NO_ROUND),
        ({"federation_id": "another"}, RefusalCode.WRONG_STUDY),
        ({"study_id": "another"}, RefusalCode.WRONG_STUDY),
        ({"nonce": b"m" * 32}, RefusalCode.REPLAYED),
        ({"plan_digest": OTHER}, RefusalCode.WRONG_STUDY),
        ({"base_model": OTHER}, RefusalCode.WRONG_BASE_MODEL),
        ({"schema_digest": OTHER}, RefusalCode.WRONG_SCHEMA),
        ({"byte_count": 1 << 40}, RefusalCode.WRONG_SIZE),
        ({"chunk_bytes": 1}, RefusalCode.WRONG_SIZE),
        ({"expires_at": T0 - timedelta(minutes=6)}, RefusalCode.EXPIRED),
        ({"privacy": PrivacySpend(19.9, 1.0, 1.0, 4)}, RefusalCode.WRONG_PRIVACY),
        ({"privacy": PrivacySpend(20.0, 1.0, 1.0, 5)}, RefusalCode.WRONG_PRIVACY),
        ({"privacy": PrivacySpend(20.0, 0.9, 1.0, 4)}, RefusalCode.WRONG_PRIVACY),
        ({"privacy": PrivacySpend(20.0, 1.0, 0.5, 4)}, RefusalCode.WRONG_PRIVACY),
        (
            {"privacy": PrivacySpend(20.0, 1.0, 1.0, 4, Noise.DISCRETE_GAUSSIAN)},
            RefusalCode.WRONG_PRIVACY,
        ),
    ],
)
def test_a_manifest_that_differs_in_one_field_is_refused_for_it(
    change: dict[str, object], code: RefusalCode
) -> None:
    refusal = judge(replace(MANIFEST, **change), rnd=collecting())  # type: ignore[arg-type]  # one field of each type
    assert refusal is not None
    assert refusal.code is code


def test_an_update_declares_the_kind_of_noise_that_the_plan_asks_for() -> None:
    hardened = replace(PLAN, privacy=replace(PLAN.privacy, noise=Noise.DISCRETE_GAUSSIAN))
    for noise, is_refused in ((Noise.DISCRETE_GAUSSIAN, False), (Noise.GAUSSIAN, True)):
        manifest = replace(MANIFEST, privacy=replace(MANIFEST.privacy, noise=noise))
        refusal = check_manifest(manifest, node_id=A, rnd=collecting(), plan=hardened, now=T0)
        assert (refusal is not None) == is_refused


def test_an_evaluation_has_the_noise_that_the_plan_asks_for_or_is_left_out() -> None:
    asking = replace(PLAN, privacy=replace(PLAN.privacy, evaluation=EvaluationTerms(120.0, 8)))
    cases = [
        (PLAN, None, True),
        (asking, None, True),
        (asking, NoisedCount(5.0, 120.0), True),
        # What it says is not looked at here, whatever it is.
        (asking, NoisedCount(math.nan, 120.0), True),
        (asking, NoisedCount(5.0, 119.9), False),
        (asking, NoisedCount(5.0, 1e9), False),
        (PLAN, NoisedCount(5.0, 120.0), False),
    ]
    for plan, evaluation, is_admitted in cases:
        manifest = replace(MANIFEST, evaluation=evaluation)
        refusal = check_manifest(manifest, node_id=A, rnd=collecting(), plan=plan, now=T0)
        assert (refusal is None) == is_admitted
        assert refusal is None or refusal.code is RefusalCode.WRONG_PRIVACY


def test_nobody_sends_an_update_outside_collection_or_uninvited() -> None:
    for phase in Phase:
        refusal = judge(MANIFEST, rnd=replace(collecting(), phase=phase))
        assert (refusal is None) == (phase is Phase.COLLECTING)
    uninvited = judge(MANIFEST, node=B, rnd=collecting())
    nowhere = judge(MANIFEST, rnd=None)
    assert uninvited is not None
    assert uninvited.code is RefusalCode.NOT_INVITED
    assert nowhere is not None
    assert nowhere.code is RefusalCode.NO_ROUND


def test_a_clock_a_few_minutes_off_is_forgiven() -> None:
    assert judge(replace(MANIFEST, expires_at=T0 - timedelta(minutes=4)), rnd=collecting()) is None


@pytest.mark.parametrize("hashes", [b"", HASHES[:-1], HASHES * 2, hashlib.sha256(CHUNK).digest()])
def test_chunk_hashes_that_do_not_give_the_signed_root_are_refused(hashes: bytes) -> None:
    refusal = check_chunk_hashes(hashes, MANIFEST)
    assert refusal is not None
    assert refusal.code is RefusalCode.WRONG_CHUNKS


def test_the_right_chunk_hashes_are_taken() -> None:
    assert check_chunk_hashes(HASHES, MANIFEST) is None


def test_one_value_that_is_not_finite_refuses_the_update() -> None:
    refusal = check_contents(Contents(1, 0.1), plan=PLAN, enrolled_patients=100)
    assert refusal is not None
    assert refusal.code is RefusalCode.NOT_FINITE


@pytest.mark.parametrize("norm", [math.inf, math.nan, 1e38])
def test_a_norm_beyond_what_training_gives_is_refused(norm: float) -> None:
    refusal = check_contents(Contents(0, norm), plan=PLAN, enrolled_patients=100)
    assert refusal is not None
    assert refusal.code is RefusalCode.NORM


def test_honest_noise_and_signal_stay_below_the_norm_limit_without_much_room() -> None:
    patients, draws = 100, np.random.default_rng(7)
    limit = norm_limit(PLAN, enrolled_patients=patients)
    step = PLAN.training.learning_rate
    noise = step * PLAN.privacy.noise_multiplier / patients * math.sqrt(4)
    norms = [
        np.linalg.norm(draws.normal(0.0, noise, SCHEMA.update_elements)) + 4 * step
        for _ in range(200)
    ]
    assert max(norms) < limit
    assert limit < 3 * max(norms)


def test_a_small_hospital_may_have_a_larger_norm_because_its_noise_is_larger() -> None:
    assert norm_limit(PLAN, enrolled_patients=10) > 2 * norm_limit(PLAN, enrolled_patients=1000)
