"""A noised count of the patients that a model gets right: all a hospital tells of its quality.

One patient more or less moves the count by at most 1, so noise of standard deviation s is a
Gaussian mechanism with noise multiplier s. Rows stand for patients as in training (``head.py``):
where nobody knows which images belong together, each counts for 1/k of a patient who has at
most k. The exact count stays here and is told to nobody, the hospital's own log included.
"""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from matl_common.privacy.discrete import discrete_gaussian
from matl_common.privacy.mechanisms import Noise
from matl_common.vision.linear_head import Labels, LinearHead, head_logits, predict
from matl_participant.training.hardened import project_alone
from matl_participant.training.noising import noised_sum


def noised_correct(
    head: LinearHead,
    features: NDArray[np.floating],
    labels: Labels,
    *,
    noise_multiplier: float,
    images_per_patient: int = 1,
    noise: Noise = Noise.GAUSSIAN,
) -> float:
    """How many patients a head gets right, with noise of at least ``noise_multiplier`` patients.

    Args:
        head: the round's base model.
        features: one row per patient, ``(patients, feature_dim)``.
        labels: ``(patients,)``.
        noise_multiplier: s, above 0.
        images_per_patient: k, the most rows that can belong to one patient.
        noise: its kind. Discrete noise is drawn before the rows are looked at, and added to a
            whole number of rows.
    """
    match noise:
        case Noise.GAUSSIAN:
            patients = np.array([correct_rows(head, features, labels) / images_per_patient])
            released = noised_sum(patients, noise_multiplier=noise_multiplier, max_grad_norm=1.0)
            return float(released[0])
        case Noise.DISCRETE_GAUSSIAN:
            exact = (Fraction(noise_multiplier) * images_per_patient) ** 2
            # Rounded up to an integer, with which the sampler's fractions stay small.
            draw = discrete_gaussian(1, variance=Fraction(math.ceil(exact)))
            return (int(draw[0]) + correct_rows_alone(head, features, labels)) / images_per_patient


def correct_rows(head: LinearHead, features: NDArray[np.floating], labels: Labels) -> int:
    """How many rows a head gets right."""
    return int((predict(features, head) == labels).sum())


def correct_rows_alone(head: LinearHead, features: NDArray[np.floating], labels: Labels) -> int:
    """As ``correct_rows``, row by row, for the reason given in ``hardened``."""
    inputs = project_alone(features, head.projection)
    return sum(
        int(np.argmax(head_logits(inputs[[row]], head.weight, head.bias)[0])) == label
        for row, label in enumerate(labels)
    )
