"""Hospitals that want the model and train nothing (Lin et al., 2019).

Nothing here uses the attackers' own training.
"""

from __future__ import annotations

import numpy as np

from matl.attacks.attack import Honest, Rows


def nothing(honest: Honest, draws: np.random.Generator) -> Rows:
    """Zero, from everybody."""
    return np.zeros((honest.f, honest.d))


def pure_noise(honest: Honest, draws: np.random.Generator) -> Rows:
    """Noise that looks like an update: as promised under privacy, else of the honest length."""
    rows = draws.standard_normal((honest.f, honest.d))
    if honest.noise_std is not None:
        return rows * honest.noise_std[:, None]
    length = float(np.median(np.linalg.norm(honest.updates, axis=1)))
    return np.asarray(length * rows / np.linalg.norm(rows, axis=1, keepdims=True))


def last_aggregate(honest: Honest, draws: np.random.Generator) -> Rows:
    """What the global model last moved by; zero in the first round."""
    if honest.previous is None:
        return nothing(honest, draws)
    return honest.repeated(honest.previous)
