"""Records to store: rounds, updates, trust, models and the study."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from matl_common.ids import Digest, NodeId, RoundId, digest_of
from matl_common.signing import Envelope
from matl_common.tlog.merkle import leaf_hash
from matl_coordinator.core.evaluations import HospitalEvaluation
from matl_coordinator.core.rounds import (
    Admitted,
    Average,
    Evaluation,
    Excluded,
    NodeWeight,
    Phase,
    Round,
    RoundRules,
)
from matl_coordinator.core.trust import Components, TrustRecord, TrustState
from matl_coordinator.ports import ModelRecord, StudyRecord, UpdateRecord, UpdateStatus

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
ENVELOPE = Envelope("application/vnd.matl.test", b"\x00\xff{}", "ab" * 32, b"\x30\x00\xfe")
MODEL = digest_of(b"the first model")
NODES = (NodeId("hospital-b"), NodeId("hospital_a"), NodeId("hospitalc"))
"""In the order of their bytes, which is no language's."""


def a_round(number: int = 1, *, phase: Phase = Phase.COLLECTING) -> Round:
    return Round(
        round_id=RoundId(number),
        nonce=bytes(range(240, 256)),
        plan_digest=digest_of(b"plan"),
        base_model=MODEL,
        rules=RoundRules(2, 2, 5, timedelta(days=1, seconds=3, microseconds=7)),
        opens_at=NOON,
        phase=phase,
        opened_at=NOON,
        invited=frozenset(NODES),
    )


def a_decided_round(number: int = 1) -> Round:
    return replace(
        a_round(number, phase=Phase.RELEASED),
        closed_at=NOON,
        ended_at=NOON,
        admitted=(
            Admitted(NODES[0], digest_of(b"x"), HospitalEvaluation(-0.5, 1 / 3, 1000)),
            Admitted(NODES[2], digest_of(b"y"), HospitalEvaluation(None, 120.5, 1, "no number")),
        ),
        excluded=(Excluded(NODES[1], "norm 3.0e38, \u2264 1 allowed"),),
        weights=(NodeWeight(NODES[0], 0.1 + 0.2),),
        candidate=digest_of(b"next"),
        average=Average(digest_of(b"mean"), 3),
        evaluation=Evaluation(1 / 3, 0.5, -0.25, (0.1, 1.0, 5e-324), 200),
    )


def an_update(number: int = 1, node: NodeId = NODES[0]) -> UpdateRecord:
    return UpdateRecord(
        round_id=RoundId(number),
        node_id=node,
        update_digest=digest_of(node.encode()),
        manifest=ENVELOPE,
        chunk_hashes=leaf_hash(b"chunk"),
        byte_count=5,
        status=UpdateStatus.RECEIVING,
        code=None,
        reason="",
        norm=None,
        decided_at=None,
        log_index=None,
        log_leaf_hash=None,
    )


def an_admitted_update(number: int = 1, node: NodeId = NODES[0]) -> UpdateRecord:
    update = an_update(number, node)
    return replace(update, status=UpdateStatus.ADMITTED, norm=1.1, decided_at=NOON)


def some_trust(score: float = 0.75) -> tuple[TrustRecord, ...]:
    components = Components(
        *(0.1, 0.2, 0.5, 1.5, 1.2, -1.5, 1.0, 0.9, 0.8),
        harm=False,
        pogq=0.55,
        loss_improvement=-1e-9,
        peer_cosine=None,
    )
    return tuple(
        TrustRecord(node, score, TrustState.TRUSTED, 0.2, "agrees", components=components)
        for node in NODES
    )


def a_model(digest: Digest = MODEL, *, round_id: int = 0) -> ModelRecord:
    return ModelRecord(digest, 1234, round_id, NOON)


def a_study(*, paused: bool = False) -> StudyRecord:
    reason = "\u0000 asked by the operator" if paused else ""
    return StudyRecord(ENVELOPE, digest_of(ENVELOPE.payload), paused, reason)
