"""The tutorial's word for a study's privacy promise, and what it costs.

Holds numbers and computes from them. The mechanisms are in ``matl_common.privacy``; nothing here
sees data or draws noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from matl_common.errors import ConfigurationError
from matl_common.privacy.budget import calibrate_noise, full_batch_epsilon
from matl_common.privacy.mechanisms import GaussianEvent

LARGEST_CLIP_NORM = 1e6


@dataclass(frozen=True, slots=True)
class DifferentialPrivacy:
    """An (ε, δ) promise to every patient of every hospital, over a whole study.

    Under add-or-remove-one patient: whether somebody is among a hospital's patients changes the
    probability of anything that leaves it by a factor of at most e^ε, but for δ (Dwork et al.,
    TCC 2006). It holds for all rounds together, not for each: noise is calibrated once, for as
    many steps as the study may take.

    Attributes:
        epsilon: ε of the whole study, above 0. For none, leave ``privacy`` out of the client.
        delta: δ, above 0 and below 1; well below one over the number of patients.
        clip_norm: C, the Euclidean norm that one patient's gradient is clipped to.

    Raises:
        ConfigurationError: one of these cannot be.
    """

    epsilon: float = 1.0
    delta: float = 1e-5
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon > 0.0):
            raise ConfigurationError(
                f"epsilon={self.epsilon}: give a finite number above 0; for a study without "
                "privacy leave privacy= out of MATLClient"
            )
        if not 0.0 < self.delta < 1.0:
            raise ConfigurationError(f"delta={self.delta}: give a number between 0 and 1")
        if not 0.0 < self.clip_norm <= LARGEST_CLIP_NORM:
            raise ConfigurationError(
                f"clip_norm={self.clip_norm}: give a number above 0, at most {LARGEST_CLIP_NORM:g}"
            )

    def noise_multiplier(self, *, steps: int) -> float:
        """Standard deviation of the noise on a clipped sum, in units of ``clip_norm``.

        Args:
            steps: sums over all patients that are released in the whole study.

        Raises:
            InvalidInputError: ``steps`` is below 1.
        """
        return calibrate_noise(self.epsilon, self.delta, steps=steps)

    def epsilon_after(self, steps: int, *, of: int) -> float:
        """ε spent after ``steps`` of a study that may take ``of``; not linear in steps.

        Half of the steps of a study with ε = 1 and δ = 1e-5 cost ε = 0.68.
        """
        if steps == 0:
            return 0.0
        event = GaussianEvent(self.noise_multiplier(steps=of), steps)
        return full_batch_epsilon([event], self.delta)
