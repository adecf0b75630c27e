"""A federation embedded in this process, as a client sees it: its study, once one has begun.

What is heavy is imported when the study begins.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, NoReturn

from matl.privacy import DifferentialPrivacy
from matl.sdk.federation import MatlWarning, Submission
from matl_common.errors import ConfigurationError
from matl_common.ids import NodeId
from matl_common.modes import MATLMode

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from matl.history import TutorialHistory
    from matl.sdk.gradients import Layout
    from matl.sdk.study import EmbeddedStudy
    from matl.sdk.terms import Mechanism
    from matl.sdk.told import Standing
    from matl_common.tensors import ModelSchema
    from matl_coordinator.core.rounds import Round
    from matl_coordinator.ports import Scorer
    from matl_coordinator.store.models import FileModelStore
    from matl_participant.core.spending import Summary


class EmbeddedFederation:
    """A ``Federation`` in a folder. Safe to share between threads."""

    def __init__(
        self,
        folder: Path,
        *,
        study: str,
        nodes: tuple[NodeId, ...],
        private_keys: Mapping[NodeId, Path],
        privacy: DifferentialPrivacy | None,
        has_holdout: bool,
        rounds: int,
        byzantine: int | None,
        rule: str,
    ) -> None:
        """Note what it will be; nothing is opened before a study begins."""
        self.folder = folder
        self._study_id = study
        self._nodes = nodes
        self._private_keys = private_keys
        self._privacy = privacy
        self._has_holdout = has_holdout
        self._rounds = rounds
        self._byzantine = byzantine
        self._rule = rule
        # Guards what follows.
        self._lock = RLock()
        self._study: EmbeddedStudy | None = None
        self._layout: Layout | None = None
        self._told_trust: dict[NodeId, float] = {}

    @property
    def study(self) -> EmbeddedStudy | None:
        """The study, once it has begun."""
        return self._study

    def begin(
        self,
        mechanism: Mechanism,
        *,
        patients: Mapping[NodeId, int],
        rounds: int,
        steps_per_round: int,
        learning_rate: float,
        mode: MATLMode,
        schema: ModelSchema,
        first_model: Callable[[], Iterable[Buffer]],
        scorer: Callable[[FileModelStore], Scorer],
    ) -> EmbeddedStudy:
        """Begin the study, or go on with it.

        Raises:
            ConfigurationError: the folder is in use, or the study has other terms.
            StudyMismatchError: the folder holds another study.
        """
        from matl.sdk.study import EmbeddedStudy
        from matl.sdk.terms import Terms
        from matl_coordinator.core.claim import claimed_tolerance

        byzantine = self._byzantine
        if byzantine is None:
            byzantine = claimed_tolerance(mode, len(patients)).f
        terms = Terms(
            study=self._study_id,
            mechanism=mechanism,
            hospitals=dict(patients),
            rounds=rounds,
            steps_per_round=steps_per_round,
            learning_rate=learning_rate,
            privacy=self._privacy,
            byzantine=byzantine,
            rule=self._rule,
            mode=mode,
        )
        with self._lock:
            if self._study is None:
                self._study = EmbeddedStudy(
                    self.folder,
                    terms,
                    schema=schema,
                    first_model=first_model,
                    scorer=scorer,
                    private_keys=self._private_keys,
                )
            elif self._study.terms != terms or self._study.coordinator.plan.schema != schema:
                raise ConfigurationError(
                    "this client's study began with other terms, hospitals or another model; close "
                    "it, and make a client with another folder=, whose ledgers do not know of "
                    "this one: add the ε of both yourself"
                )
            return self._study

    def _submissions(self, schema: ModelSchema) -> EmbeddedStudy:
        """The study of submitted gradients: every hospital's whole gradient is one record."""
        from matl.sdk.study import without_holdout
        from matl.sdk.terms import Mechanism

        return self.begin(
            Mechanism.SUBMISSIONS,
            # Declared patients weigh nothing here: every submission carries the same noise.
            patients=dict.fromkeys(self._nodes, 1),
            rounds=self._rounds,
            steps_per_round=1,
            learning_rate=1.0,
            # A holdout set says nothing without the network, which stays with the caller. So the
            # study's model is the sum of its aggregates, and begins at zero.
            mode=MATLMode.MODE0,
            schema=schema,
            first_model=lambda: (bytes(spec.byte_count) for spec in schema.tensors),
            scorer=without_holdout,
        )

    def submit(self, node: NodeId, gradient: Sequence[Any]) -> Submission:
        """As ``MATLClient.submit_gradient``."""
        from matl.sdk.gradients import Layout, submission
        from matl.sdk.hospital import epsilon_left

        with self._lock:
            layout = self._layout or Layout.of(gradient)
            flat = layout.flat(gradient)
            study = self._submissions(layout.schema)
            self._layout, terms = layout, study.terms

            def make(_: object) -> Any:
                return submission(
                    flat, noise_multiplier=terms.noise_multiplier, clip_norm=terms.clip_norm
                )

            sent = study.take_part(node, make)
            self._told_trust[node] = sent.trust
            summary = study.budgets()[node]
        return Submission(
            hospital=node,
            round=sent.round_id,
            trust_score=sent.trust,
            state=sent.state,
            privacy_budget=epsilon_left(summary),
            budget_fraction=summary.budget_fraction,
            rounds_left=summary.rounds_left,
            admitted=sent.refused is None,
            reason=sent.refused or "",
            log_index=sent.log_index,
        )

    def aggregate(
        self, gradients: Sequence[Sequence[Any]], trust_scores: Sequence[float] | None
    ) -> list[Any]:
        """As ``MATLClient.aggregate``."""
        with self._lock:
            if self._study is None or self._layout is None or not gradients:
                raise ConfigurationError(
                    "nothing was submitted; call submit_gradient for every hospital first"
                )
            self._compare_trust(trust_scores)
            rnd = self._study.finish_round()
            self._told_trust.clear()
            # An update is added to parameters; a gradient is subtracted.
            return self._layout.like(-self._study.change_of(rnd), gradients[0])

    def _compare_trust(self, trust_scores: Sequence[float] | None) -> None:
        told = list(self._told_trust.values())
        if trust_scores is None or [float(each) for each in trust_scores] == told:
            return
        warnings.warn(
            "trust_scores= are others than submit_gradient told; they are not used: weights follow "
            "from the trust that the study has found",
            MatlWarning,
            stacklevel=4,
        )

    def mode(self) -> MATLMode:
        """By whether there is a holdout set."""
        return MATLMode.MODE1 if self._has_holdout else MATLMode.MODE0

    def claim(self) -> str:
        """As ``Federation``."""
        return "" if self._study is None else self._study.coordinator.protection.claim

    def allowed_nodes(self) -> tuple[str, ...]:
        """As named at the beginning."""
        return self._nodes

    def active_nodes(self) -> int:
        """How many take part in the newest round."""
        rnd = self._newest_round()
        return 0 if rnd is None else len(rnd.invited)

    def current_round(self) -> int:
        """As ``Federation``."""
        rnd = self._newest_round()
        return 0 if rnd is None else rnd.round_id

    def _newest_round(self) -> Round | None:
        if self._study is not None:
            return self._study.coordinator.state().round
        kept = self._kept()
        return None if kept is None else kept.round

    def _kept(self) -> Standing | None:
        """What the folder of a study says that this client has not gone on with yet."""
        if not (self.folder / "coordinator").is_dir():
            return None
        from matl.sdk.told import standing_in_folder

        return standing_in_folder(self.folder, self._nodes)

    def trust_scores(self) -> dict[str, float]:
        """As ``Federation``; the initial ones before the first round."""
        if self._study is not None:
            return {node: each.trust for node, each in self._study.trust().items()}
        if (kept := self._kept()) is not None:
            return dict(kept.trust)
        from matl_coordinator.core.trust_record import initial_record

        return {node: initial_record(node).trust for node in self._nodes}

    def epsilon_left(self) -> dict[str, float]:
        """As the hospitals' ledgers have it; the whole budget where there is none yet."""
        whole = math.inf if self._privacy is None else self._privacy.epsilon
        if not (budgets := self._budgets()):
            return dict.fromkeys(self._nodes, whole)
        from matl.sdk.hospital import epsilon_left

        return {node: epsilon_left(each) for node, each in budgets.items()}

    def _budgets(self) -> Mapping[NodeId, Summary]:
        if self._study is not None:
            return self._study.budgets()
        kept = self._kept()
        return {} if kept is None else kept.budgets

    def budget_fraction(self) -> float:
        """As the hospitals' ledgers have it."""
        return max((each.budget_fraction for each in self._budgets().values()), default=0.0)

    def history(self) -> TutorialHistory:
        """As ``Federation``; of the folder where no study has begun here.

        Raises:
            ConfigurationError: there is none in the folder.
        """
        from matl.sdk.told import read_measured, spent_by_ledgers, told_by_folder, told_by_store

        with self._lock:
            if self._study is None:
                return told_by_folder(self.folder)
            return told_by_store(
                self._study.coordinator.store,
                terms=self._study.coordinator.plan.privacy,
                spent=spent_by_ledgers(self._study.accounts()),
                measured=read_measured(self.folder),
            )

    def recent_events(self, limit: int) -> list[dict[str, Any]]:
        """As ``Federation``."""
        if self._study is None:
            return []
        from matl_common.tlog.entry import parse_entry

        store = self._study.coordinator.store
        size = store.log_head().size
        logged = store.log_entries(start=max(0, size - limit), limit=limit)
        return [dict(parse_entry(each.data)) for each in reversed(logged) if each.data is not None]

    def log_is_encrypted(self) -> bool | None:
        """As ``Federation``; nothing is logged before the study begins."""
        return None if self._study is None else self._study.log_is_encrypted()

    def has_tls(self) -> bool:
        """Never: there is no connection at all, and nothing to deploy."""
        return False

    def resume(self, reason: str) -> None:
        """As ``Federation``.

        Raises:
            ConfigurationError: no study has begun.
            OperationError: it is not paused.
        """
        if self._study is None:
            raise ConfigurationError("no study has begun, so none is paused")
        self._study.coordinator.resume(reason)

    def note_accuracy(self, accuracy: float) -> None:
        """As ``Federation``; kept in the folder."""
        if self._study is None or math.isnan(accuracy):
            return
        from matl.sdk.told import note_measured, rounds_of
        from matl_coordinator.core.rounds import Phase

        rounds = rounds_of(self._study.coordinator.store)
        released = [each.round_id for each in rounds if each.phase is Phase.RELEASED]
        if released:
            note_measured(self.folder, released[-1], accuracy)

    def watch(self, rounds: int, *, report: Callable[[str], object]) -> NoReturn:
        """Nothing happens by itself here."""
        raise ConfigurationError("an embedded study has no rounds that come by themselves")

    def close(self) -> None:
        """Let go of the study's folder."""
        with self._lock:
            if self._study is not None:
                self._study.close()
                self._study = None
