"""What the demonstration studies: every parameter in one place, as values.

What is fixed here was chosen on semi-synthetic images of another seed (11), by accuracy and
by how surely the mislabelling hospital is found, and holds for such images only.
Nothing here reads, writes or runs anything.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from matl.demo.hospitals import CARELESS, DEMO_PATIENTS, HospitalSpec, Study, five_hospitals
from matl_common.errors import ConfigurationError
from matl_common.ids import FederationId, NodeId

FEDERATION: Final = FederationId("dr-study")
STUDY_ID: Final = "retinopathy"
DATASET: Final = "retina"
COORDINATOR: Final = NodeId("coordinator")
OPERATOR: Final = NodeId("operator")
SUSPECT: Final = NodeId("hospital_e")
"""Careless in the ordinary demonstration, hostile under an attack."""

IMAGES_NOTE: Final = "semi-synthetic images"
CLINICAL_THRESHOLD: Final = 0.92
"""The tutorial's; whether it means anything in a clinic is not for a demonstration to say."""


class Attack(StrEnum):
    """What hospital E does to its updates."""

    NONE = "none"
    """Nothing: it trains honestly, on labels that are all wrong."""
    SIGN_FLIP = "sign-flip"
    """Minus five times an honest update, trained without noise, within the norm limit."""
    NOISE = "noise"
    """Random numbers a hundred times as long as an honest update, within the norm limit."""
    SCALING = "scaling"
    """An update towards wrong labels, a hundred times too long."""
    NAN = "nan"
    """Not a number, everywhere."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the head is trained; the same for every hospital and for the reference arms.

    Attributes:
        backbone: whose weights ship in a package, so that nothing is downloaded.
        dimensions: of the public projection.
        whitening: of the public projection, from 0 to 1.
        steps_per_round: full-batch steps of a hospital in a round.
        learning_rate: on the mean gradient.
        max_grad_norm: at 1 nothing is clipped.
        delta: of (ε, δ).
        spare_rounds: rounds that the noise is calibrated for beyond the planned ones, so that
            an attempt lost to a crash does not end a hospital's part in the study.
        image_size: pixels a side.
        views: deterministic views that a patient's features are averaged over.
        averaging: which rounds' models are averaged in what is released. With steps as short as
            these the mean would lag behind more than it takes noise out.
        send_after_seconds: longer than any hospital of the demonstration trains.
    """

    backbone: str = "efficientnet_lite0"
    dimensions: int = 32
    whitening: float = 0.25
    steps_per_round: int = 4
    learning_rate: float = 8.0
    max_grad_norm: float = 1.0
    delta: float = 1e-5
    spare_rounds: int = 1
    image_size: int = 224
    views: int = 2
    averaging: str = "none"
    send_after_seconds: float = 3.0


RECIPE: Final = Recipe()


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line may change."""

    epsilon: float = 1.0
    attack: Attack = Attack.NONE
    patients: int = DEMO_PATIENTS
    rounds: int = 6
    seed: int = 7

    def __post_init__(self) -> None:
        if not self.epsilon > 0.0:
            raise ConfigurationError(
                f"epsilon is {self.epsilon}: give a number above 0, or inf for no privacy"
            )
        if self.rounds < 1:
            raise ConfigurationError(f"rounds is {self.rounds}: give at least 1")

    @property
    def is_private(self) -> bool:
        return math.isfinite(self.epsilon)

    @property
    def hospitals(self) -> tuple[HospitalSpec, ...]:
        """Hospitals A to E; E's labels are wrong.

        Raises:
            ConfigurationError: too few patients for five hospitals.
        """
        return five_hospitals(self.patients, careless=CARELESS)

    @property
    def images(self) -> Study:
        """Every set of photographs the demonstration needs.

        Raises:
            ConfigurationError: as ``hospitals``.
        """
        return Study(self.seed, self.hospitals)

    @property
    def suspect_trains_on_true_labels(self) -> bool:
        """An attacker that knows the truth does more harm than one that is confused."""
        return self.attack in {Attack.SIGN_FLIP, Attack.NOISE, Attack.NAN}


def declared_patients(spec: HospitalSpec) -> int:
    """The hospital's size as it is enrolled: rounded to tens, because it is public."""
    return max(10, round(spec.patients, -1))


def display_name(node_id: str) -> str:
    """``hospital_a`` as people read it."""
    return node_id.replace("_", " ").title()
