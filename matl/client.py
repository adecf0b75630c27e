"""``MATLClient``: the tutorial's way into a federation.

Without a coordinator's address the whole federation is embedded in this process (``matl.sdk``);
with one, the client asks the daemons as an operator does. What is heavy is imported when it is
first needed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Final, Self

from matl.privacy import DifferentialPrivacy
from matl.sdk.federation import (
    Federation,
    MatlWarning,
    Submission,
    enrolled_patients,
    hospital_name,
    loggable,
)
from matl_common.errors import ConfigurationError
from matl_common.ids import NodeId
from matl_common.modes import MATLMode

if TYPE_CHECKING:
    import pandas as pd

    from matl.audit import AuditLogger
    from matl.history import TutorialHistory
    from matl.sdk.embedding import EmbeddedFederation

__all__ = ["MATLClient", "MatlWarning", "Submission"]

METHOD: Final = "reputation_weighted_with_privacy"
"""The tutorial's name for what a study's rule does: weights by trust, with the noise in view."""
DEFAULT_RULE: Final = "matl"
DEFAULT_ROUNDS: Final = 50


class MATLClient:
    """A federation, embedded or at an address.

    Nothing is opened before it is needed. Calls block, and may come from several threads. Use it
    as a context manager, or ``close`` it: an embedded study holds its folder meanwhile.
    """

    def __init__(
        self,
        *,
        node_id: str,
        mode: MATLMode | None = None,
        private_key: Path | str | None = None,
        privacy: DifferentialPrivacy | None = None,
        audit_logger: AuditLogger | None = None,
        allowed_nodes: Sequence[str] | Mapping[str, int] = (),
        rounds: int = DEFAULT_ROUNDS,
        study: str = "research",
        folder: Path | str = "matl-study",
        holdout: Any = None,
        byzantine: int | None = None,
        rule: str = DEFAULT_RULE,
        coordinator_address: str | None = None,
        coordinator: str | None = None,
        certificate: Path | str | None = None,
        authority: Path | str | None = None,
        operator_config: Path | str | None = None,
    ) -> None:
        """Say what federation it is; nothing is opened or sent yet.

        Args:
            node_id: this hospital, one of ``allowed_nodes`` where they are given.
            mode: what updates are to be compared with. Embedded it follows from ``holdout``, and a
                warning says so where more was asked for. At an address, a coordinator of a weaker
                mode is refused.
            private_key: PEM. Embedded: this hospital's P-256 key, which signs its updates; made in
                the folder unless given. At an address: the operator's TLS key, or its ``pkcs11:``
                URI.
            privacy: the promise of an embedded study, or the most that one at an address may
                spend. ``None``: no noise, no promise, and no limit.
            audit_logger: where ``audit_log`` writes; one in ``folder`` unless given.
            allowed_nodes: the hospitals that may take part, or a mapping of them to the number of
                their patients as it is declared, which weighs the updates that
                ``train_federated_medical_ai`` makes. Submitted gradients weigh equally: each
                carries the same noise.
            rounds: of an embedded study of submitted gradients; noise is calibrated for them.
            study: name of an embedded study.
            folder: of an embedded study, which is gone on from where it exists.
            holdout: data set of ``(image, label)``, de-identified and correctly labelled, that
                ``train_federated_medical_ai`` compares updates with (MODE1).
            byzantine: f, how many hospitals may be hostile; what the mode claims unless given.
            rule: what updates are aggregated by; see docs/aggregation.md.
            coordinator_address: host:port of a coordinator, or several with commas between them.
            coordinator: the SPIFFE id that its certificate must carry.
            certificate: the operator's certificate and its chain, PEM.
            authority: the authority of coordinators, PEM.
            operator_config: a file with an ``[operator]`` table, instead of these.

        Raises:
            ConfigurationError: an argument cannot be; the message says what to give.
        """
        self.node_id = hospital_name(node_id)
        """This hospital."""
        self.privacy = privacy
        """What was promised or is the most that may be spent."""
        self.holdout = holdout
        """What ``train_federated_medical_ai`` compares updates with."""
        self.enrolled_patients: Mapping[NodeId, int] = enrolled_patients(allowed_nodes)
        """Patients of each hospital as declared; empty where nobody said."""
        named = tuple(dict.fromkeys(hospital_name(each) for each in allowed_nodes))
        if named and self.node_id not in named:
            raise ConfigurationError(
                f"node_id={self.node_id!r} is not in allowed_nodes={list(named)}; add it"
            )
        if rounds < 1:
            raise ConfigurationError(f"rounds={rounds}: give at least 1")
        self._rule = rule
        self._folder = Path(folder).expanduser().absolute()
        self._embedded: EmbeddedFederation | None = None
        self._federation: Federation
        if coordinator_address is not None or operator_config is not None:
            from matl.connection import Flags
            from matl.sdk.live import LiveFederation

            flags = Flags(
                address=coordinator_address,
                coordinator=coordinator,
                key=None if private_key is None else str(private_key),
                certificate=None if certificate is None else Path(certificate),
                authority=None if authority is None else Path(authority),
            )
            self._federation = LiveFederation(
                None if operator_config is None else Path(operator_config),
                flags,
                mode=mode,
                privacy=privacy,
                expected_nodes=named,
            )
        else:
            from matl.sdk.embedding import EmbeddedFederation

            key = None if private_key is None else Path(private_key).expanduser()
            if key is not None and not key.is_file():
                raise ConfigurationError(
                    f"private_key: there is no file {key}; make one with `matl keygen`, or leave "
                    "private_key out and one is made in the study's folder"
                )
            self._federation = self._embedded = EmbeddedFederation(
                self._folder,
                study=study,
                nodes=named or (self.node_id,),
                private_keys={} if key is None else {self.node_id: key},
                privacy=privacy,
                has_holdout=holdout is not None,
                rounds=rounds,
                byzantine=byzantine,
                rule=rule,
            )
            if mode is not None:
                _warn_of_weaker_mode(mode, self._embedded.mode())
        self._given_logger = audit_logger
        # Guards what follows.
        self._lock = RLock()
        self._own_logger: AuditLogger | None = None

    @property
    def embedded(self) -> EmbeddedFederation:
        """The federation in this process.

        Raises:
            ConfigurationError: this client talks to daemons.
        """
        if self._embedded is None:
            raise ConfigurationError("this client talks to daemons; nothing is embedded in it")
        return self._embedded

    @property
    def is_connected(self) -> bool:
        """Whether this client talks to daemons, rather than to a federation in this process."""
        return self._embedded is None

    @property
    def mode(self) -> MATLMode:
        """What updates are compared with, in fact; at an address, what its coordinator says.

        Raises:
            OperationsError: the coordinator does not answer or refuses.
        """
        return self._federation.mode()

    @property
    def allowed_nodes(self) -> tuple[str, ...]:
        """The hospitals that may take part; at an address, those that are enrolled.

        Raises:
            BrokenPromiseError: one is enrolled that was not named at the beginning.
            OperationsError: the coordinator does not answer or refuses.
        """
        return self._federation.allowed_nodes()

    @property
    def audit_logger(self) -> AuditLogger:
        """Where ``audit_log`` writes.

        Raises:
            ConfigurationError: its folder is in use by another logger.
        """
        if self._given_logger is not None:
            return self._given_logger
        with self._lock:
            if self._own_logger is None:
                from matl.audit import AuditLogger

                self._own_logger = AuditLogger(folder=self._folder / "audit")
            return self._own_logger

    def hospital(self, name: str) -> NodeId:
        """A hospital by its name, as ``hospital_A`` or ``Hospital A`` too.

        Raises:
            ConfigurationError: it is not one of ``allowed_nodes``.
        """
        found, allowed = hospital_name(name), self.allowed_nodes
        if found not in allowed:
            raise ConfigurationError(
                f"{found} is not in allowed_nodes={list(allowed)}, and what it sends is refused; "
                "name it when you make the client"
            )
        return found

    def submit_gradient(
        self, gradient: Sequence[Any], metadata: Mapping[str, Any] | None = None
    ) -> Submission:
        """Submit a hospital's gradient of this round; opens a round where none is open.

        The gradient is clipped *as a whole* to half of ``privacy.clip_norm`` and noised before
        anything else sees it, its cost is in the hospital's ledger before that, and the update goes
        through the core's admission like any other. The SDK cannot see how the gradient came
        about, so the noise is for the worst case: all of it may be one patient's. It is many times
        what ``train_federated_medical_ai`` adds, which clips each patient's; see docs/sdk.md.

        Args:
            gradient: one tensor or array for each parameter, of the loss (not of an update).
            metadata: ``hospital`` says whose it is, this client's ``node_id`` unless given. Other
                keys, ``num_samples`` among them, are for the caller: what a hospital says of
                itself gives it no weight.

        Raises:
            RawGradientError: this client talks to daemons.
            ConfigurationError: an unknown hospital, or another shape than the study's.
            InvalidInputError: a value is not finite; nothing was charged or sent.
            AlreadySubmittedError: the round has this hospital's gradient.
            BudgetExhaustedError: its ledger allows no further round.
            StudyCompleteError, RoundHeldError: there is no round.
        """
        node = str((metadata or {}).get("hospital", self.node_id))
        if self._embedded is None:
            return self._federation.submit(hospital_name(node), gradient)
        return self._embedded.submit(self.hospital(node), gradient)

    def aggregate(
        self,
        gradients: Sequence[Sequence[Any]],
        trust_scores: Sequence[float] | None = None,
        method: str = METHOD,
    ) -> list[Any]:
        """Close the round and return its aggregate, as a gradient.

        What is aggregated is what was *submitted*: clipped, noised, admitted. Weights follow from
        the trust that the core has found. Arguments decide nothing about either.

        Args:
            gradients: as submitted; tells only how many there are and of which kind and device
                the result is to be.
            trust_scores: as ``submit_gradient`` told them; others are not used, with a warning.
            method: the tutorial's name, or that of the study's rule.

        Returns:
            One tensor or array for each parameter, to be descended along.

        Raises:
            RawGradientError: this client talks to daemons, which aggregate by themselves.
            ConfigurationError: an unknown method, or nothing was submitted.
            TooFewUpdatesError: fewer updates were admitted than a round takes.
            RoundHeldError: the core made no model of them; the last one stands.
        """
        if not self.is_connected and method not in (METHOD, self._rule):
            raise ConfigurationError(
                f"method={method!r}: this study aggregates by {METHOD!r}, which is rule="
                f"{self._rule!r}; another rule is an argument of MATLClient"
            )
        return self._federation.aggregate(gradients, trust_scores)

    def audit_log(self, event: str, **facts: Any) -> int:
        """Log an event in the audit logger; returns its number once it is durable.

        Args:
            event: what happened, in a word.
            **facts: as for ``AuditLogger.audit_log``; what is not finite is logged as its name.

        Raises:
            InvalidInputError, StoreError: as for ``AuditLogger.audit_log``.
        """
        return self.audit_logger.audit_log(event, **loggable(facts))

    def audit_checkpoint(
        self, round_num: int, accuracy: float, history: Mapping[str, Any] | None = None
    ) -> str:
        """Log the end of a round, and sign the audit log as it is now.

        Args:
            round_num: the round, as the caller counts.
            accuracy: of its model, in per cent; what ``get_accuracy`` tells where there is no
                holdout set.
            history: of lists, each one's last item is logged; those before are in the checkpoints
                before.

        Returns:
            The checkpoint, a C2SP signed note; give it to somebody who keeps it.

        Raises:
            InvalidInputError, StoreError: as for ``AuditLogger.audit_log``.
        """
        self._federation.note_accuracy(float(accuracy))
        newest = {
            name: each[-1] if isinstance(each, list) and each else each
            for name, each in (history or {}).items()
        }
        return self.audit_logger.audit_checkpoint(
            round_num, loggable(float(accuracy)), loggable(newest)
        )

    def history(self) -> TutorialHistory:
        """Every released round, as ``train_federated_medical_ai`` returns it.

        Raises:
            ConfigurationError: no embedded study has begun.
            OperationsError: the coordinator does not answer or refuses.
        """
        return self._federation.history()

    def get_active_nodes(self) -> int:
        """How many hospitals take part: in the newest embedded round, or at a coordinator now."""
        return self._federation.active_nodes()

    def get_current_round(self) -> int:
        """Number of the newest round, from 1; 0 before the first."""
        return self._federation.current_round()

    def get_accuracy(self) -> float:
        """Accuracy of the newest released model in per cent; NaN where none was measured."""
        if self.get_current_round() == 0:
            return math.nan
        return next(reversed(self.history()["accuracy"]), math.nan)

    def get_trust_scores(self) -> dict[str, float]:
        """Trust of every hospital, 0 to 1; the initial one before the first round."""
        return self._federation.trust_scores()

    def get_trust_scores_df(self) -> pd.Series[float]:
        """Trust by hospital as a pandas Series, whose ``items`` are hospitals and scores.

        The tutorial shows it as a table and goes over ``items``; a DataFrame's would be columns.
        """
        import pandas as pd

        return pd.Series(self.get_trust_scores(), name="trust", dtype=float)

    def get_remaining_privacy_budget(self, hospital: str | None = None) -> float:
        """ε left to a hospital's patients, or, unless one is named, to those who have least.

        Not linear in rounds: at half of the rounds more than half of ε is spent. Infinite without
        privacy. At an address, of hospitals of whom only their own ledger knows nothing is told,
        and NaN where that is all of them.
        """
        left = self._federation.epsilon_left()
        if hospital is not None:
            return left.get(self.hospital(hospital), math.nan)
        return min(left.values(), default=math.nan)

    def get_budget_fraction(self) -> float:
        """Share of the budget's Σ 1/σ² that is spent, 0 to 1, of the hospital that spent most."""
        return self._federation.budget_fraction()

    def get_recent_events(self, limit: int = 10) -> list[dict[str, Any]]:
        """The newest entries of the study's own log, the newest first.

        The coordinator writes it: admissions, scores with every component, releases. What
        ``audit_log`` writes is in ``audit_logger``.
        """
        return self._federation.recent_events(limit)

    @property
    def claim(self) -> str:
        """What the federation withstands, and given what; empty before an embedded study."""
        return self._federation.claim()

    @property
    def encryption_enabled(self) -> bool:
        """Whether no log has its newest entry in the clear; looked up.

        True of logs that hold nothing yet; ``verify_hipaa_compliance`` tells those apart.

        Images, models and ledgers are files: whether the disk under them is encrypted, no program
        can tell from here.
        """
        return False not in (self.study_log_is_encrypted(), self.audit_logger.is_encrypted())

    def study_log_is_encrypted(self) -> bool | None:
        """Whether the study's own log has its newest entry as ciphertext; ``None`` without any.

        Raises:
            OperationsError: the coordinator does not answer or refuses.
        """
        return self._federation.log_is_encrypted()

    @property
    def use_tls(self) -> bool:
        """Whether there is a mutual TLS 1.3 connection to a coordinator; tried, not remembered.

        False embedded: there is no connection at all, and nothing to deploy.
        """
        return self._federation.has_tls()

    def resume(self, reason: str) -> None:
        """Open rounds again after one was held; ``reason`` is logged.

        Raises:
            MatlError: the study is not paused, or the coordinator refuses.
        """
        self._federation.resume(reason)

    def watch(self, rounds: int, *, report: Callable[[str], object] = print) -> TutorialHistory:
        """Wait until the daemons have released so many more rounds, and return the history.

        Raises:
            ConfigurationError: this federation is embedded, and nothing happens by itself.
            MatlError: the study is paused or complete before.
        """
        return self._federation.watch(rounds, report=report)

    def close(self) -> None:
        """Let go of the study's folder, and of the logger where it was not given."""
        self._federation.close()
        with self._lock:
            if self._own_logger is not None:
                self._own_logger.close()
                self._own_logger = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _warn_of_weaker_mode(wanted: MATLMode, effective: MATLMode) -> None:
    """Say so where less can be had than was asked for."""
    if wanted.strength <= effective.strength:
        return
    remedies = []
    if effective is MATLMode.MODE0:
        remedies.append("holdout= for MODE1")
    if wanted is MATLMode.MODE2:
        remedies.append("coordinator_address= of an attested coordinator for MODE2")
    warnings.warn(
        f"{wanted.value.upper()} was asked for, and a federation embedded in one process is "
        f"{effective.value.upper()}; give {', and '.join(remedies)}",
        MatlWarning,
        stacklevel=3,
    )
