"""The one-run canary audit: the claimed ε stands, and planted faults are found."""

import pytest

from tests.privacy.attacks import CLAIMED_EPSILON, FAULTS, canary_audit, claimed

pytestmark = pytest.mark.privacy

# Between what 20,000 canaries show of the mechanism as claimed (0.39 ± 0.03) and with its noise
# halved (0.85 ± 0.03); see ``make evidence-privacy`` for the rates.
ALARM = 0.6


def test_the_audit_of_the_mechanism_as_it_is_stays_below_the_claimed_epsilon() -> None:
    found = canary_audit(FAULTS["none"])
    assert found.epsilon_lower_bound <= CLAIMED_EPSILON
    assert found.epsilon_lower_bound < ALARM
    # The attack works at all: it refutes that nothing was learned.
    assert found.epsilon_lower_bound > 0.2


@pytest.mark.parametrize(
    ("fault", "at_least"), [("noise halved", ALARM), ("noise quartered", 1.5), ("no noise", 5.0)]
)
def test_an_audit_raises_the_alarm_at_too_little_noise(fault: str, at_least: float) -> None:
    assert canary_audit(FAULTS[fault]).epsilon_lower_bound > at_least


def test_an_audit_refutes_a_budget_that_is_reset_each_round() -> None:
    found = canary_audit(FAULTS["budget reset each round"], classes=50, dimensions=80)
    assert found.epsilon_lower_bound > 2.5


def test_more_canaries_refute_the_claimed_epsilon_itself_when_the_noise_is_halved() -> None:
    # One step is the same mechanism as many, and five times as fast.
    halved = claimed(steps=1, times_noise=0.5)
    found = canary_audit(halved, classes=200, dimensions=300, guessed_share=0.02)
    assert found.epsilon_lower_bound > CLAIMED_EPSILON
