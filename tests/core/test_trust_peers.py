from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.ids import NodeId, RoundId
from matl_common.modes import MATLMode
from matl_coordinator.core.claim import claimed_tolerance
from matl_coordinator.core.trust import (
    DEFAULT_POLICY,
    HoldoutScore,
    PeerAgreement,
    TrustPolicy,
    TrustRecord,
    TrustState,
    initial_record,
    quarantine,
    release,
    update_trust,
)

A = NodeId("a")


def after(
    record: TrustRecord,
    cosines: list[float],
    *,
    noise: float = 0.0,
    violation: str | None = None,
    policy: TrustPolicy = DEFAULT_POLICY,
) -> TrustRecord:
    """The record after rounds without a holdout set."""
    for cosine in cosines:
        (record,) = update_trust(
            [record],
            None,
            round_id=RoundId(record.as_of_round + 1),
            agreement={A: PeerAgreement(cosine, noise)},
            violations={A: violation} if violation else None,
            policy=policy,
        )
    return record


def test_agreement_with_the_others_is_trusted_and_the_reason_names_what_is_missing() -> None:
    record = after(initial_record(A), [0.8] * 10)
    assert record.state is TrustState.TRUSTED
    assert record.as_of_round == 10
    assert record.reason == (
        "trusted: points the same way as the other hospitals, cosine +0.80; there is no holdout set"
    )


@pytest.mark.parametrize("start", [0.45, 0.6, 1.0])
def test_however_much_a_hospital_disagrees_peers_never_exclude_it(start: float) -> None:
    record = after(replace(initial_record(A), trust=start), [-1.0] * 50)
    assert record.trust == pytest.approx(DEFAULT_POLICY.peer_floor)
    assert record.state is TrustState.MARGINAL
    assert record.reason == (
        "reduced weight: points against the other hospitals, cosine -1.00; there is no holdout set"
    )


@given(below=st.floats(0.2, 0.5), trusted=st.floats(0.65, 0.95), start=st.floats(0.0, 1.0))
def test_peers_exclude_nobody_wherever_exclusion_is_set(
    below: float, trusted: float, start: float
) -> None:
    policy = TrustPolicy(excluded_below=below, trusted_from=trusted)
    record = replace(initial_record(A, policy), trust=max(start, below))
    after_all = after(record, [-1.0] * 20, policy=policy)
    assert below <= after_all.trust <= policy.peer_floor < trusted
    assert after_all.state is TrustState.MARGINAL


@pytest.mark.parametrize("start", [0.45, 1.0])
def test_what_noise_explains_leads_back_to_where_everybody_began(start: float) -> None:
    record = after(replace(initial_record(A), trust=start), [-0.3, 0.3] * 20, noise=0.1)
    assert record.trust == pytest.approx(DEFAULT_POLICY.initial, abs=0.01)
    assert "neither confirm nor contradict it" in record.reason


def test_violations_exclude_and_peers_cannot_bar_the_return() -> None:
    record = after(initial_record(A), [0.9] * 2, violation="its update has no noise")
    assert record.state is TrustState.QUARANTINED
    assert record.reason == "excluded: its update has no noise"
    first = after(record, [-1.0])
    assert first.state is TrustState.QUARANTINED
    assert first.reason == "excluded for now: one round of three good ones needed to return"
    back = after(record, [-1.0] * 4)
    assert back.state is TrustState.MARGINAL
    assert back.trust <= DEFAULT_POLICY.readmit_at_most


def test_an_operators_order_holds_without_a_holdout_set_too() -> None:
    held = quarantine(initial_record(A), why="camera under repair")
    record = after(held, [0.9] * 20)
    assert record.state is TrustState.QUARANTINED
    assert record.reason == (
        'excluded until an operator releases it: an operator said "camera under repair"; '
        "now points the same way as the other hospitals, cosine +0.90; there is no holdout set"
    )
    assert release(record, why="repaired").state is TrustState.MARGINAL


def test_what_a_holdout_set_found_earlier_is_kept_for_when_there_is_one_again() -> None:
    (scored,) = update_trust(
        [initial_record(A)], [HoldoutScore(A, 1.0, 0.04, 0.1)], round_id=RoundId(1)
    )
    record = after(scored, [0.5])
    kept = ("evidence", "signal", "information", "log_odds", "sleeper_sum", "rounds_against")
    assert {name: getattr(record, name) for name in kept} == {
        name: getattr(scored, name) for name in kept
    }
    assert record.components is not None
    assert record.components.mode == "peers"


def test_the_claim_without_a_root_set_is_a_fifth_and_never_45_percent() -> None:
    claimed = {n: claimed_tolerance(MATLMode.MODE0, n) for n in (1, 5, 6, 11, 20, 21)}
    assert {n: claim.f for n, claim in claimed.items()} == {1: 0, 5: 0, 6: 1, 11: 2, 20: 3, 21: 4}
    for claim in claimed.values():
        assert "45" not in claim.sentence
        assert claim.sentence.startswith("without a holdout set")


def test_the_claim_with_a_root_set_carries_its_condition() -> None:
    for n, f in ((5, 2), (20, 9), (1, 0), (3, 1)):
        claim = claimed_tolerance(MATLMode.MODE1, n)
        assert claim.f == f
        assert (
            "given a clean root set of at least 500 images and authenticated members"
            in claim.sentence
        )
