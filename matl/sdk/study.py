"""An embedded study: one coordinator and its hospitals, in one folder and one process.

coordinator/      the coordinator's state, as a daemon's
hospitals/<name>/ a hospital's ledger and receipts, as a participant daemon's
keys/             everybody's private keys
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from typing_extensions import Buffer

from matl.sdk.embedded import EmbeddedCoordinator
from matl.sdk.hospital import Hospital, Sent, Vector
from matl.sdk.keys import Keys
from matl.sdk.terms import Terms, check_terms
from matl_common.errors import MatlError
from matl_common.ids import Digest, NodeId
from matl_common.protocol import RoundStart
from matl_common.tensors import Float32Vector, ModelSchema, read_trainable
from matl_coordinator.core.rounds import Evaluation, Round
from matl_coordinator.core.trust_record import TrustRecord, with_newcomers
from matl_coordinator.ports import (
    HoldoutFacts,
    HoldoutReport,
    InitialModel,
    RootGradient,
    Scorer,
)
from matl_coordinator.store.models import FileModelStore
from matl_participant.core.account import Account
from matl_participant.core.spending import Summary


class NoHoldout:
    """A ``ports.Scorer`` where nothing is scored: hospitals are compared with one another."""

    async def initial_model(self, folder: Path) -> InitialModel:
        """Never asked: an embedded study begins with the caller's network."""
        self._refuse()

    async def prepare(self) -> HoldoutFacts:
        """Never asked."""
        self._refuse()

    async def root(self, base_model: Digest, *, folder: Path) -> tuple[RootGradient, ...]:
        """Never asked."""
        self._refuse()

    async def report(
        self,
        base_model: Digest,
        updates: Mapping[NodeId, Path],
        *,
        weights: Mapping[NodeId, float],
        folder: Path,
    ) -> HoldoutReport:
        """Never asked."""
        self._refuse()

    async def reach(self, base_model: Digest, candidate: Path) -> float:
        """As ``ports.Scorer``; never asked."""
        self._refuse()

    async def evaluate(self, model: Digest) -> Evaluation:
        """Never asked."""
        self._refuse()

    async def close(self) -> None:
        """Nothing to end."""

    @staticmethod
    def _refuse() -> NoReturn:
        raise MatlError("there is no holdout set to ask")


def without_holdout(_: FileModelStore) -> Scorer:
    """No holdout set, whatever the models."""
    return NoHoldout()


class EmbeddedStudy:
    """Holds its folder, and every hospital's ledger, until ``close``."""

    def __init__(
        self,
        folder: Path,
        terms: Terms,
        *,
        schema: ModelSchema,
        first_model: Callable[[], Iterable[Buffer]],
        scorer: Callable[[FileModelStore], Scorer] = without_holdout,
        private_keys: Mapping[NodeId, Path] | None = None,
    ) -> None:
        """Begin a study, or go on with the folder's.

        Args:
            folder: made where it is missing.
            terms: what is fixed about the study.
            schema: of its model.
            first_model: as for ``EmbeddedCoordinator``.
            scorer: as for ``EmbeddedCoordinator``.
            private_keys: of hospitals that bring their own, PEM.

        Raises:
            ConfigurationError: the folder is in use, or an argument cannot be.
            StudyMismatchError: the folder's study is another one.
        """
        check_terms(terms)
        self.terms = terms
        with ExitStack() as stack:
            keys = Keys.in_folder(folder / "keys", terms.hospitals, given=private_keys or {})
            self.coordinator = EmbeddedCoordinator(
                folder / "coordinator",
                terms,
                keys=keys,
                schema=schema,
                first_model=first_model,
                scorer=scorer,
            )
            stack.callback(self.coordinator.close)
            self._hospitals = {
                node: stack.enter_context(
                    Hospital(
                        folder / "hospitals" / node, node, self.coordinator, keys.hospitals[node]
                    )
                )
                for node in terms.hospitals
            }
            self._stack = stack.pop_all()

    def take_part(self, node: NodeId, make: Callable[[RoundStart], Vector]) -> Sent:
        """Have a hospital make and send its update; see ``Hospital.take_part``."""
        return self._hospitals[node].take_part(make)

    def finish_round(self) -> Round:
        """Release what came of the round; see ``EmbeddedCoordinator.finish_round``."""
        return self.coordinator.finish_round()

    def change_of(self, rnd: Round) -> Float32Vector:
        """What a released round added to the parameters, shape ``(d,)``."""
        assert rnd.candidate is not None, "a released round has a model"
        return self.parameters(rnd.candidate) - self.parameters(rnd.base_model)

    def parameters(self, model: Digest) -> Float32Vector:
        """A model's trainable parameters one after the other, shape ``(d,)``."""
        return read_trainable(self.coordinator.models.path(model))

    @property
    def newest_model(self) -> Digest:
        """What the next round starts from."""
        latest = self.coordinator.state().latest_model
        assert latest is not None, "a study begins with a model"
        return latest.base

    def trust(self) -> Mapping[NodeId, TrustRecord]:
        """Every hospital's standing after the last round that was judged."""
        records = with_newcomers(self.coordinator.state().trust, self.terms.hospitals)
        return {record.node_id: record for record in records}

    def budgets(self) -> Mapping[NodeId, Summary]:
        """What every hospital's ledger says."""
        return {node: each.summary() for node, each in self._hospitals.items()}

    def accounts(self) -> Mapping[str, Account]:
        """Every hospital's ledger, entry by entry."""
        return {node: each.ledger.account for node, each in self._hospitals.items()}

    def log_is_encrypted(self) -> bool:
        """Whether the newest entry of the coordinator's log is stored as ciphertext; looked up."""
        store = self.coordinator.store
        size = store.log_head().size
        (newest,) = store.log_entries(start=size - 1, limit=1)
        return (
            newest.payload is not None
            and newest.data is not None
            and newest.data not in newest.payload
        )

    def close(self) -> None:
        """Let go of everything; doing it again changes nothing."""
        self._stack.close()
