"""A study that daemons run, as an operator's connection shows it.

Asks and orders; computes nothing that a coordinator does. A connection is opened for each
question, so that nothing is held by a client that somebody forgot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from matl.connection import Flags, read_connection
from matl.history import TutorialHistory, left_of
from matl.operations import OperationsClient, Participant, Status, connect_operator
from matl.privacy import DifferentialPrivacy
from matl.sdk.federation import RawGradientError
from matl.sdk.told import told_by_coordinator
from matl_common.errors import ConfigurationError, MatlError
from matl_common.identity.certificates import parse_spiffe_id
from matl_common.identity.tls import tls_place
from matl_common.ids import NodeId
from matl_common.modes import SIMULATED, MATLMode
from matl_common.tlog.entry import parse_entry

POLL_SECONDS = 1.0


class BrokenPromiseError(ConfigurationError):
    """The study does not keep what the client was made to rely on."""


class LiveFederation:
    """One coordinator, and what a client was told to expect of its study."""

    def __init__(
        self,
        config: Path | None,
        flags: Flags,
        *,
        mode: MATLMode | None,
        privacy: DifferentialPrivacy | None,
        expected_nodes: tuple[str, ...],
    ) -> None:
        """Read where the coordinator is; nothing is connected yet.

        Raises:
            ConfigurationError: an argument or file is missing or cannot be.
        """
        self._place = read_connection(config, flags)
        self._files = tls_place(self._place.key, self._place.certificate, self._place.authority)
        self._mode = mode
        self._privacy = privacy
        self._expected = expected_nodes

    @contextmanager
    def connected(self) -> Iterator[OperationsClient]:
        """A connection over mutual TLS 1.3 to this coordinator and no other."""
        name = parse_spiffe_id(self._place.coordinator)
        with connect_operator(self._place.address, self._files, name) as client:
            yield client

    def status(self) -> Status:
        """The study at this moment, after a look that it is the one that was asked for.

        Raises:
            BrokenPromiseError: it is of a weaker mode.
            CoordinatorUnavailableError, OperationsError: no answer, or a refusal.
        """
        with self.connected() as client:
            found = client.status()
        if self._mode is not None and mode_of(found.mode).strength < self._mode.strength:
            raise BrokenPromiseError(
                f"mode={self._mode.value} was asked for, and the coordinator is of mode "
                f"{found.mode}; ask its operator, or ask for less"
            )
        return found

    def participants(self) -> tuple[Participant, ...]:
        """Every enrolled hospital, after a look that they are those that were asked for.

        Raises:
            BrokenPromiseError: one is not in ``allowed_nodes``, or may spend more than ``privacy``
                says.
            CoordinatorUnavailableError, OperationsError: no answer, or a refusal.
        """
        with self.connected() as client:
            found = client.participants()
        strangers = sorted({each.node_id for each in found} - set(self._expected))
        if self._expected and strangers:
            raise BrokenPromiseError(
                f"{', '.join(strangers)} is enrolled and not in allowed_nodes; ask the "
                "coordinator's operator, or name it"
            )
        if self._privacy is not None:
            check_promise(self._privacy, found)
        return found

    def mode(self) -> MATLMode:
        """The coordinator's own word; see ``mode_of``."""
        return mode_of(self.status().mode)

    def claim(self) -> str:
        """As ``Federation``."""
        return self.status().claim

    def allowed_nodes(self) -> tuple[str, ...]:
        """Those that are enrolled."""
        return tuple(each.node_id for each in self.participants())

    def active_nodes(self) -> int:
        """Those that were heard from lately."""
        return self.status().active_participants

    def current_round(self) -> int:
        """As ``Federation``."""
        current = self.status().current_round
        return 0 if current is None else current.round_id

    def trust_scores(self) -> dict[str, float]:
        """As ``Federation``."""
        return {each.node_id: each.trust for each in self.participants()}

    def epsilon_left(self) -> dict[str, float]:
        """As admitted updates declared; hospitals of whom only their ledger knows are left out."""
        return {
            each.node_id: left_of(each.epsilon_budget, each.epsilon_spent)
            for each in self.participants()
            if each.epsilon_spent is not None
        }

    def budget_fraction(self) -> float:
        """As admitted updates declared."""
        return max((each.budget_fraction for each in self.participants()), default=0.0)

    def has_tls(self) -> bool:
        """Whether the coordinator answers; it does so over mutual TLS 1.3 or not at all."""
        try:
            # Not ``self.status``: a study that breaks a promise says so over TLS.
            with self.connected() as client:
                client.status()
        except MatlError:
            return False
        return True

    def submit(self, node: NodeId, gradient: Sequence[Any]) -> NoReturn:
        """Refuse: see the message."""
        raise RawGradientError(
            "a coordinator takes what a hospital's daemon has trained, clipped patient by patient "
            "and noised, and no gradient from elsewhere: start matl-participant beside the "
            "hospital's images, or leave coordinator_address out to try this embedded"
        )

    def aggregate(
        self, gradients: Sequence[Sequence[Any]], trust_scores: Sequence[float] | None
    ) -> NoReturn:
        """Refuse: see the message."""
        raise RawGradientError(
            "the coordinator aggregates by itself when its hospitals have sent; ask history(), or "
            "train_federated_medical_ai((), client), which waits for rounds"
        )

    def note_accuracy(self, accuracy: float) -> None:
        """Nothing to keep: the coordinator evaluates by itself."""

    def close(self) -> None:
        """Nothing is held."""

    def history(self) -> TutorialHistory:
        """Every released round so far."""
        participants = self.participants()
        with self.connected() as client:
            rounds = client.rounds()
        return told_by_coordinator(rounds, participants)

    def recent_events(self, limit: int) -> list[dict[str, Any]]:
        """What the newest entries of the coordinator's log say, the newest first."""
        with self.connected() as client:
            return [
                dict(parse_entry(each)) for each in reversed(client.newest_log_entries(limit=limit))
            ]

    def log_is_encrypted(self) -> bool | None:
        """As ``Federation``, of the newest entry as its reader gets it."""
        with self.connected() as client:
            entries = client.audit.read(limit=1).entries
        # An entry whose key was erased has no plaintext to look for.
        found = [each.entry not in each.payload for each in entries if each.entry]
        return all(found) if found else None

    def resume(self, reason: str) -> None:
        """Open rounds again."""
        with self.connected() as client:
            client.resume(reason)

    def watch(self, rounds: int, *, report: Callable[[str], object]) -> TutorialHistory:
        """Wait until so many more rounds are released; see ``train_federated_medical_ai``.

        Raises:
            BrokenPromiseError: the study is not what was asked for; told before any waiting.
            MatlError: the study is paused or complete before.
        """
        self.participants()
        with self.connected() as client:
            before = client.status().rounds_released
        told = before
        while True:
            status = self.status()
            if status.rounds_released > told:
                told = status.rounds_released
                report(f"Round {told} of {status.rounds_planned} released")
            if told >= before + rounds:
                return self.history()
            if status.study_complete:
                raise MatlError(
                    f"the study ended after {told} rounds, {before + rounds - told} before those "
                    "that were waited for; ask history() for it"
                )
            if status.paused:
                raise MatlError(
                    f"the study is paused after {told} rounds; see `matl status` for the reason, "
                    "then call resume(reason)"
                )
            time.sleep(POLL_SECONDS)


def mode_of(name: str) -> MATLMode:
    """A coordinator's mode by its own word.

    SIMULATED evidence proves nothing, and what is left of MODE2 without it is MODE1.

    Raises:
        BrokenPromiseError: there is no such mode.
    """
    if name == f"{MATLMode.MODE2}{SIMULATED}":
        return MATLMode.MODE1
    try:
        return MATLMode(name)
    except ValueError:
        raise BrokenPromiseError(
            f"the coordinator is of mode {name or 'unknown'}, which this version does not know; "
            "install its version of matl"
        ) from None


def check_promise(privacy: DifferentialPrivacy, participants: Iterable[Participant]) -> None:
    """Look that no hospital may spend more than was asked for.

    Raises:
        BrokenPromiseError: one may, in ε or in δ.
    """
    for each in participants:
        for name, asked, told in (
            ("epsilon", privacy.epsilon, each.epsilon_budget),
            ("delta", privacy.delta, each.target_delta),
        ):
            if told > asked:
                raise BrokenPromiseError(
                    f"{name}={asked:g} was asked for, and {each.node_id} may spend {told:g} in "
                    "this study"
                )
