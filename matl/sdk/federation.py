"""What a client asks of a federation, whichever it is, and the words that it uses for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from matl_common.errors import ConfigurationError, MatlError
from matl_common.ids import NodeId, parse_node_id
from matl_common.modes import MATLMode

if TYPE_CHECKING:
    from matl.history import TutorialHistory


class MatlWarning(UserWarning):
    """Something was asked for that this client does otherwise, or cannot promise."""


class RawGradientError(MatlError):
    """A raw gradient cannot be sent to a coordinator."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What became of a submitted gradient.

    Attributes:
        hospital: whose it is.
        round: its number, from 1.
        trust_score: 0 to 1, with which the hospital enters the round. What this update does to it
            is known once the round is aggregated: trust follows from all updates together.
        state: ``trusted``, ``marginal`` or ``quarantined``, as of then.
        privacy_budget: ε left to the hospital's patients; infinite without privacy.
        budget_fraction: of Σ 1/σ² that is spent; linear in rounds, as ε is not.
        rounds_left: that the ledger still allows.
        admitted: whether the update counts.
        reason: why not, where it does not.
        log_index: of the entry in the study's log that admits it.
    """

    hospital: str
    round: int
    trust_score: float
    state: str
    privacy_budget: float
    budget_fraction: float
    rounds_left: int
    admitted: bool
    reason: str
    log_index: int | None


class Federation(Protocol):
    """A study with its hospitals: embedded in this process, or at an address."""

    def mode(self) -> MATLMode:
        """What updates are compared with."""

    def claim(self) -> str:
        """What it withstands, and given what; empty where no study has begun."""

    def allowed_nodes(self) -> tuple[str, ...]:
        """The hospitals that may take part."""

    def active_nodes(self) -> int:
        """How many do."""

    def current_round(self) -> int:
        """The newest round's number; 0 before the first."""

    def trust_scores(self) -> dict[str, float]:
        """Trust of every hospital."""

    def epsilon_left(self) -> dict[str, float]:
        """ε left to the patients of each hospital of whom it is known."""

    def budget_fraction(self) -> float:
        """Share of Σ 1/σ² that is spent, of the hospital that spent most."""

    def history(self) -> TutorialHistory:
        """Every released round."""

    def recent_events(self, limit: int) -> list[dict[str, Any]]:
        """The newest entries of the study's log, the newest first."""

    def log_is_encrypted(self) -> bool | None:
        """Whether the newest of them is stored as ciphertext; looked up. ``None`` without any."""

    def has_tls(self) -> bool:
        """Whether there is a mutual TLS connection that works; tried."""

    def resume(self, reason: str) -> None:
        """Open rounds again."""

    def submit(self, node: NodeId, gradient: Sequence[Any]) -> Submission:
        """Take a hospital's gradient."""

    def aggregate(
        self, gradients: Sequence[Sequence[Any]], trust_scores: Sequence[float] | None
    ) -> list[Any]:
        """Close the round; its aggregate as a gradient."""

    def note_accuracy(self, accuracy: float) -> None:
        """Keep what was measured of the newest released model, in per cent."""

    def watch(self, rounds: int, *, report: Callable[[str], object]) -> TutorialHistory:
        """Wait for rounds that come by themselves."""

    def close(self) -> None:
        """Let go of what is held."""


def hospital_name(text: str) -> NodeId:
    """A node's name from what people write: ``Hospital A`` and ``hospital_A`` are ``hospital_a``.

    Raises:
        InvalidInputError: it is no name even so.
    """
    return parse_node_id(text.strip().lower().replace(" ", "_"))


def enrolled_patients(allowed_nodes: Sequence[str] | Mapping[str, int]) -> dict[NodeId, int]:
    """Patients by hospital as declared; empty where only names are given.

    Raises:
        ConfigurationError: a hospital has none.
    """
    if not isinstance(allowed_nodes, Mapping):
        return {}
    found = {hospital_name(name): patients for name, patients in allowed_nodes.items()}
    if any(each < 1 for each in found.values()):
        raise ConfigurationError("allowed_nodes: every hospital has 1 patient or more")
    return found


def loggable(fact: Any) -> Any:
    """A fact with the names of numbers that JSON has not."""
    match fact:
        case float() if not math.isfinite(fact):
            return str(fact)
        case Mapping():
            return {str(name): loggable(each) for name, each in fact.items()}
        case list() | tuple():
            return [loggable(each) for each in fact]
    return fact
