"""Processes that send what no honest hospital sends: refused one by one, and no round ends.

One study of three rounds: four honest hospitals, one that sends NaN, one that turns its
update round five times as long, and one that in round 2 tries everything it can sign
before it sends what it trained.
"""

import pytest

from tests.attacks.arena import ATTACKERS, HONEST, Outcome, Villain, fight
from tests.system.federation import Material
from tests.system.story import of

# A study may begin while the machine is busy with another.
pytestmark = [pytest.mark.timeout(300), pytest.mark.system, pytest.mark.hostile]
ROUNDS = 3
HEROES = HONEST[:4]
POISONER, FLIPPER, FORGER = ATTACKERS[:3]
ATTEMPTS = "too_long+too_short+truncated+old_round+old_nonce+other_promises"


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Outcome:
    villains = {
        POISONER: Villain("one_nan"),
        FLIPPER: Villain("sign_flip_5"),
        FORGER: Villain(f"honest,{ATTEMPTS}+honest,honest"),
    }
    return fight(
        tmp_path_factory.mktemp("loud"),
        material,
        villains,
        honest=len(HEROES),
        study={"rounds": ROUNDS},
        rounds={"minimum_participants": 7, "maximum_participants": 7, "collect_seconds": 60.0},
    )


def test_every_round_gives_a_model_of_the_honest_and_everybody_leaves_in_order(
    outcome: Outcome,
) -> None:
    assert outcome.released() == [1, 2, 3]
    assert of(outcome.events, "round_aborted") == []
    assert of(outcome.events, "study_paused") == []
    for number in (1, 2, 3):
        admitted, _ = outcome.closed(number)
        assert admitted >= set(HEROES)
        weights = outcome.weights(number)
        assert all(weights[node] > 0.0 for node in HEROES)
    assert set(outcome.statuses.values()) == {0}


def test_a_nan_is_refused_with_its_reason_and_costs_the_hospital_its_trust(
    outcome: Outcome,
) -> None:
    for number in (1, 2, 3):
        admitted, excluded = outcome.closed(number)
        assert POISONER not in admitted
        assert "NaN" in excluded[POISONER]
        assert outcome.refusals(POISONER, number) == ["not_finite"]
        assert POISONER not in outcome.weights(number)
    assert outcome.trust(1, POISONER) < min(outcome.trust(1, node) for node in HEROES)
    assert outcome.standing(3, POISONER)["state"] == "quarantined"
    assert "NaN" in str(outcome.standing(3, POISONER)["reason"])
    process = outcome.outputs[POISONER]
    (refused,) = process.events("forgery_refused", round=1)
    assert refused["code"] == "INVALID_ARGUMENT"


def test_a_sign_flip_within_the_norm_limit_is_admitted_and_counts_for_nothing(
    outcome: Outcome,
) -> None:
    for number in (1, 2, 3):
        admitted, _ = outcome.closed(number)
        assert FLIPPER in admitted
        assert outcome.weights(number).get(FLIPPER, 0.0) == 0.0
        facts = outcome.standing(number, FLIPPER)
        components = facts["components"]
        assert isinstance(components, dict)
        assert components["harm"]
        assert components["z"] < -3.0
    assert outcome.standing(3, FLIPPER)["state"] == "quarantined"
    assert "holdout" in str(outcome.standing(3, FLIPPER)["reason"])


def test_wrong_shapes_and_replays_are_refused_for_what_they_are(outcome: Outcome) -> None:
    codes = outcome.refusals(FORGER, 2)
    assert codes == [
        "wrong_size",
        "wrong_size",
        "wrong_size",
        "no_round",
        "replayed",
        "wrong_privacy",
    ]
    said = [each["forgery"] for each in outcome.outputs[FORGER].events("forgery_refused")]
    assert said == ATTEMPTS.split("+")
    assert outcome.refusals(FORGER, 1) == outcome.refusals(FORGER, 3) == []


def test_a_hospital_whose_forgeries_were_refused_may_still_send_what_it_trained(
    outcome: Outcome,
) -> None:
    for number in (2, 3):
        admitted, _ = outcome.closed(number)
        assert FORGER in admitted
        assert outcome.weights(number)[FORGER] > 0.0
