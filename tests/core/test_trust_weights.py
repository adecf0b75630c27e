from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.ids import NodeId, RoundId
from matl_coordinator.core.trust import (
    Hold,
    HoldoutScore,
    TrustError,
    TrustPolicy,
    TrustRecord,
    TrustState,
    Weighting,
    aggregation_weights,
    initial_record,
    update_trust,
)
from matl_coordinator.core.trust_record import following
from matl_coordinator.core.weighting import trust_weight

NODES = tuple(NodeId(f"hospital_{letter}") for letter in "abcde")
PATIENTS = dict(zip(NODES, (1000, 500, 300, 200, 100), strict=True))


def standing(trust: float, node: NodeId = NODES[0]) -> TrustRecord:
    if trust >= 0.7:
        state = TrustState.TRUSTED
    else:
        state = TrustState.MARGINAL if trust >= 0.4 else TrustState.QUARANTINED
    return replace(initial_record(node), trust=trust, state=state)


def weighed(
    trusts: Mapping[NodeId, float],
    *,
    f: int = 2,
    present: tuple[NodeId, ...] = NODES,
    refused: int = 0,
) -> Weighting | Hold:
    records = [standing(trusts.get(node, 1.0), node) for node in NODES]
    return aggregation_weights(records, PATIENTS, present=present, f=f, refused=refused)


def shares(outcome: Weighting | Hold) -> list[float]:
    assert isinstance(outcome, Weighting)
    return [outcome.shares.get(node, 0.0) for node in NODES]


def test_full_trust_gives_the_capped_sizes() -> None:
    # Capped at 207, so that the two largest hold 45 %.
    assert shares(weighed({})) == pytest.approx([*[207 / 921] * 3, 200 / 921, 100 / 921], rel=1e-2)
    assert shares(weighed({}, f=0)) == pytest.approx([10 / 21, 5 / 21, 3 / 21, 2 / 21, 1 / 21])


@pytest.mark.parametrize(
    ("trust", "weight"), [(0.39, 0.0), (0.4, 0.25), (0.6, 0.75), (0.7, 1.0), (1.0, 1.0)]
)
def test_the_weight_grows_with_trust(trust: float, weight: float) -> None:
    assert trust_weight(standing(trust)) == pytest.approx(weight)


@pytest.mark.parametrize(
    ("beyond", "share"), [(-1.0, 0.05), (-0.06, 0.05), (-0.02, 0.5), (0.02, 1.0), (0.06, 1.0)]
)
def test_the_weight_falls_where_a_hospital_goes_against_what_lies_beyond_the_gradients(
    beyond: float, share: float
) -> None:
    record = replace(standing(1.0), beyond=beyond)
    assert following(record) == pytest.approx(share)
    assert following(record, TrustPolicy(composite="matl-paper")) == 1.0
    records = [record, *(standing(1.0, node) for node in NODES[1:])]
    found = shares(aggregation_weights(records, PATIENTS, present=NODES, f=2))
    plain = shares(weighed({}))
    paper = TrustPolicy(composite="matl-paper")
    by_paper = aggregation_weights(records, PATIENTS, present=NODES, f=2, policy=paper)
    assert shares(by_paper) == pytest.approx(plain)
    assert found[0] / found[1] == pytest.approx(share * plain[0] / plain[1])


def test_nobody_holds_a_round_by_going_against_what_lies_beyond_the_gradients() -> None:
    records = [replace(standing(1.0, node), beyond=-1.0) for node in NODES]
    found = aggregation_weights(records, PATIENTS, present=NODES, f=2)
    assert shares(found) == pytest.approx(shares(weighed({})))


@pytest.mark.parametrize(
    ("cosine", "mean"), [(None, 0.06), (-0.2, 0.034), (-0.9, 0.024), (0.2, 0.074), (0.9, 0.084)]
)
def test_cosines_beyond_the_gradients_are_averaged_over_the_rounds(
    cosine: float | None, mean: float
) -> None:
    (node, *_) = NODES
    score = HoldoutScore(node, 1.0, 0.01, 0.1, beyond=cosine)
    (after,) = update_trust([initial_record(node)], [score], round_id=RoundId(1))
    assert after.beyond == pytest.approx(mean)
    assert after.components is not None
    assert after.components.beyond == cosine


def test_no_long_good_past_outweighs_what_comes_after_it() -> None:
    (node, *_) = NODES
    records: tuple[TrustRecord, ...] = (initial_record(node),)
    for number in range(1, 31):
        cosine = 0.9 if number <= 20 else -0.1
        score = HoldoutScore(node, 1.0, 0.01, 0.1, beyond=cosine)
        records = update_trust(records, [score], round_id=RoundId(number))
        if number == 20:
            assert records[0].beyond == pytest.approx(0.1)
    assert following(records[0]) == pytest.approx((0.06 - 0.1 + 0.2 * 0.9**10) / 0.08, abs=1e-6)


def test_a_hospital_is_told_that_it_lost_weight_and_how_it_goes() -> None:
    (node, *_) = NODES
    start = replace(standing(0.9), beyond=0.019996)
    for beyond, told in [
        (-0.3, "keeps 5% of its weight: beyond the gradients it goes against the holdout set's"),
        (0.0, "of its weight: beyond the gradients it hardly goes along with the holdout set's"),
    ]:
        score = HoldoutScore(node, 1.0, 0.01, 0.1, beyond=beyond)
        record = replace(start, beyond=-0.06 if beyond < 0 else 0.01)
        (after,) = update_trust([record], [score], round_id=RoundId(1))
        assert told in after.reason
        held = replace(record, state=TrustState.QUARANTINED, operator_hold=True)
        (after,) = update_trust([held], [score], round_id=RoundId(1))
        assert "of its weight" not in after.reason
    whole = HoldoutScore(node, 1.0, 0.01, 0.1, beyond=0.019996)
    (after,) = update_trust([start], [whole], round_id=RoundId(1))
    assert "of its weight" not in after.reason


def test_a_cosine_that_is_not_a_number_is_refused() -> None:
    (node, *_) = NODES
    score = HoldoutScore(node, 1.0, 0.01, 0.1, beyond=float("nan"))
    with pytest.raises(TrustError, match="not finite"):
        update_trust([initial_record(node)], [score], round_id=RoundId(1))


@given(
    below=st.floats(0.2, 0.5),
    trusted=st.floats(0.65, 0.95),
    share=st.floats(0.0, 1.0),
)
def test_wherever_the_bounds_are_set_the_marginal_count_and_the_trusted_count_in_full(
    below: float, trusted: float, share: float
) -> None:
    policy = TrustPolicy(excluded_below=below, trusted_from=trusted)
    trust = min(trusted, below + share * (trusted - below))
    record = replace(initial_record(NODES[0], policy), trust=trust)
    assert 0.1 < trust_weight(record, policy) <= 1.0
    assert trust_weight(replace(record, trust=trusted), policy) == pytest.approx(1.0)
    assert trust_weight(replace(record, trust=below - 1e-6), policy) == 0.0


def test_a_quarantined_hospital_counts_for_nothing_however_high_its_shadow_trust() -> None:
    shadow = replace(standing(0.9), state=TrustState.QUARANTINED)
    assert trust_weight(shadow) == 0.0
    assert shares(weighed({NODES[4]: 0.3}))[4] == 0.0


def test_a_round_that_did_harm_counts_for_nothing_even_from_a_trusted_hospital() -> None:
    records = [standing(1.0, node) for node in NODES]
    scores = [HoldoutScore(node, 1.0, 0.01, 0.1) for node in NODES[:4]]
    scores.append(HoldoutScore(NODES[4], -0.4, 0.01, -0.1))
    after = update_trust(records, scores, round_id=RoundId(1))
    assert after[4].state is not TrustState.QUARANTINED
    assert shares(aggregation_weights(after, PATIENTS, present=NODES, f=2))[4] == 0.0


def test_new_hospitals_can_begin() -> None:
    records = [initial_record(node) for node in NODES]
    assert isinstance(aggregation_weights(records, PATIENTS, present=NODES, f=2), Weighting)
    assert isinstance(aggregation_weights(records, PATIENTS, present=NODES[:3], f=2), Weighting)
    assert isinstance(aggregation_weights(records, PATIENTS, present=NODES[2:], f=2), Weighting)
    pair = {node: PATIENTS[node] for node in NODES[:2]}
    assert isinstance(aggregation_weights(records[:2], pair, present=NODES[:2], f=0), Weighting)
    single = {NODES[0]: 10}
    assert isinstance(aggregation_weights(records[:1], single, present=NODES[:1], f=0), Weighting)


def test_the_round_is_held_when_trusted_updates_stand_for_too_few_patients() -> None:
    # The other four have 1100 at the least, whoever is hostile.
    low = dict.fromkeys((NODES[0], NODES[1], NODES[4]), 0.1)
    assert weighed(low, f=1) == Hold(
        "trusted updates stand for 500 patients, counting at most 900 of a hospital; "
        "at least 550 are needed"
    )
    assert isinstance(weighed({**low, NODES[4]: 1.0}, f=1), Weighting)
    assert isinstance(weighed(low, f=2), Weighting)


@pytest.mark.parametrize("f", [1, 2])
def test_a_round_of_no_more_updates_than_may_be_hostile_is_held(f: int) -> None:
    outcome = weighed({}, f=f, present=NODES[:f])
    assert outcome == Hold(f"{f} sound updates came, and up to {f} of them may be hostile")
    assert isinstance(weighed({}, f=f, present=NODES[: f + 1]), Weighting)


def test_hospitals_that_gave_themselves_away_are_among_those_that_may_be_hostile() -> None:
    two = NODES[:2]
    assert isinstance(weighed({}, present=two), Hold)
    assert isinstance(weighed({}, present=two, refused=1), Weighting)
    # More than were expected make nobody less suspect than not at all.
    assert isinstance(weighed({}, present=two, refused=3), Weighting)
    assert isinstance(weighed({}, present=(), refused=3), Hold)


@pytest.mark.parametrize(("n", "f"), [(5, 1), (5, 2), (20, 9), (7, 3)])
def test_the_honest_alone_are_a_quorum_though_some_of_them_fall_out(n: int, f: int) -> None:
    nodes = [NodeId(f"h{index}") for index in range(n)]
    for sizes in ([100] * n, [2000 + 100 * (index % 11) for index in range(n)]):
        enrolled = dict(zip(nodes, sizes, strict=True))
        hostile = sorted(nodes, key=lambda node: -enrolled[node])[:f]
        honest = [node for node in nodes if node not in hostile]
        for out in range(len(honest)):
            bad = {*hostile, *honest[:out]}
            records = [standing(0.1 if node in bad else 1.0, node) for node in nodes]
            outcome = aggregation_weights(records, enrolled, present=nodes, f=f)
            enough = len(honest) - out >= 2 and 2 * (len(honest) - out) >= len(honest) + (
                sizes[0] != sizes[-1]
            )
            if enough:
                assert isinstance(outcome, Weighting), (sizes, out)
            if 2 * (len(honest) - out) < len(honest) - 1:
                assert isinstance(outcome, Hold), (sizes, out)


def test_without_hostile_hospitals_half_of_all_patients_are_needed() -> None:
    assert isinstance(weighed({NODES[0]: 0.1}, f=0), Weighting)
    assert isinstance(weighed({NODES[0]: 0.1, NODES[4]: 0.1}, f=0), Hold)


def test_absent_hospitals_count_as_enrolled() -> None:
    assert isinstance(weighed({}, present=NODES[:2], f=1), Weighting)
    held = weighed({}, present=NODES[2:4], f=1)
    assert isinstance(held, Hold)
    assert "stand for 500 patients" in held.reason


def test_the_round_is_held_when_combined_trust_is_too_small() -> None:
    held = weighed(dict.fromkeys(NODES, 0.3))
    assert held == Hold("combined trust of the updates is 0.00; at least 1.00 is needed")
    wary = TrustPolicy(minimum_strength=2.0)
    records = [standing(0.42, node) for node in NODES]
    found = aggregation_weights(records, PATIENTS, present=NODES, f=2, policy=wary)
    assert found == Hold("combined trust of the updates is 1.50; at least 2.00 is needed")
    assert isinstance(weighed(dict.fromkeys(NODES, 0.42)), Weighting)


def test_a_single_update_makes_no_model_however_trusted() -> None:
    out = dict.fromkeys(NODES[1:], 0.1)
    assert weighed(out, f=0) == Hold("a single update of 5 counts; at least 2 are needed")
    assert weighed({}, f=0, present=NODES[:1]) == Hold(
        "a single update of 1 counts; at least 2 are needed"
    )
    assert isinstance(weighed({**out, NODES[2]: 0.4}, f=0), Weighting)
    alone = aggregation_weights([standing(1.0)], {NODES[0]: 500}, present=NODES[:1], f=0)
    assert shares(alone) == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_nothing_present_is_held() -> None:
    assert isinstance(weighed({}, present=()), Hold)


def test_strangers_are_refused() -> None:
    with pytest.raises(TrustError, match="stranger sent an update but is not enrolled"):
        weighed({}, present=(*NODES, NodeId("stranger")))


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5), st.integers(0, 2))
def test_shares_sum_to_one_and_no_minority_of_f_holds_more_than_half_at_full_trust(
    trusts: list[float], f: int
) -> None:
    outcome = weighed(dict(zip(NODES, trusts, strict=True)), f=f)
    if isinstance(outcome, Weighting):
        values = sorted(outcome.shares.values(), reverse=True)
        assert sum(values) == pytest.approx(1.0)
        assert min(values) >= 0.0
    full = sorted(shares(weighed({}, f=f)), reverse=True)
    assert sum(full[:f]) <= 0.5 + 1e-9
