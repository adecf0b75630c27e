"""Attacks made for a coordinator that judges by direction, by label mix or by a root set.

Nothing here breaks a rule of the protocol: every row looks like an update.
"""

from __future__ import annotations

import numpy as np

from matl.attacks.attack import AttackError, Honest, Knowledge, Rows, Vector, needed, unit


def held_cosine(honest: Honest, draws: np.random.Generator, *, cosine: float) -> Rows:
    """Of the honest length, at this cosine to ``μ``, the rest against ``s`` where it is not ``μ``.

    Raises:
        AttackError: the cosine is not in [−1, 1], or the honest updates are all alike.
    """
    if not -1.0 <= cosine <= 1.0:
        raise AttackError(f"cosine is {cosine}; give one from −1 to 1")
    towards = unit(honest.mean)
    aside = unit(_without(honest.deviation, towards))
    if not aside.any():
        raise AttackError("the honest updates are all alike; there is no direction to hide in")
    row = cosine * towards - np.sqrt(1.0 - cosine**2) * aside
    return honest.repeated(_honest_length(honest) * row)


def leaked_root(honest: Honest, draws: np.random.Generator, *, passes: float = 1.0) -> Rows:
    """The update that does most harm among those that pass the coordinator's projection.

    ``min ⟨x, μ⟩`` over ``⟨x, r⟩/‖r‖ ≥ passes · median_j ⟨x_j, r⟩/‖r‖`` and ``‖x‖`` the honest
    length. The constraint holds with equality, and the rest goes against what ``μ`` has
    beside ``r``.

    Raises:
        AttackError: ``Honest.root`` is absent.
    """
    reference, length = unit(needed(honest, Knowledge.ROOT)), _honest_length(honest)
    floor = passes * float(np.median(honest.updates @ reference))
    along = float(np.clip(floor, -length, length))
    aside = unit(_without(honest.mean, reference))
    return honest.repeated(along * reference - np.sqrt(length**2 - along**2) * aside)


def within_classes(honest: Honest, draws: np.random.Generator) -> Rows:
    """Each attacker's own update inside the span of the classes' gradients, harm outside of it.

    A coordinator whose holdout set has these classes sees the part inside: the projection on its
    gradient, at whichever of these models, and the profile by classes are those of an honest
    hospital. The rest of the honest length goes against what ``μ`` has outside. Needs the holdout
    set's distribution, of which the attackers' own patients are a sample, and not the set.

    Raises:
        AttackError: ``Honest.class_gradients`` is absent.
    """
    return _within(needed(honest, Knowledge.CLASSES), honest)


def within_training(honest: Honest, draws: np.random.Generator) -> Rows:
    """``within_classes``, by attackers who have also trained as the coordinator does.

    What their own updates have of that training they leave as it is: a coordinator who compares
    with what its own training does beyond the gradients sees an honest hospital's.

    Raises:
        AttackError: ``Honest.class_gradients`` or ``Honest.class_training`` is absent.
    """
    training = needed(honest, Knowledge.TRAINING)
    return _within(np.vstack([needed(honest, Knowledge.CLASSES), training]), honest)


def _within(seen: Rows, honest: Honest) -> Rows:
    """As trained in the span of ``seen``, and the rest of the honest length against ``μ``."""
    basis, _ = np.linalg.qr(seen.T)
    aside = unit(honest.mean - basis @ (basis.T @ honest.mean))
    inside = (honest.own @ basis) @ basis.T
    squared = np.einsum("ij,ij->i", inside, inside)
    left = np.sqrt(np.maximum(0.0, _honest_length(honest) ** 2 - squared))
    return np.asarray(inside - left[:, None] * aside)


def _without(vector: Vector, direction: Vector) -> Vector:
    """The part of a vector at right angles to a direction of length 1."""
    return vector - float(vector @ direction) * direction


def _honest_length(honest: Honest) -> float:
    return float(np.median(np.linalg.norm(honest.updates, axis=1)))
