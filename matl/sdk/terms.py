"""What an embedded study does to data, as values: its mechanism, its length, its plan.

Two mechanisms, and a study has one of them. ``PATIENTS``: the SDK computes the gradients, clips
each patient's and noises the sum. ``SUBMISSIONS``: the caller brings a gradient that the SDK
cannot look into, which is clipped and noised as a whole. Nothing here reads or writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from matl.privacy import LARGEST_CLIP_NORM, DifferentialPrivacy
from matl_common.errors import ConfigurationError
from matl_common.ids import NodeId
from matl_common.modes import MATLMode
from matl_common.privacy.mechanisms import Adjacency, PrivacyUnit
from matl_common.protocol import PrivacyTerms, Recipe, StudyPlan, TrainingPlan
from matl_common.tensors import ModelSchema

FEDERATION = "embedded"
COORDINATOR = NodeId("embedded-coordinator")
LONGEST_SECONDS = 366.0 * 86_400.0
"""A notebook is in no hurry: no round of an embedded study passes for want of time."""
CALLERS_NETWORK = "the caller's network"


class Mechanism(StrEnum):
    """What is clipped and noised."""

    PATIENTS = "patients"
    """The gradient of each patient, clipped to C; so one patient moves the sum by at most C."""
    SUBMISSIONS = "submissions"
    """A hospital's whole submission, clipped to C/2. Two such vectors are at most C apart, so that
    no patient moves it by more than C, whatever the caller computed."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is fixed when an embedded study begins.

    Attributes:
        study: its name.
        mechanism: what is clipped and noised.
        hospitals: patients by hospital, which weigh its updates; 1 each for submissions.
        rounds: at most, over the whole study; noise is calibrated for them.
        steps_per_round: noised sums in each.
        learning_rate: on the mean gradient; 1 for submissions.
        privacy: the promise; ``None`` for none, and no noise.
        byzantine: f, how many hospitals may be hostile.
        rule: what updates are aggregated by.
        mode: what updates are compared with.
    """

    study: str
    mechanism: Mechanism
    hospitals: Mapping[NodeId, int]
    rounds: int
    steps_per_round: int
    learning_rate: float
    privacy: DifferentialPrivacy | None
    byzantine: int
    rule: str
    mode: MATLMode

    @property
    def max_steps(self) -> int:
        """Over the whole study."""
        return self.rounds * self.steps_per_round

    @property
    def clip_norm(self) -> float:
        """C; without privacy so large that it clips nothing."""
        return LARGEST_CLIP_NORM if self.privacy is None else self.privacy.clip_norm

    @property
    def noise_multiplier(self) -> float:
        """Noise on a clipped sum, in units of C; 0 without privacy."""
        if self.privacy is None:
            return 0.0
        return self.privacy.noise_multiplier(steps=self.max_steps)


def check_terms(terms: Terms) -> None:
    """Refuse numbers that cannot be, in the words of the caller's arguments.

    Raises:
        ConfigurationError: one cannot.
    """
    for name, number in (
        ("rounds", terms.rounds),
        ("local_epochs", terms.steps_per_round),
        ("the number of hospitals", len(terms.hospitals)),
    ):
        if number < 1:
            raise ConfigurationError(f"{name} is {number}; give at least 1")
    if not 0 <= terms.byzantine < len(terms.hospitals):
        raise ConfigurationError(
            f"byzantine={terms.byzantine} of {len(terms.hospitals)} hospitals; give 0 or more, and "
            "fewer than there are"
        )


def planned(terms: Terms, schema: ModelSchema) -> StudyPlan:
    """The study's plan, as every hospital's ledger refers to it."""
    privacy = terms.privacy
    return StudyPlan(
        FEDERATION,
        terms.study,
        schema,
        TrainingPlan(
            recipe=Recipe.FULL,
            backbone=CALLERS_NETWORK,
            backbone_digest=None,
            image_size=224,
            views=1,
            steps_per_round=terms.steps_per_round,
            learning_rate=terms.learning_rate,
            batch_size=1,
        ),
        PrivacyTerms(
            unit=PrivacyUnit.PATIENT.value,
            adjacency=Adjacency.ADD_OR_REMOVE_ONE.value,
            target_epsilon=math.inf if privacy is None else privacy.epsilon,
            target_delta=1e-5 if privacy is None else privacy.delta,
            noise_multiplier=terms.noise_multiplier,
            max_grad_norm=terms.clip_norm,
            # Every patient at every step: accounted for exactly (``matl_common.privacy.budget``).
            sample_rate=1.0,
            max_steps=terms.max_steps,
        ),
    )


def coordinator_table(terms: Terms, folder: Path) -> dict[str, Any]:
    """The configuration of the embedded coordinator, as its TOML file would have it."""
    key = str(folder / "keys" / f"{COORDINATOR}.pem")
    table: dict[str, Any] = {
        "state_dir": str(folder),
        "federation": {
            "id": FEDERATION,
            "study": terms.study,
            "node_id": str(COORDINATOR),
            "allowlist": str(folder / "allowlist.toml"),
        },
        "listen": {"address": "127.0.0.1:0", "metrics": ""},
        # Nothing listens, so there is no TLS to have keys for; rounds are signed all the same.
        "identity": {
            "tls_key": key,
            "tls_certificate": key,
            "participant_authority": key,
            "signing_key": key,
            "log_key": str(folder / "keys" / "log.pem"),
        },
        "study": {
            "recipe": Recipe.FULL.value,
            "backbone": CALLERS_NETWORK,
            "rounds": terms.rounds,
            "spare_rounds": 0,
            "steps_per_round": terms.steps_per_round,
            "learning_rate": terms.learning_rate,
            "epsilon": math.inf if terms.privacy is None else terms.privacy.epsilon,
            "max_grad_norm": terms.clip_norm,
            "send_after_seconds": 0.0,
        },
        "rounds": {
            "interval_seconds": 0.0,
            "collect_seconds": LONGEST_SECONDS,
            "present_seconds": LONGEST_SECONDS,
            "minimum_participants": 1,
            "maximum_participants": len(terms.hospitals),
            "quorum": min(3, len(terms.hospitals)),
            "rule": terms.rule,
            "byzantine": terms.byzantine,
        },
        # One process: what failed once fails again.
        "worker": {"attempts": 1},
    }
    if terms.mode is not MATLMode.MODE0:
        table["holdout"] = {"images": str(folder)}
    return table
