"""A hospital of an embedded study: it charges its ledger, seals what it made, and sends it.

The ledger, the signed manifest and the order of both are a participant daemon's. What is charged
stays charged, whatever became of it. Nothing here computes a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from matl.sdk.embedded import EmbeddedCoordinator, StudyCompleteError
from matl_common.clock import utc_now
from matl_common.errors import MatlError
from matl_common.ids import NodeId, digest_of
from matl_common.protocol import PayloadType, RoundStart
from matl_common.signing import Envelope, Signer, verify
from matl_common.tensors import Float32Vector, hash_chunks, iter_update_chunks
from matl_common.version import __version__
from matl_common.wire.documents import parse_receipt, parse_round_start
from matl_participant.client import SignedPlan
from matl_participant.core.account import Planned
from matl_participant.core.spending import Summary
from matl_participant.files import StateFolder
from matl_participant.ledger import BudgetExhaustedError, Ledger, open_ledger
from matl_participant.sealing import seal_result

Vector = NDArray[np.float64] | Float32Vector


class AlreadySubmittedError(MatlError):
    """The hospital's update for this round is in."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of an update."""

    round_id: int
    trust: float
    """Before this round, which only all its updates together decide."""
    state: str
    refused: str | None
    """Why the update does not count; ``None`` where it was admitted."""
    log_index: int | None
    """Of the entry that admits it."""


class Hospital:
    """One hospital's own folder, ledger and key. Owned by one thread at a time."""

    def __init__(
        self,
        folder: Path,
        node_id: NodeId,
        coordinator: EmbeddedCoordinator,
        signer: Signer,
    ) -> None:
        """Open the ledger, and plan the study in it where it is new.

        Raises:
            LedgerBusyError: another process has it open.
            LedgerCorruptError: it is damaged.
        """
        self._node = node_id
        self._coordinator = coordinator
        self._signer = signer
        self._state = StateFolder(folder)
        self._state.prepare()
        plan = coordinator.plan
        self._study = self._state.study(plan.study_id)
        envelope = coordinator.study_plan()
        payload = verify(envelope, coordinator.coordinator_key, PayloadType.STUDY_PLAN)
        self._plan = SignedPlan(plan, digest_of(payload), envelope)
        self._ledger = open_ledger(self._state.ledger, dataset=str(node_id), study_id=plan.study_id)
        try:
            self._begin()
        except BaseException:
            self._ledger.close()
            raise

    def _begin(self) -> None:
        plan = self._plan.plan
        if self._ledger.account.plan is None:
            self._study.write_plan(self._plan.envelope)
            self._ledger.plan(
                Planned(
                    at=utc_now(),
                    federation_id=plan.federation_id,
                    study_id=plan.study_id,
                    dataset=str(self._node),
                    plan_digest=self._plan.digest,
                    # The caller's objects have no content that could be told again later.
                    dataset_digest=digest_of(f"data of {self._node}".encode()),
                    privacy=plan.privacy,
                    steps_per_round=plan.training.steps_per_round,
                    software=__version__,
                )
            )
        elif (attempt := self._ledger.account.open_attempt) is not None:
            # Of a process that ended in the middle: spent, and never repeated.
            reason = "the process ended before the update was admitted"
            self._ledger.abandon(at=utc_now(), round_id=attempt.round_id, reason=reason)

    def take_part(self, make: Callable[[RoundStart], Vector]) -> Sent:
        """Charge a round, make its update, and send it.

        Args:
            make: given the round, its noised update, shape ``(d,)``; called once the charge is
                durable, and the only one to look at data.

        Raises:
            AlreadySubmittedError: this round has the hospital's update.
            BudgetExhaustedError: the ledger does not allow another round.
            StudyCompleteError, RoundHeldError: there is no round.
        """
        offer = self._coordinator.invite(self._node)
        if offer.round_start is None:
            raise AlreadySubmittedError(
                f"{self._node} has submitted its update for this round; call aggregate() once "
                "all hospitals have"
            )
        envelope = offer.round_start
        key = self._coordinator.coordinator_key
        start = parse_round_start(verify(envelope, key, PayloadType.ROUND_START))
        if offer.study_complete:
            raise StudyCompleteError("every round of the study has been released")
        steps = self._plan.plan.training.steps_per_round
        try:
            self._ledger.reserve(
                at=utc_now(), round_id=start.round_id, steps=steps, base_model=start.base_model
            )
        except BudgetExhaustedError as error:
            raise BudgetExhaustedError(
                f"{self._node}: {error}. Another folder= begins with a new ledger, which does not "
                "know of this one, and brings no budget back: the patients are the same, so add "
                "the ε of both yourself"
            ) from error
        receipt = self._send(start, make)
        standing = offer.standing
        refused = receipt if isinstance(receipt, str) else None
        return Sent(
            round_id=start.round_id,
            trust=standing.trust,
            state=standing.state,
            refused=refused,
            log_index=None if isinstance(receipt, str) else self._acknowledge(start, receipt),
        )

    def _send(self, start: RoundStart, make: Callable[[RoundStart], Vector]) -> Envelope | str:
        result = self._state.result(start.round_id)
        try:
            result.write_bytes(make(start).astype("<f4").tobytes())
            attempt = self._ledger.account.open_attempt
            assert attempt is not None, "the round has just been reserved"
            seal = seal_result(
                result,
                self._study,
                start=start,
                signed_plan=self._plan,
                attempt=attempt,
                correct=None,
                signer=self._signer,
            )
            self._ledger.seal(
                at=utc_now(),
                round_id=start.round_id,
                update_digest=seal.update.digest,
                content_digest=seal.content_digest,
            )
            hashes = b"".join(hash_chunks(seal.update.file))
            answer = self._coordinator.send(
                self._node,
                seal.update.envelope,
                hashes,
                iter_update_chunks(seal.update.file),
            )
        except BaseException:
            self._give_up(start, "it failed before the update was admitted")
            raise
        if isinstance(answer, str):
            self._give_up(start, f"refused: {answer}")
        return answer

    def _give_up(self, start: RoundStart, reason: str) -> None:
        if self._ledger.account.open_attempt is not None:
            self._ledger.abandon(at=utc_now(), round_id=start.round_id, reason=reason[:500])
        self._study.discard_others(None)

    def _acknowledge(self, start: RoundStart, envelope: Envelope) -> int:
        payload = verify(envelope, self._coordinator.coordinator_key, PayloadType.RECEIPT)
        receipt = parse_receipt(payload)
        self._study.write_receipt(start.round_id, envelope)
        self._ledger.acknowledge(
            at=utc_now(),
            round_id=start.round_id,
            update_digest=receipt.update_digest,
            log_index=receipt.log_index,
        )
        self._study.discard_others(None)
        return receipt.log_index

    @property
    def ledger(self) -> Ledger:
        """The hospital's own."""
        return self._ledger

    def summary(self) -> Summary:
        """What the ledger says was spent."""
        return self._ledger.summary()

    def close(self) -> None:
        """Let go of the ledger."""
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def epsilon_left(summary: Summary) -> float:
    """ε of the budget less ε spent; infinite without privacy. Not linear in rounds."""
    if math.isinf(summary.target_epsilon):
        return math.inf
    return max(0.0, summary.target_epsilon - summary.epsilon_spent)
