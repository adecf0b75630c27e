"""Oracle receipts: what the holdout set said of each update, signed and bound to that update.

The coordinator cannot tell a hospital one score and another one later: each is signed over node,
round, base model, update and the holdout set's gradients, and is in the log from the moment on at
which it changes trust. Without a holdout set there is nothing to sign.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from matl_common.ids import Digest, NodeId, digest_of
from matl_common.protocol import PayloadType, ScoreReceipt
from matl_common.signing import Signer, sign
from matl_common.tlog.entry import Entry
from matl_common.wire.documents import format_score_receipt
from matl_coordinator.core.rounds import Round
from matl_coordinator.service.entries import entry
from matl_coordinator.service.judging import Verdict
from matl_coordinator.service.story import envelope_facts


def score_receipts(
    rnd: Round,
    verdict: Verdict,
    at: datetime,
    *,
    federation_id: str,
    study_id: str,
    signer: Signer,
) -> tuple[Entry, ...]:
    """Sign every score of a round, each for an entry that its hospital may read."""
    root = root_digest({each.name: each.digest for each in verdict.root})
    found = (
        receipt_of(
            record,
            record.node_id,
            rnd,
            root=root,
            federation_id=federation_id,
            study_id=study_id,
        )
        for record in verdict.judgement.records
    )
    return tuple(_signed(receipt, signer, at=at) for receipt in found if receipt is not None)


def _signed(receipt: ScoreReceipt, signer: Signer, *, at: datetime) -> Entry:
    envelope = sign(PayloadType.SCORE, format_score_receipt(receipt), signer)
    return entry(
        "score_signed",
        at=at,
        round=receipt.round_id,
        node=receipt.node_id,
        update=receipt.update_digest,
        receipt=envelope_facts(envelope),
    )


class Score(Protocol):
    """The components of a score that are signed; a round's, or as its log entry tells them."""

    @property
    def z(self) -> float: ...
    @property
    def loss_improvement(self) -> float: ...
    @property
    def pogq(self) -> float: ...
    @property
    def quality(self) -> float: ...
    @property
    def harm(self) -> bool: ...
    @property
    def mode(self) -> str: ...


class Scored(Protocol):
    """A hospital's standing with its score."""

    @property
    def trust(self) -> float: ...
    @property
    def state(self) -> str: ...
    @property
    def as_of_round(self) -> int: ...
    @property
    def components(self) -> Score | None: ...


def receipt_of(
    scored: Scored,
    node_id: NodeId,
    rnd: Round,
    *,
    root: Digest,
    federation_id: str,
    study_id: str,
) -> ScoreReceipt | None:
    """What there is to sign about a hospital; nothing if no holdout set scored it this round."""
    score = scored.components
    updates: Mapping[NodeId, Digest] = {each.node_id: each.update_digest for each in rnd.admitted}
    if score is None or score.mode != "root" or scored.as_of_round != rnd.round_id:
        return None
    if node_id not in updates:
        return None
    return ScoreReceipt(
        federation_id=federation_id,
        study_id=study_id,
        round_id=rnd.round_id,
        node_id=node_id,
        base_model=rnd.base_model,
        update_digest=updates[node_id],
        root_digest=root,
        z=score.z,
        loss_improvement=score.loss_improvement,
        pogq=score.pogq,
        quality=score.quality,
        harm=score.harm,
        trust=scored.trust,
        state=str(scored.state),
    )


def root_digest(rows: Mapping[str, Digest]) -> Digest:
    """One digest for all of the holdout set's gradients, as ``round_scored`` lists them."""
    return digest_of(json.dumps(dict(rows), sort_keys=True, separators=(",", ":")).encode())
