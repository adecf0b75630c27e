"""Attacks on a study with differential privacy: what is sent where noise was promised.

Every other attack becomes one on such a study through ``with_promised_noise``. Nothing here
draws noise for anybody's protection.
"""

from __future__ import annotations

import numpy as np

from matl.attacks.attack import Attack, Honest, Knowledge, Rows, needed, unit


def with_promised_noise(attack: Attack) -> Attack:
    """The same attack by attackers that add the noise they promised, of the right size.

    They see through the honest hospitals' noise where ``Honest.signals`` says what is below.

    Raises:
        AttackError: when used, ``Honest.noise_std`` is absent.
    """

    def noised(honest: Honest, draws: np.random.Generator) -> Rows:
        std = needed(honest, Knowledge.NOISE)
        rows = attack(honest.before_noise(), draws)
        return rows + std[:, None] * draws.standard_normal(rows.shape)

    return noised


def noise_free(honest: Honest, draws: np.random.Generator, *, attack: Attack) -> Rows:
    """An attack without the promised noise.

    Nearer to everybody than two honest updates are to each other, so that rules by distance
    prefer it.
    """
    return attack(honest.before_noise(), draws)


def budget_spend(honest: Honest, draws: np.random.Generator) -> Rows:
    """The whole length of the promised noise, ``σ_i √d``, in the one direction ``−μ``.

    As long as honest noise, and none of it wasted on chance.

    Raises:
        AttackError: ``Honest.noise_std`` is absent.
    """
    lengths = needed(honest, Knowledge.NOISE) * np.sqrt(honest.d)
    against = unit(honest.before_noise().mean)
    return np.asarray(honest.own - lengths[:, None] * against)


def correlated_noise(honest: Honest, draws: np.random.Generator) -> Rows:
    """``−x_i`` and noise of the promised size, drawn once and shared by all attackers.

    Each row by itself is what was promised; in the sum the noise does not average out.

    Raises:
        AttackError: ``Honest.noise_std`` is absent.
    """
    std = needed(honest, Knowledge.NOISE)
    return -honest.own + std[:, None] * draws.standard_normal(honest.d)


def hub(honest: Honest, draws: np.random.Generator) -> Rows:
    """One attacker makes the honest look like one author; the rest stand apart from them.

    The first sends ``μ`` without noise, as long as noise would be: more like every honest
    update than any two of these are like each other, so that whoever chains pairs that are
    alike has all the honest in one cluster, which shares one weight. The rest add their noise
    and go ``‖μ‖`` against ``s`` where it is not ``μ``.

    Raises:
        AttackError: ``Honest.noise_std`` is absent.
    """
    std, known = needed(honest, Knowledge.NOISE), honest.before_noise()
    length, towards = float(np.linalg.norm(known.mean)), unit(known.mean)
    aside = unit(known.deviation - float(known.deviation @ towards) * towards)
    rows = std[:, None] * draws.standard_normal(honest.own.shape) - length * aside
    rows[0] = max(length, float(std[0] * np.sqrt(honest.d))) * towards
    return np.asarray(rows)
