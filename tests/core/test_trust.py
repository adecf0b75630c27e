import itertools
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.ids import NodeId, RoundId
from matl_coordinator.core.trust import (
    DEFAULT_POLICY,
    HoldoutScore,
    PeerAgreement,
    TrustError,
    TrustRecord,
    TrustState,
    initial_record,
    quarantine,
    release,
    update_trust,
)

A, B, C, D, E = (NodeId(name) for name in "abcde")
NODES = (A, B, C, D, E)


def score(node: NodeId, *, z: float, scale: float = 1.0) -> HoldoutScore:
    """A score of projection ``scale`` times z / 4 (so that z = 4 is a good hospital's)."""
    return HoldoutScore(
        node_id=node,
        projection=scale * z / 4.0,
        variance=(scale / 4.0) ** 2,
        loss_improvement=0.01 * z,
    )


def fresh() -> tuple[TrustRecord, ...]:
    return tuple(initial_record(node) for node in NODES)


def played(
    zs_of_e: list[float], *, others: float = 6.0, records: tuple[TrustRecord, ...] | None = None
) -> list[TrustRecord]:
    """E's record after each round; the other four hospitals score ``others``."""
    records = records or fresh()
    history = []
    start = records[-1].as_of_round
    for number, z in enumerate(zs_of_e, start=start + 1):
        scores = [score(node, z=others) for node in NODES[:4]] + [score(E, z=z)]
        records = update_trust(records, scores, round_id=RoundId(number))
        history.append(records[-1])
    return history


def test_an_honest_hospital_is_trusted_within_three_rounds_and_stays_so() -> None:
    history = played([6.0] * 20)
    assert all(record.state is TrustState.TRUSTED for record in history[2:])
    assert history[-1].trust > 0.95
    assert history[-1].reason.startswith("trusted: agrees with the holdout reference")


def test_a_mislabelling_hospital_is_excluded_with_a_reason_a_hospital_can_read() -> None:
    history = played([-4.1, -4.1, -4.1])
    assert history[0].trust < 0.4
    assert history[-1].state is TrustState.QUARANTINED
    assert history[-1].reason == (
        "excluded: three rounds against the holdout reference, z = -4.1, accumulated -7.1"
    )


def test_weak_evidence_behind_noise_adds_up() -> None:
    # No single round is significant.
    history = played([-1.2] * 8)
    assert not any(record.components and record.components.z < -2 for record in history)
    assert history[4].trust < 0.7
    accumulated = [record.components.accumulated_z for record in history if record.components]
    assert accumulated == sorted(accumulated, reverse=True)
    assert history[-1].state is TrustState.QUARANTINED


def test_luck_behind_noise_does_not_make_a_hospital_trusted() -> None:
    # Good on paper in relation to the others, but within its own noise.
    records = fresh()
    for number in range(1, 11):
        scores = [score(node, z=6.0) for node in NODES[:4]]
        scores.append(HoldoutScore(E, projection=1.5, variance=25.0, loss_improvement=0.0))
        records = update_trust(records, scores, round_id=RoundId(number))
    assert records[-1].components is not None
    assert records[-1].components.accumulated_z < DEFAULT_POLICY.proven_z
    assert records[-1].state is TrustState.MARGINAL
    assert "too little evidence yet" in records[-1].reason


def after_one(record: TrustRecord, judged: HoldoutScore, *, others: float = 6.0) -> TrustRecord:
    scores = [*(score(node, z=others) for node in NODES[:4]), judged]
    return update_trust((*fresh()[:4], record), scores, round_id=RoundId(1))[-1]


def test_two_unlucky_rounds_behind_strong_noise_exclude_nobody() -> None:
    record = initial_record(E)
    # Three standard errors below a good update would be at -1.5; noise explains this.
    unlucky = HoldoutScore(E, projection=0.0, variance=2.25, loss_improvement=0.0)
    for _ in range(2):
        record = after_one(record, unlucky)
        assert record.state is TrustState.MARGINAL
        assert record.log_odds > -DEFAULT_POLICY.exclusion_odds
    # The same projections known precisely are those of a hospital that is of no use.
    precise = replace(unlucky, variance=0.1)
    record = initial_record(E)
    for _ in range(4):
        record = after_one(record, precise)
    assert record.state is TrustState.QUARANTINED


def test_the_test_of_good_against_useless_is_the_likelihood_ratio() -> None:
    # Upper quartile 1.5, so (1.5 μ - 1.5²/2) / v, and nine tenths of what was known.
    judged = HoldoutScore(E, projection=0.5, variance=2.0, loss_improvement=0.0)
    record = replace(initial_record(E), log_odds=1.0)
    assert after_one(record, judged).log_odds == pytest.approx(0.9 + (0.75 - 1.125) / 2.0)
    certain = replace(judged, variance=1e-6)
    assert after_one(record, certain).log_odds == -2 * DEFAULT_POLICY.exclusion_odds


def test_a_round_that_tells_little_moves_the_test_little() -> None:
    # Others at z = 2: upper quartile 0.5, and κ = (2 / 4)².
    judged = HoldoutScore(E, projection=0.0, variance=0.25, loss_improvement=0.0)
    after = after_one(initial_record(E), judged, others=2.0)
    assert after.log_odds == pytest.approx(0.25 * 0.5 * -0.25 / 0.25)


def test_trust_stops_at_the_edge_of_quarantine_until_the_test_is_decided() -> None:
    record = replace(initial_record(E), trust=0.45, evidence=-0.5)
    unlucky = HoldoutScore(E, projection=0.0, variance=2.25, loss_improvement=0.0)
    after = after_one(record, unlucky)
    assert after.components is not None
    assert after.components.quality == 0.0
    assert after.trust == DEFAULT_POLICY.excluded_below
    assert after.state is TrustState.MARGINAL
    decided = after_one(replace(record, log_odds=-3.0), unlucky)
    assert decided.state is TrustState.QUARANTINED


def helping_little(*, accumulated: float, sleeper_sum: float = 0.0) -> TrustRecord:
    """About to be excluded: little evidence for it, and certainly not as good as the others."""
    record = replace(initial_record(E), trust=0.45, evidence=-0.5, log_odds=-4.0)
    record = replace(record, sleeper_sum=sleeper_sum)
    # Faded by a round, 100 units of information hold this much of an accumulated z.
    return replace(record, signal=accumulated * 10.0 / 0.9, information=100.0 / 0.81)


def test_who_surely_helps_is_not_excluded_for_helping_little() -> None:
    little = HoldoutScore(E, projection=0.1, variance=0.01, loss_improvement=0.0)
    kept = after_one(helping_little(accumulated=6.0), little)
    assert kept.components is not None
    assert kept.components.accumulated_z > DEFAULT_POLICY.certain_z
    assert not kept.components.harm
    assert (kept.trust, kept.state) == (DEFAULT_POLICY.excluded_below, TrustState.MARGINAL)
    assert kept.reason.startswith("reduced weight")
    unsure = after_one(helping_little(accumulated=2.0), little)
    assert unsure.state is TrustState.QUARANTINED


def test_who_surely_helped_is_excluded_for_harm_and_for_sleeping() -> None:
    harm = HoldoutScore(E, projection=-0.5, variance=0.01, loss_improvement=0.0)
    assert after_one(helping_little(accumulated=6.0), harm).state is TrustState.QUARANTINED
    asleep = helping_little(accumulated=6.0, sleeper_sum=DEFAULT_POLICY.sleeper_limit + 1.0)
    little = HoldoutScore(E, projection=0.1, variance=0.01, loss_improvement=0.0)
    assert after_one(asleep, little).state is TrustState.QUARANTINED


def test_many_rounds_that_together_do_harm_count_as_harm() -> None:
    record = replace(initial_record(E), signal=-40.0, information=100.0, evidence=1.0)
    after = after_one(record, score(E, z=0.5))
    assert after.components is not None
    assert after.components.accumulated_z < DEFAULT_POLICY.accumulated_harm_z
    assert after.components.harm
    # A round that looks good is then worth no more than nothing.
    assert after.evidence == pytest.approx(0.5)


def test_one_round_far_against_the_holdout_set_does_harm_whatever_came_before() -> None:
    record = replace(initial_record(E), signal=400.0, information=100.0, evidence=1.0, trust=0.9)
    after = after_one(record, score(E, z=-3.1))
    assert after.components is not None
    assert after.components.accumulated_z > 0
    assert after.components.harm
    assert after.trust == pytest.approx(0.5 * (0.9 + after.components.quality))


@pytest.mark.parametrize("others", [-1.0, 0.0, 1.0])
def test_a_round_that_tells_nothing_does_not_turn_a_proven_hospital_out(others: float) -> None:
    # Overfitting late in training: a step of its own noise against the holdout set.
    proven = played([6.0] * 20)[-1]
    after = after_one(proven, score(E, z=-3.8), others=others)
    assert after.components is not None
    assert after.components.informativeness < DEFAULT_POLICY.harm_informativeness
    assert not after.components.harm
    assert after.state is TrustState.TRUSTED
    # Without that past, or in a round that tells something, it is harm.
    new = after_one(initial_record(E), score(E, z=-3.8), others=others)
    telling = after_one(proven, score(E, z=-3.8), others=2.0)
    for record in (new, telling):
        assert record.components is not None
        assert record.components.harm


def test_a_past_excuses_no_round_that_speaks_louder_than_it_does() -> None:
    proven = played([6.0] * 20)[-1]
    harm = [
        parts.harm
        for z in (-8.0, -20.0, -90.0)
        if (parts := after_one(proven, score(E, z=z), others=0.0).components) is not None
    ]
    assert harm == [False, True, True]


def test_a_sleeper_that_waits_for_rounds_that_tell_nothing_is_caught_all_the_same() -> None:
    # Early rounds were precise, so that what they say of it outlasts many late ones.
    proven = replace(played([6.0] * 20)[-1], signal=4000.0, information=1600.0)
    records = (*fresh()[:4], proven)
    seen = []
    for number in range(21, 29):
        scores = [score(node, z=0.5) for node in NODES[:4]] + [score(E, z=-5.0)]
        records = update_trust(records, scores, round_id=RoundId(number))
        seen.append(records[-1])
    harmful = [record.components is not None and record.components.harm for record in seen]
    assert harmful == [False, False, *[True] * 6]
    assert all(parts.accumulated_z > 3.0 for record in seen if (parts := record.components))
    assert seen[-1].state is TrustState.QUARANTINED


@pytest.mark.parametrize("z", [-2.0, -2.9])
def test_a_sleeper_that_no_single_round_betrays_is_caught_by_the_late_ones(z: float) -> None:
    proven = replace(played([6.0] * 20)[-1], signal=4000.0, information=1600.0)
    records = (*fresh()[:4], proven)
    seen = []
    for number in range(21, 33):
        scores = [score(node, z=0.5) for node in NODES[:4]] + [score(E, z=z)]
        records = update_trust(records, scores, round_id=RoundId(number))
        seen.append(records[-1])
    assert all(parts.accumulated_z > 3.0 for record in seen if (parts := record.components))
    first = next(i for i, record in enumerate(seen) if record.state is TrustState.QUARANTINED)
    assert first < 12
    assert seen[first].reason.startswith("excluded: late rounds against the holdout reference, z")
    told = seen[first].components
    assert told is not None
    assert told.recent_z < DEFAULT_POLICY.recent_harm_z


def test_good_rounds_cannot_be_saved_up_against_late_ones() -> None:
    for good in (5, 200):
        records = played([20.0] * good)[-1]
        assert records.components is not None
        assert records.components.recent_z == pytest.approx(DEFAULT_POLICY.recent_credit)


def test_a_hospital_whose_late_rounds_are_mostly_noise_is_not_taken_for_a_sleeper() -> None:
    # What overfits wavers: a mean of -0.7 with a deviation of 1.5.
    proven = replace(played([6.0] * 20)[-1], signal=4000.0, information=1600.0)
    records = (*fresh()[:4], proven)
    zs = np.random.default_rng(3).normal(-0.7, 1.5, size=40).clip(-2.9)
    for number, z in enumerate(zs, start=21):
        scores = [score(node, z=0.5) for node in NODES[:4]] + [score(E, z=float(z))]
        records = update_trust(records, scores, round_id=RoundId(number))
        assert records[-1].state is TrustState.TRUSTED


@pytest.mark.parametrize("length", [1.0, 1e-2, 1e-4, 1e-8])
def test_a_very_short_update_does_not_outweigh_all_others(length: float) -> None:
    honest = played([6.0] * 8)[-1]
    short = HoldoutScore(
        E, projection=length * 5.0, variance=(length / 4.0) ** 2, loss_improvement=0
    )
    record = after_one(honest, short)
    # At most as known as to a hundredth of a good one (of which the others' z makes 1.5).
    assert record.information <= honest.information + 1.0 / (0.01 * 1.5) ** 2 + 1e-6


def test_only_a_round_that_is_not_against_the_holdout_set_renews_the_excuse() -> None:
    proven = replace(played([6.0] * 20)[-1], signal=4000.0, information=1600.0)
    for between, harm in ((-2.0, True), (0.1, False)):
        record = proven
        for z in (-5.0, between, -5.0, between):
            record = after_one(record, score(E, z=z), others=0.5)
        last = after_one(record, score(E, z=-5.0), others=0.5)
        assert last.components is not None
        assert last.components.harm is harm


def test_a_sleeper_with_a_long_past_is_caught_by_the_sum_without_any_harm() -> None:
    records = (*fresh()[:4], played([6.0] * 20, others=6.0)[-1])
    for number in range(21, 51):
        scores = [score(node, z=16.0) for node in NODES[:4]] + [score(E, z=0.3)]
        records = update_trust(records, scores, round_id=RoundId(number))
        assert records[-1].components is not None
        assert not records[-1].components.harm
    assert records[-1].sleeper_sum > DEFAULT_POLICY.sleeper_limit
    assert records[-1].state is TrustState.QUARANTINED


def test_evidence_follows_a_noisy_hospital_less() -> None:
    steps = [
        after_one(
            initial_record(E), HoldoutScore(E, projection=1.5, variance=v, loss_improvement=0.0)
        ).evidence
        for v in (0.01, 1.0, 100.0)
    ]
    start = initial_record(E).evidence
    assert steps[0] > steps[1] > steps[2] > start
    # Reliability 1.5² / (1.5² + v) of a step of 0.3 towards 1.
    assert steps[1] == pytest.approx(start + 0.3 * 2.25 / 3.25 * (1.0 - start))


def test_trust_rises_by_a_quarter_of_the_distance() -> None:
    good = replace(initial_record(E), evidence=0.5)
    assert after_one(good, score(E, z=6.0)).trust == pytest.approx(0.7)


def test_a_sleeper_gets_nothing_for_one_good_round() -> None:
    record = replace(initial_record(E), trust=0.9, evidence=1.0, sleeper_sum=9.0, log_odds=2.0)
    after = after_one(record, score(E, z=6.0))
    assert after.components is not None
    assert after.components.quality == 0.0
    assert after.trust == pytest.approx(0.45)


def test_a_converged_model_ruins_nobody() -> None:
    # Without signal z is noise; κ keeps trust where it was.
    records = fresh()
    for number in range(1, 6):
        records = update_trust(
            records, [score(node, z=6.0) for node in NODES], round_id=RoundId(number)
        )
    zs = itertools.cycle([0.3, -0.8, 0.5, -0.2, 0.9, -1.1, 0.1])
    for number in range(6, 46):
        scores = [score(node, z=next(zs)) for node in NODES]
        records = update_trust(records, scores, round_id=RoundId(number))
    assert all(record.state is TrustState.TRUSTED for record in records)


def test_a_sleeper_is_caught_after_it_turns() -> None:
    history = played([6.0] * 10 + [-6.0] * 3)
    assert history[9].trust > 0.9
    assert history[10].components is not None
    assert history[10].components.harm
    assert history[-1].state is TrustState.QUARANTINED


def test_a_hospital_that_always_helps_a_little_less_is_caught_by_the_sum() -> None:
    records = fresh()
    for number in range(1, 41):
        scores = [score(node, z=16.0) for node in NODES[:4]]
        scores.append(score(E, z=0.0))
        records = update_trust(records, scores, round_id=RoundId(number))
    assert records[-1].sleeper_sum > DEFAULT_POLICY.sleeper_limit
    assert records[-1].state is TrustState.QUARANTINED
    assert records[-1].reason == (
        "excluded: persistently helps the holdout set less than others do, z = +0.0"
    )


def test_trust_falls_faster_than_it_rises() -> None:
    risen = played([6.0, 6.0])
    gain = risen[1].trust - risen[0].trust
    fallen = played([6.0, -6.0])
    assert fallen[0].trust - fallen[1].trust > 2 * gain


def test_one_hospital_that_overstates_does_not_lower_the_others() -> None:
    records = fresh()
    for number in range(1, 4):
        scores = [score(node, z=6.0) for node in NODES[:4]] + [score(E, z=6000.0)]
        records = update_trust(records, scores, round_id=RoundId(number))
    assert all(record.state is TrustState.TRUSTED for record in records[:4])


def test_a_hospital_without_a_score_keeps_its_record() -> None:
    records = fresh()
    after = update_trust(records, [score(A, z=6.0)], round_id=RoundId(1))
    assert after[1:] == records[1:]
    assert after[0].as_of_round == 1


def test_quarantine_ends_after_three_good_rounds_in_a_row_at_reduced_trust() -> None:
    excluded = played([-6.0, -6.0])[-1]
    assert excluded.state is TrustState.QUARANTINED
    others = tuple(played([6.0] * 2)[-1:]) * 4
    records = (
        *(replace(record, node_id=node) for node, record in zip(NODES[:4], others, strict=True)),
        excluded,
    )
    back = played([6.0] * 12, records=records)
    first = next(i for i, record in enumerate(back) if record.state is not TrustState.QUARANTINED)
    assert back[first].state is TrustState.MARGINAL
    assert back[first].trust <= DEFAULT_POLICY.readmit_at_most
    assert back[first - 1].rounds_clear >= 2
    assert "good ones needed to return" in back[first - 1].reason
    assert back[-1].state is TrustState.TRUSTED


def at_the_door(*, quarantines: int, clear: int, operator_hold: bool = False) -> TrustRecord:
    """A quarantined hospital whose next round will be good."""
    return replace(
        initial_record(E),
        trust=0.8,
        evidence=0.9,
        signal=20.0,
        information=1.0,
        state=TrustState.QUARANTINED,
        quarantines=quarantines,
        rounds_clear=clear,
        operator_hold=operator_hold,
    )


@pytest.mark.parametrize(("quarantines", "needed"), [(1, 3), (2, 6)])
def test_a_second_quarantine_doubles_the_wait(quarantines: int, needed: int) -> None:
    for clear, free in ((needed - 2, False), (needed - 1, True)):
        record = at_the_door(quarantines=quarantines, clear=clear)
        records = (*fresh()[:4], record)
        after = played([6.0], records=records)[-1]
        assert (after.state is not TrustState.QUARANTINED) is free


def test_from_the_third_quarantine_only_an_operator_releases() -> None:
    record = replace(initial_record(E), trust=0.45, quarantines=2)
    third = played([-9.0], records=(*fresh()[:4], record))[-1]
    assert third.operator_hold
    assert third.reason.startswith("excluded until an operator releases it")
    waiting = at_the_door(quarantines=3, clear=99, operator_hold=True)
    assert played([6.0], records=(*fresh()[:4], waiting))[-1].state is TrustState.QUARANTINED
    released = release(waiting, why="labels corrected")
    assert released.state is TrustState.MARGINAL
    assert released.trust == DEFAULT_POLICY.readmit_at_most
    assert released.quarantines == 3
    assert released.reason == "released by an operator: labels corrected"
    with pytest.raises(TrustError, match="nothing to release"):
        release(released, why="again")


def test_an_operators_quarantine_holds_whatever_the_scores() -> None:
    held = quarantine(initial_record(E), why="camera under repair")
    after = played([6.0] * 20, records=(*fresh()[:4], held))
    assert all(record.state is TrustState.QUARANTINED for record in after)
    assert after[-1].as_of_round == 20
    assert after[-1].components is not None
    assert after[-1].reason == (
        'excluded until an operator releases it: an operator said "camera under repair"; '
        "now agrees with the holdout reference, "
        f"accumulated z = {after[-1].components.accumulated_z:+.1f}"
    )
    (sent,) = update_trust(
        after[-1:], (), round_id=RoundId(21), violations={E: "its update was too long"}
    )
    assert sent.reason == (
        'excluded until an operator releases it: an operator said "camera under repair"; '
        "now its update was too long"
    )
    assert release(sent, why="repaired").quarantine_cause == ""


def test_the_cause_of_a_quarantine_is_kept_until_it_ends() -> None:
    excluded = played([-6.0, -6.0])[-1]
    cause = "one round against the holdout reference, z = -6.0, accumulated -6.0"
    assert excluded.quarantine_cause == cause
    back = played([6.0] * 12, records=(*fresh()[:4], excluded))
    causes = {record.state is TrustState.QUARANTINED: record.quarantine_cause for record in back}
    assert causes == {True: cause, False: ""}


def test_a_first_update_of_zeros_is_told_that_it_changes_nothing() -> None:
    nothing = HoldoutScore(E, projection=0.0, variance=0.0, loss_improvement=0.0)
    after = after_one(initial_record(E), nothing)
    assert after.reason.endswith(": its update changes nothing that the holdout set can see")


def test_a_hospital_newly_excluded_in_a_good_round_is_told_why() -> None:
    strict = replace(DEFAULT_POLICY, excluded_below=0.5)
    record = replace(initial_record(E), trust=0.31, evidence=0.9, signal=20.0, information=1.0)
    scores = [score(node, z=6.0) for node in NODES]
    after = update_trust((*fresh()[:4], record), scores, round_id=RoundId(1), policy=strict)[-1]
    assert after.components is not None
    assert after.components.quality > 0.5
    assert after.reason == "excluded: its trust of 0.48 is below 0.50"


def unproven(node: NodeId) -> HoldoutScore:
    """Good on paper, within its own noise."""
    return HoldoutScore(node, projection=1.5, variance=4.0, loss_improvement=0.0)


@pytest.mark.parametrize("cosine", [-1.0, -0.5])
def test_peers_can_demote_to_marginal_but_never_exclude(cosine: float) -> None:
    records = tuple(replace(record, trust=0.69) for record in fresh())
    disagrees = {E: PeerAgreement(cosine=cosine, noise=0.0)}
    for number in range(1, 13):
        scores = [*(score(node, z=6.0) for node in NODES[:4]), unproven(E)]
        records = update_trust(records, scores, round_id=RoundId(number), agreement=disagrees)
        parts = records[-1].components
        assert parts is not None
        if parts.accumulated_z < DEFAULT_POLICY.proven_z:
            assert DEFAULT_POLICY.peer_floor <= records[-1].trust < 0.5
            assert records[-1].state is TrustState.MARGINAL
            assert records[-1].reason == (
                f"reduced weight: points against the other hospitals, cosine {cosine:+.2f}"
            )
        if number == 1:
            alone = update_trust(fresh(), scores, round_id=RoundId(1))[-1]
            assert records[-1].trust < alone.trust
    # By now the holdout set has spoken for it, and the others are not asked.
    assert parts is not None
    assert parts.accumulated_z >= DEFAULT_POLICY.proven_z
    assert records[-1].trust > DEFAULT_POLICY.peer_floor


def test_a_hospital_the_holdout_set_speaks_for_is_not_demoted_for_being_different() -> None:
    records = fresh()
    lonely = {E: PeerAgreement(cosine=-0.9, noise=0.0)}
    for number in range(1, 10):
        scores = [score(node, z=6.0) for node in NODES]
        records = update_trust(records, scores, round_id=RoundId(number), agreement=lonely)
    assert records[-1].state is TrustState.TRUSTED


def test_a_cosine_that_privacy_noise_explains_demotes_nobody() -> None:
    scores = [*(score(node, z=6.0) for node in NODES[:4]), unproven(E)]
    for noise, is_demoted in ((0.2, False), (0.1, True)):
        peers = {E: PeerAgreement(cosine=-0.5, noise=noise)}
        with_peers = update_trust(fresh(), scores, round_id=RoundId(1), agreement=peers)
        alone = update_trust(fresh(), scores, round_id=RoundId(1))
        assert (with_peers[-1].trust < alone[-1].trust) is is_demoted


def test_a_violation_counts_against_a_hospital_with_its_reason() -> None:
    records = fresh()
    texts = []
    for number in (1, 2):
        records = update_trust(
            records,
            [score(node, z=6.0) for node in NODES[:4]],
            round_id=RoundId(number),
            violations={E: "its update held values that are not finite"},
        )
        texts.append(records[-1].reason)
    assert records[-1].state is TrustState.QUARANTINED
    assert texts[-1] == "excluded: its update held values that are not finite"
    assert records[0].trust > 0.7


def test_scores_that_make_no_sense_are_refused() -> None:
    good = score(A, z=1.0)
    for bad in (
        [replace(good, projection=math.nan)],
        [replace(good, variance=-1.0)],
        [replace(good, loss_improvement=math.inf)],
        [good, good],
        [replace(good, node_id=NodeId("stranger"))],
    ):
        with pytest.raises(TrustError):
            update_trust(fresh(), bad, round_id=RoundId(1))


def test_proof_of_gradient_quality_is_the_sigmoid_of_ten_times_the_improvement() -> None:
    at = {x: replace(score(A, z=0), loss_improvement=x).pogq for x in (-1e9, -0.1, 0.0, 0.1, 1e9)}
    assert at[0.0] == 0.5
    assert at[0.1] == pytest.approx(1 / (1 + math.exp(-1)))
    assert at[-0.1] == pytest.approx(1 - at[0.1])
    assert at[-1e9] < 1e-300
    assert at[1e9] == 1.0


TRUSTS = (0.0, 0.2, 0.39, 0.41, 0.55, 0.69, 0.71, 1.0)
RECORDS = [
    replace(
        initial_record(E),
        trust=trust,
        state=state,
        evidence=evidence,
        quarantines=quarantines,
        rounds_clear=clear,
        operator_hold=hold,
    )
    for trust, state, evidence, quarantines, clear, hold in itertools.product(
        TRUSTS, TrustState, (-1.5, 0.2, 1.5), (0, 1, 3), (0, 5), (False, True)
    )
    # What update_trust can have left behind.
    if (state is TrustState.QUARANTINED or (not hold and trust >= 0.4))
    and (state is not TrustState.TRUSTED or trust >= 0.7)
    and (state is not TrustState.MARGINAL or trust < 0.7)
]


def test_every_record_and_every_score_leave_a_sound_record() -> None:
    peers = {E: PeerAgreement(cosine=-1.0, noise=0.0)}
    for record, z, agreement in itertools.product(
        RECORDS, (-50.0, -3.1, -1.0, 0.0, 2.0, 50.0), (None, peers)
    ):
        records = (*fresh()[:4], record)
        scores = [score(node, z=6.0) for node in NODES[:4]] + [score(E, z=z)]
        after = update_trust(records, scores, round_id=RoundId(1), agreement=agreement)[-1]
        alone = update_trust(records, scores, round_id=RoundId(1))[-1]
        case = (record, z, agreement)
        assert 0.0 <= after.trust <= 1.0, case
        assert abs(after.evidence) <= 1.5, case
        assert after.reason, case
        match after.state:
            case TrustState.TRUSTED:
                assert after.trust >= 0.7, case
            case TrustState.MARGINAL:
                assert 0.4 <= after.trust < 0.7, case
            case TrustState.QUARANTINED:
                assert after.quarantines >= 1 or record.state is TrustState.QUARANTINED, case
        if record.state is TrustState.QUARANTINED and after.state is not TrustState.QUARANTINED:
            assert not record.operator_hold, case
            assert after.trust <= DEFAULT_POLICY.readmit_at_most, case
        # Peers may demote, never exclude and never promote.
        assert after.trust <= alone.trust, case
        excluded = TrustState.QUARANTINED
        assert (after.state is excluded) == (alone.state is excluded), case


@given(st.lists(st.floats(-20, 20), min_size=5, max_size=40))
def test_the_same_scores_give_the_same_records(zs: list[float]) -> None:
    assert [asdict(record) for record in played(zs)] == [asdict(record) for record in played(zs)]


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=30), st.floats(1e-6, 1e6))
def test_the_scale_of_the_loss_does_not_matter(zs: list[float], scale: float) -> None:
    plain, scaled = fresh(), fresh()
    for number, z in enumerate(zs, start=1):
        each = [(node, 6.0) for node in NODES[:4]] + [(E, z)]
        plain = update_trust(plain, [score(n, z=v) for n, v in each], round_id=RoundId(number))
        scaled = update_trust(
            scaled, [score(n, z=v, scale=scale) for n, v in each], round_id=RoundId(number)
        )
    for one, other in zip(plain, scaled, strict=True):
        assert one.trust == pytest.approx(other.trust, abs=1e-6)
