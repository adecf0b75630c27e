"""Processes that break a promise of privacy noise, in a study that has one.

One study of two rounds with five honest hospitals that add what the plan asks; one adds
nothing and one claims a hundred times its patients and so adds a hundredth.
"""

import pytest

from matl_common.ids import NodeId
from tests.attacks.arena import ATTACKERS, HONEST, Outcome, Villain, fight
from tests.system.federation import Material

# A study may begin while the machine is busy with another.
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.system,
    pytest.mark.hostile,
    pytest.mark.privacy,
]
ROUNDS = 2
# So few that the noise of a round is longer than the longest honest signal.
PATIENTS = 200
SILENT, LIAR = ATTACKERS[:2]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Outcome:
    villains = {
        SILENT: Villain("honest", noise=0.0),
        LIAR: Villain("honest", declares=100 * PATIENTS),
    }
    return fight(
        tmp_path_factory.mktemp("private"),
        material,
        villains,
        patients=PATIENTS,
        study={"rounds": ROUNDS, "epsilon": 8.0},
        rounds={"minimum_participants": 7, "maximum_participants": 7, "collect_seconds": 60.0},
    )


def test_every_round_gives_a_model_of_those_that_kept_their_promise(outcome: Outcome) -> None:
    assert outcome.released() == list(range(1, ROUNDS + 1))
    assert set(outcome.statuses.values()) == {0}
    for number in range(1, ROUNDS + 1):
        assert all(outcome.weights(number)[node] > 0.0 for node in HONEST)


@pytest.mark.parametrize("villain", [SILENT, LIAR])
def test_an_update_without_the_promised_noise_counts_for_nothing(
    outcome: Outcome, villain: NodeId
) -> None:
    for number in range(1, ROUNDS + 1):
        assert villain in outcome.closed(number)[0]
        assert outcome.weights(number).get(villain, 0.0) == 0.0
        assert "promised privacy noise" in str(outcome.standing(number, villain)["reason"])
        refused = outcome.scored(number)["refused"]
        assert isinstance(refused, dict)
        assert set(refused) == {SILENT, LIAR}
    assert outcome.trust(ROUNDS, villain) < min(outcome.trust(ROUNDS, node) for node in HONEST)
