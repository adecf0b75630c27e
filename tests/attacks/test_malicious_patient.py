"""Processes that wait, multiply or lie about themselves; every update of theirs is admitted.

One study of eight rounds: four honest hospitals, two that are one (near clones), one that
sleeps until round 6, when it is well trusted, and one whose manifest claims a hundred times
its patients, and in the last round sends the first round's update again, signed anew.
"""

import pytest

from tests.attacks.arena import ATTACKERS, HONEST, Outcome, Villain, fight
from tests.attacks.malicious import SLEEPS_UNTIL
from tests.system.federation import Material

# A study may begin while the machine is busy with another.
pytestmark = [pytest.mark.timeout(300), pytest.mark.system, pytest.mark.hostile]
ROUNDS = 8
HEROES = HONEST[:4]
SLEEPER, BOASTER, *CLONES = ATTACKERS
ONE, OTHER = CLONES


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Outcome:
    villains = {
        SLEEPER: Villain("early_sleeper"),
        BOASTER: Villain("claimed_size," * (ROUNDS - 1) + "old_vector"),
        ONE: Villain("sybil_quiet", trains_as=ONE),
        OTHER: Villain("sybil_quiet", trains_as=ONE),
    }
    return fight(
        tmp_path_factory.mktemp("patient"),
        material,
        villains,
        honest=len(HEROES),
        study={"rounds": ROUNDS},
        rounds={"minimum_participants": 8, "maximum_participants": 8, "collect_seconds": 60.0},
    )


def test_every_round_gives_a_model_and_everybody_leaves_in_order(outcome: Outcome) -> None:
    assert outcome.released() == list(range(1, ROUNDS + 1))
    assert set(outcome.statuses.values()) == {0}
    for number in range(1, ROUNDS + 1):
        admitted, excluded = outcome.closed(number)
        assert admitted == {*HEROES, *ATTACKERS}
        assert excluded == {}
        assert all(outcome.weights(number)[node] > 0.0 for node in HEROES)


def test_a_sleeper_counts_until_it_wakes_and_not_at_all_from_then_on(outcome: Outcome) -> None:
    for number in range(1, ROUNDS + 1):
        weight = outcome.weights(number)[SLEEPER]
        assert (weight > 0.0) == (number < SLEEPS_UNTIL)
    assert outcome.trust(SLEEPS_UNTIL - 1, SLEEPER) >= 0.8
    # One round does not undo the trust of five, but nothing harmful counts.
    assert outcome.standing(SLEEPS_UNTIL, SLEEPER)["state"] == "marginal"
    falls = [outcome.trust(number, SLEEPER) for number in range(SLEEPS_UNTIL - 1, ROUNDS + 1)]
    assert falls == sorted(falls, reverse=True)
    assert outcome.standing(ROUNDS, SLEEPER)["state"] == "quarantined"
    assert "holdout" in str(outcome.standing(ROUNDS, SLEEPER)["reason"])


def test_neither_claimed_patients_nor_an_old_update_signed_anew_change_a_weight(
    outcome: Outcome,
) -> None:
    for number in range(1, ROUNDS + 1):
        weights = outcome.weights(number)
        honest = [weights[node] for node in HEROES]
        assert 0.5 * min(honest) <= weights[BOASTER] <= 1.1 * max(honest)
    taken = outcome.outputs[BOASTER].events("forgery_taken")
    assert [each["forgery"] for each in taken] == ["claimed_size"] * (ROUNDS - 1) + ["old_vector"]


def test_two_clones_count_as_one_hospital(outcome: Outcome) -> None:
    for number in range(1, ROUNDS + 1):
        weights = outcome.weights(number)
        honest = [weights[node] for node in HEROES]
        assert outcome.scored(number)["clusters"] == [sorted(CLONES)]
        together = weights[ONE] + weights[OTHER]
        assert 0.5 * min(honest) <= together <= 1.1 * max(honest)
