"""Many identities, one attacker.

Nothing here says what the identities send, only that it is almost the same.
"""

from __future__ import annotations

import numpy as np

from matl.attacks.attack import Attack, Honest, Rows


def clones(honest: Honest, draws: np.random.Generator, *, of: Attack, jitter: float = 1e-3) -> Rows:
    """Near clones of the first row of another attack (Fung et al., RAID 2020).

    Each differs from it by a random vector of ``jitter`` times its length.
    """
    row = of(honest, draws)[0]
    differences = draws.standard_normal((honest.f, row.size))
    differences /= np.linalg.norm(differences, axis=1, keepdims=True)
    return np.asarray(row + jitter * np.linalg.norm(row) * differences)
