"""One release of a hospital's moments, from which a head is solved without another look.

The budget is one ``GaussianEvent`` of one step. Beside ``head.py`` nothing is iterated: the
whole budget goes into one release, whose size grows with the square of the dimensions where
second moments are in it.
"""

from matl_common.privacy.mechanisms import GaussianEvent
from matl_common.vision.linear_head import Float64Array, Labels
from matl_common.vision.moments import SENSITIVITY, moment_sums
from matl_participant.training.noising import noised_sum


def release_moments(
    inputs: Float64Array,
    labels: Labels,
    *,
    classes: int,
    gram_share: float,
    noise_multiplier: float,
    images_per_patient: int = 1,
) -> Float64Array:
    """A hospital's moment sums with noise, as one vector (``unpack_moments`` reads it).

    Args:
        inputs: projected rows ``(n, k)``, one a patient.
        labels: ``(n,)``.
        classes: how many there are.
        gram_share: share of the budget for second moments; 0 leaves them out.
        noise_multiplier: the noise in units of ``SENSITIVITY``; 0 promises nothing.
        images_per_patient: the most rows that can belong to one patient.
    """
    sums = moment_sums(inputs, labels, classes=classes, gram_share=gram_share)
    return noised_sum(
        sums / images_per_patient,
        noise_multiplier=noise_multiplier,
        max_grad_norm=SENSITIVITY,
    )


def moments_event(noise_multiplier: float) -> GaussianEvent:
    """What one ``release_moments`` is charged as."""
    return GaussianEvent(noise_multiplier, steps=1)
