"""What an attacker's success says about ε: lower bounds that hold with a stated confidence.

A mechanism that is (ε, δ)-differentially private cannot let anybody guess too well who was
in its data. Turned around, good guesses refute an ε. Nothing here attacks anything or
draws a random number: the guesses are made elsewhere.
"""

import math

import numpy as np
from numpy.typing import NDArray

from matl_common.errors import InvalidInputError
from matl_common.privacy.noise import Float64Array

_LARGEST_EPSILON = 50.0
_BISECTIONS = 60


def audit_p_value(
    *, canaries: int, guesses: int, correct: int, epsilon: float, delta: float
) -> float:
    """How likely so many correct guesses are, at most, if the mechanism is (ε, δ)-private.

    Each of ``canaries`` records was included or not by its own fair coin; the attacker
    guessed for ``guesses`` of them and was ``correct`` about so many (Steinke, Nasr &
    Jagielski, arXiv 2305.08846, theorem 5.2): with W ~ Binomial(r, e^ε/(1+e^ε)),
    P ≤ P[W ≥ v] + 2mδ · max over i of P[v-i ≤ W < v]/i.

    Raises:
        InvalidInputError: the counts contradict one another.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise InvalidInputError(
            f"{correct} correct of {guesses} guesses about {canaries} canaries cannot be"
        )
    masses = _binomial_masses(guesses, epsilon)
    tail = float(masses[correct:].sum())
    if correct == 0 or delta == 0.0:
        return min(1.0, tail)
    just_below = np.cumsum(masses[:correct][::-1])
    steepest = float((just_below / np.arange(1, correct + 1)).max())
    return min(1.0, tail + 2.0 * canaries * delta * steepest)


def audit_epsilon(
    *, canaries: int, guesses: int, correct: int, delta: float, confidence: float
) -> float:
    """The greatest ε that the guesses refute with this confidence; 0 where they refute none."""

    def is_refuted(epsilon: float) -> bool:
        found = audit_p_value(
            canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta
        )
        return found < 1.0 - confidence

    if not is_refuted(0.0):
        return 0.0
    refuted, open_ = 0.0, _LARGEST_EPSILON
    for _ in range(_BISECTIONS):
        middle = (refuted + open_) / 2.0
        if is_refuted(middle):
            refuted = middle
        else:
            open_ = middle
    return refuted


def correct_guesses(scores: Float64Array, included: NDArray[np.bool_], *, guesses: int) -> int:
    """How often the extremes are right: half the guesses "in" at the top, half "out" below.

    Args:
        scores: one for each canary; greater where it is likelier to have been included.
        included: the coins.
        guesses: even, and at most the number of canaries.

    Raises:
        InvalidInputError: ``guesses`` is odd or too large.
    """
    if guesses % 2 or not 0 < guesses <= len(scores):
        raise InvalidInputError(f"{guesses} guesses about {len(scores)} canaries; use fewer, even")
    order = np.argsort(scores)
    half = guesses // 2
    return int(included[order[-half:]].sum() + (~included[order[:half]]).sum())


def _binomial_masses(trials: int, epsilon: float) -> Float64Array:
    """P[W = k] for k = 0 … ``trials``, each trial a success with odds e^ε."""
    successes = np.arange(trials + 1, dtype=np.float64)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    log_choices = log_factorials[-1] - log_factorials - log_factorials[::-1]
    log_total = math.log1p(math.exp(-epsilon))
    masses: Float64Array = np.exp(log_choices - trials * log_total - (trials - successes) * epsilon)
    return masses
