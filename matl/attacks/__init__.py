"""Attacks on federated learning, for researchers and for our own tests; numpy only.

Attackers are omniscient and collude by default. An attack is a pure function
``(Honest, Generator) -> Rows``: from what ``f`` attackers know of a round to the ``f`` rows
they send. It keeps no state; whatever changes with time depends on ``Honest.round``::

    import numpy as np
    from matl.attacks import ATTACKS, Honest

    draws = np.random.default_rng(7)
    honest = draws.normal(1.0, 0.1, (11, 1000))      # what 11 honest hospitals send
    own = draws.normal(1.0, 0.1, (9, 1000))          # what 9 attackers trained
    rows = ATTACKS["min_max"].craft(Honest(honest, own, round=3), draws)
    assert rows.shape == (9, 1000)

``ATTACKS`` has one entry for each attack, with its source. An entry acts in three places,
which a simulation goes through in this order:

1. ``claim(Profile)``: what the attacker says of itself when it is enrolled;
2. ``poison(Samples, Generator)``: what it trains on, which gives ``Honest.own``;
3. ``craft(Honest, Generator)``: what it sends.

``needs`` names the fields of ``Honest`` that must be given: the last aggregate, the
promised noise, the coordinator's root gradient, the attackers' class gradients, or the
rule under attack. In a study with privacy, ``Honest.updates`` are as sent,
``Honest.signals`` the same before their noise, and ``with_promised_noise(entry.craft)``
makes any attack of another room than ``Room.PRIVATE`` one that adds the noise it
promised. Where ``trains`` is False, ``craft`` looks at no value of ``Honest.own``, and a
simulation leaves these NaN.

Rows are float64 and may be longer than the coordinator admits, or malformed: that is for
the coordinator to notice.
"""

from matl.attacks.attack import (
    Aggregate,
    Attack,
    AttackError,
    Honest,
    Knowledge,
    Rows,
    Vector,
    as_trained,
)
from matl.attacks.labels import Poison, Samples, with_trigger
from matl.attacks.private import with_promised_noise
from matl.attacks.registry import ATTACKS, AttackEntry, Room, attacks_in
from matl.attacks.sizes import Claim, Profile

__all__ = [
    "ATTACKS",
    "Aggregate",
    "Attack",
    "AttackEntry",
    "AttackError",
    "Claim",
    "Honest",
    "Knowledge",
    "Poison",
    "Profile",
    "Room",
    "Rows",
    "Samples",
    "Vector",
    "as_trained",
    "attacks_in",
    "with_promised_noise",
    "with_trigger",
]
