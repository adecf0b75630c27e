"""A round of which the attackers know everything, for the tests of attacks on updates."""

from __future__ import annotations

import numpy as np

from matl.attacks import ATTACKS, Honest, Rows, Vector

H, F, D = 11, 9, 400
STD = 0.05
MEAN_LENGTH_SHARE = 0.2


def known(*, seed: int = 0, round: int = 1, private: bool = True) -> Honest:
    """A round of which the attackers know everything, in which no two hospitals are alike."""
    draws = np.random.default_rng(seed)
    common = draws.normal(0.0, MEAN_LENGTH_SHARE, D)
    spread = draws.uniform(0.01, 0.3, D)
    signals = common + spread * draws.standard_normal((H, D))
    own = common + spread * draws.standard_normal((F, D))
    noise = STD * draws.standard_normal((H, D))
    return Honest(
        updates=signals + noise if private else signals,
        own=own,
        round=round,
        previous=draws.standard_normal(D),
        signals=signals if private else None,
        noise_std=np.linspace(0.5, 2.0, F) * STD if private else None,
        root=common + 0.1 * draws.standard_normal(D),
        class_gradients=common + draws.standard_normal((4, D)),
        class_training=common + draws.standard_normal(D),
        aggregate=lambda rows: np.asarray(np.median(rows, axis=0)),
    )


def crafted(name: str, honest: Honest, *, seed: int = 1) -> Rows:
    return ATTACKS[name].craft(honest, np.random.default_rng(seed))


def cosine(a: Vector, b: Vector) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
