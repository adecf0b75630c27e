"""Attacks on what a hospital releases, through the code that releases it.

Each runs ``train_head`` on records of the attacker's own making and looks at the update
alone. The attacker is the strongest the promise covers: a coordinator that chooses the base
model, knows every record but the one in question, and knows that one too.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matl_common.privacy.audit import audit_epsilon, correct_guesses
from matl_common.privacy.budget import calibrate_noise
from matl_common.privacy.noise import Float64Array
from matl_common.vision.linear_head import LinearHead, Projection, initial_head
from matl_participant.training.head import HeadTraining, train_head

DELTA = 1e-5
CLAIMED_EPSILON = 1.0
CONFIDENCE = 0.95
# Below the norm of every canary's gradient, so that each is clipped to exactly this.
CLIP = 0.6
# So low that the model stays where the attacker put it, and every step sees the same gradients.
_RATE = 1e-6
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Mechanism:
    """What the hospital does, as opposed to what it claims."""

    noise_multiplier: float
    steps: int
    rounds: int = 1


def claimed(*, steps: int = 4, times_noise: float = 1.0) -> Mechanism:
    """One round at the claimed ε, with its noise multiplied by a planted fault."""
    return Mechanism(calibrate_noise(CLAIMED_EPSILON, DELTA, steps=steps) * times_noise, steps)


FAULTS: dict[str, Mechanism] = {
    "none": claimed(),
    "noise halved": claimed(times_noise=0.5),
    "noise quartered": claimed(times_noise=0.25),
    "budget reset each round": Mechanism(
        calibrate_noise(CLAIMED_EPSILON, DELTA, steps=1), steps=1, rounds=50
    ),
    "no noise": Mechanism(0.0, steps=4),
}


def identity_head(dimensions: int, classes: int) -> LinearHead:
    """A zero head that sees its input as it is, but for its length."""
    components = np.eye(dimensions, dtype=np.float32)
    return initial_head(
        Projection(np.zeros(dimensions, dtype=np.float32), components), classes=classes
    )


def gradient_sum(
    head: LinearHead, features: NDArray[np.floating], labels: Labels, mechanism: Mechanism
) -> Float64Array:
    """What the update says of the summed gradients, ``(classes, dimensions + 1)``."""
    training = HeadTraining(
        steps=mechanism.steps,
        learning_rate=_RATE,
        noise_multiplier=mechanism.noise_multiplier,
        max_grad_norm=CLIP,
        declared_patients=1,
    )
    total = np.zeros(head.weight.size + head.bias.size)
    for _ in range(mechanism.rounds):
        total += train_head(head, features, labels, training=training)
    weight, bias = np.split(-total / _RATE, [head.weight.size])
    return np.column_stack([weight.reshape(head.weight.shape), bias])


@dataclass(frozen=True, slots=True)
class Audit:
    """What the canaries showed."""

    canaries: int
    guesses: int
    correct: int
    epsilon_lower_bound: float


def canary_audit(
    mechanism: Mechanism,
    *,
    classes: int = 100,
    dimensions: int = 200,
    guessed_share: float = 0.2,
) -> Audit:
    """One-run audit (Steinke, Nasr & Jagielski, arXiv 2305.08846) with this many canaries.

    A canary is one direction with one class: at the zero head its gradients are orthogonal
    to those of other directions and nearly so to those of other classes. Half of them, by
    coin, are the hospital's data.
    """
    canaries = classes * dimensions
    included = np.random.default_rng().random(canaries) < 0.5
    chosen = np.flatnonzero(included)
    directions, labels = np.divmod(chosen, classes)
    features = np.eye(dimensions)[directions]
    released = gradient_sum(identity_head(dimensions, classes), features, labels, mechanism)
    # A gradient of class c along a direction is (1/K everywhere, less 1 at c).
    along = released[:, :dimensions].T
    scores = (along.mean(axis=1, keepdims=True) - along).ravel()
    guesses = int(canaries * guessed_share) // 2 * 2
    correct = correct_guesses(scores, included, guesses=guesses)
    bound = audit_epsilon(
        canaries=canaries, guesses=guesses, correct=correct, delta=DELTA, confidence=CONFIDENCE
    )
    return Audit(canaries, guesses, correct, bound)


def target_scores(mechanism: Mechanism, *, trials: int) -> tuple[Float64Array, Float64Array]:
    """Scores of one target patient over many releases: in the data, and not.

    The score is the release along the target's gradient, the best there is for a Gaussian.
    """
    rng = np.random.default_rng()
    head = identity_head(8, 5)
    features, labels = rng.normal(size=(20, 8)), rng.integers(0, 5, 20)
    alone = gradient_sum(head, features[:1], labels[:1], Mechanism(0.0, 1)).ravel()
    direction = alone / np.linalg.norm(alone)

    def scores(rows: slice) -> Float64Array:
        releases = (
            gradient_sum(head, features[rows], labels[rows], mechanism) for _ in range(trials)
        )
        return np.array([released.ravel() @ direction for released in releases])

    return scores(slice(None)), scores(slice(1, None))


def invert(gradient: Float64Array) -> Float64Array:
    """The input of a linear layer from its gradients: a row of the weight's over the bias's."""
    row = int(np.argmax(np.abs(gradient[:, -1])))
    reconstructed: Float64Array = gradient[row, :-1] / gradient[row, -1]
    return reconstructed


def cosine(a: Float64Array, b: Float64Array) -> float:
    """Cosine of the angle between two vectors."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
