from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from matl_common.ids import NodeId, RoundId
from matl_coordinator.core.robust.root import reference_rank
from matl_coordinator.core.trust import (
    DEFAULT_POLICY,
    HoldoutScore,
    TrustRecord,
    TrustState,
    Weighting,
    aggregation_weights,
    initial_record,
    update_trust,
)
from matl_coordinator.core.trust_evidence import reference_of

SIZES = [(5, 2), (20, 9), (20, 4), (3, 1), (11, 5)]


def played(
    n: int,
    f: int,
    *,
    hostile: Callable[[int], float],
    rounds: int = 25,
    declared: int | None = None,
) -> tuple[TrustRecord, ...]:
    """Records after rounds in which the last f of n project ``hostile(round)``, the rest 1."""
    records = tuple(initial_record(NodeId(f"h{index:02d}")) for index in range(n))
    for number in range(1, rounds + 1):
        scores = [
            HoldoutScore(record.node_id, 1.0 if index < n - f else hostile(number), 0.04, 0.0)
            for index, record in enumerate(records)
        ]
        records = update_trust(
            records,
            scores,
            round_id=RoundId(number),
            byzantine=f,
        )
    return records


def states(records: tuple[TrustRecord, ...]) -> set[TrustState]:
    return {record.state for record in records}


@pytest.mark.parametrize(("n", "f"), SIZES)
def test_however_much_the_hostile_overstate_the_honest_stay_trusted(n: int, f: int) -> None:
    records = played(n, f, hostile=lambda _: 100.0)
    assert states(records[: n - f]) == {TrustState.TRUSTED}


@pytest.mark.parametrize(("n", "f"), SIZES)
def test_however_much_the_hostile_understate_they_are_excluded(n: int, f: int) -> None:
    for depth in (-0.5, -1.0, -100.0):
        records = played(n, f, hostile=lambda _, depth=depth: depth)  # type: ignore[misc] # the default binds the loop's value
        assert states(records[: n - f]) == {TrustState.TRUSTED}
        assert states(records[n - f :]) == {TrustState.QUARANTINED}


@pytest.mark.parametrize(("n", "f"), SIZES)
def test_overstating_first_and_turning_later_ruins_nobody_else(n: int, f: int) -> None:
    records = played(n, f, hostile=lambda number: 100.0 if number <= 5 else -2.0, rounds=12)
    assert states(records[: n - f]) == {TrustState.TRUSTED}
    assert states(records[n - f :]) == {TrustState.QUARANTINED}


def test_an_update_of_zeros_is_excluded_although_nothing_speaks_against_it() -> None:
    # Its projection is known without error, so it has no z.
    records = tuple(initial_record(NodeId(name)) for name in "abcde")
    for number in range(1, 16):
        scores = [HoldoutScore(record.node_id, 1.0, 0.04, 0.0) for record in records[:4]]
        scores.append(HoldoutScore(records[4].node_id, 0.0, 0.0, 0.0))
        records = update_trust(records, scores, round_id=RoundId(number), byzantine=1)
    assert states(records[:4]) == {TrustState.TRUSTED}
    assert records[4].state is TrustState.QUARANTINED


def test_the_reference_is_safe_on_both_sides_wherever_the_honest_are_a_majority() -> None:
    for n in range(1, 60):
        for f in range((n - 1) // 2 + 1):
            rank = reference_rank(n, f)
            # f above it cannot all be hostile and reach it; n - f below it neither.
            assert f + 1 <= rank <= n - f
            assert rank >= (n - f) / 2
        # Fewer came than may be hostile: still a rank of those who did.
        assert 1 <= reference_rank(n, n) <= n


def test_two_whom_more_than_declared_attack_become_trusted_and_no_round_of_theirs_is_held() -> None:
    names = [NodeId(name) for name in "abcde"]
    records = tuple(initial_record(name) for name in names)
    for number in range(1, 7):
        projections = (4.0, 1.0, -4.0, -5.0, -6.0)
        scores = [
            HoldoutScore(name, projection, 0.04, 0.0)
            for name, projection in zip(names, projections, strict=True)
        ]
        records = update_trust(records, scores, round_id=RoundId(number), byzantine=2)
        shared = aggregation_weights(records, dict.fromkeys(names, 100), present=names, f=2)
        # The three harm in every round, the first as well; two newcomers are enough for one.
        assert isinstance(shared, Weighting)
        assert {name for name, share in shared.shares.items() if share} == set(names[:2])
    assert states(records[:2]) == {TrustState.TRUSTED}
    assert states(records[2:]) == {TrustState.QUARANTINED}


def test_an_honest_hospital_keeps_its_excuse_where_no_more_than_declared_attack() -> None:
    names = [NodeId(name) for name in "abcde"]
    records = tuple(initial_record(name) for name in names)

    def play(number: int, *scores: tuple[float, float]) -> tuple[TrustRecord, ...]:
        return update_trust(
            records,
            [HoldoutScore(n, *score, 0.0) for n, score in zip(names, scores, strict=True)],
            round_id=RoundId(number),
            byzantine=2,
        )

    for number in range(1, 9):
        records = play(number, *[(1.0, 0.04)] * 5)
    # It overshoots while the two turn: three of five then do harm, and two are hostile.
    for number in (9, 10):
        records = play(number, (0.3, 0.01), (0.3, 0.01), (-0.35, 0.01), *[(-1.0, 0.04)] * 2)
        assert states(records[:3]) == {TrustState.TRUSTED}


@pytest.mark.parametrize(
    ("projections", "out", "reference"),
    [
        # The third largest, whoever is out.
        ((3.0, 2.0, 1.0, -4.0, -5.0), "cde", 1.0),
        # It is none, and more than two are out: the least of the others, however long the best is.
        ((100.0, 2.0, -3.0, -4.0, -5.0), "cde", 2.0),
        ((100.0, 2.0, -3.0, 50.0, -5.0), "cde", 2.0),
        ((3.0, -2.0, -0.1, -4.0, 2.0), "bcd", 2.0),
        ((3.0, 2.0, -3.0, -4.0, -5.0), "bcde", 3.0),
        # No more than two are out; or nobody is left; or one of the others is no good either.
        ((3.0, 2.0, -3.0, -4.0, -5.0), "de", 0.0),
        ((3.0, 2.0, -3.0, -4.0, -5.0), "abcde", 0.0),
        ((3.0, -2.0, -3.0, -4.0, -5.0), "cde", 0.0),
    ],
)
def test_where_more_than_declared_are_out_the_reference_is_the_least_of_the_others(
    projections: tuple[float, ...], out: str, reference: float
) -> None:
    scores = [
        HoldoutScore(NodeId(name), projection, 0.04, 0.0)
        for name, projection in zip("abcde", projections, strict=True)
    ]
    quarantined = {NodeId(name) for name in out}
    standing = {NodeId(name) for name in "abcde"} - quarantined
    found = reference_of(
        scores, f=2, policy=DEFAULT_POLICY, quarantined=quarantined, standing=standing
    )
    assert found.projection == reference
    assert found.informativeness == (1.0 if reference else 0.0)


def test_one_alone_is_no_reference_where_the_others_are_only_absent() -> None:
    names = [NodeId(name) for name in "abcdef"]
    records = [initial_record(name) for name in names]
    out = [replace(each, state=TrustState.QUARANTINED, trust=0.3) for each in records[2:4]]
    scores = [HoldoutScore(names[0], 1.0, 0.04, 0.0)]
    scores += [HoldoutScore(name, -1.0, 0.04, 0.0) for name in names[2:4]]

    def informativeness(standing: Sequence[TrustRecord]) -> float:
        after = update_trust([*standing, *out], scores, round_id=RoundId(2), byzantine=1)
        assert after[0].components is not None
        return after[0].components.informativeness

    # Alone of three that stand, and the last that stands.
    assert informativeness([records[0], *records[4:]]) == 0.0
    assert informativeness(records[:1]) == 1.0


def test_as_many_as_declared_out_are_no_reason_to_ask_fewer_when_others_are_absent() -> None:
    scores = [
        HoldoutScore(NodeId(name), projection, 0.04, 0.0)
        for name, projection in zip("abde", (3.0, 2.0, -4.0, -5.0), strict=True)
    ]
    for out, reference in (("de", 0.0), ("cde", 2.0)):
        quarantined = {NodeId(name) for name in out}
        found = reference_of(scores, f=2, policy=DEFAULT_POLICY, quarantined=quarantined)
        assert found.projection == reference


def test_those_in_quarantine_cannot_raise_what_the_others_are_measured_by() -> None:
    projections = (3.0, 2.0, 100.0, 100.0, *[-4.0] * 5)
    names = [NodeId(f"h{index}") for index in range(len(projections))]
    scores = [
        HoldoutScore(name, projection, 0.04, 0.0)
        for name, projection in zip(names, projections, strict=True)
    ]
    found = reference_of(scores, f=4, policy=DEFAULT_POLICY, quarantined=set(names[2:]))
    assert found.projection == 2.0


def test_what_two_are_left_with_tells_as_much_as_its_z() -> None:
    left = [HoldoutScore(NodeId("a"), 3.0, 0.04, 0.0), HoldoutScore(NodeId("b"), 2.0, 1.0, 0.0)]
    gone = [HoldoutScore(NodeId(name), -4.0, 0.04, 0.0) for name in "cde"]
    found = reference_of(
        [*left, *gone], f=2, policy=DEFAULT_POLICY, quarantined={score.node_id for score in gone}
    )
    assert found.informativeness == pytest.approx((2.0 / DEFAULT_POLICY.informative_z) ** 2)


def test_the_on_off_attacker_counts_in_fewer_rounds_each_time() -> None:
    n, f = 5, 2
    records = tuple(initial_record(NodeId(f"h{index:02d}")) for index in range(n))
    counted = []
    for number in range(1, 61):
        value = 1.0 if (number - 1) // 5 % 2 == 0 else -3.0
        scores = [
            HoldoutScore(record.node_id, 1.0 if index < n - f else value, 0.04, 0.0)
            for index, record in enumerate(records)
        ]
        records = update_trust(records, scores, round_id=RoundId(number), byzantine=f)
        parts = records[-1].components
        assert parts is not None
        counted.append(records[-1].state is not TrustState.QUARANTINED and not parts.harm)
    assert all(counted[:5])
    # Every harmful round counts for nothing from its first on, and it runs out of chances.
    assert not any(count for round_, count in enumerate(counted) if round_ // 5 % 2)
    assert sum(counted[10:]) < 10
    assert not any(counted[30:])
    # Five good rounds in a row are fewer than the second quarantine asks for.
    assert records[-1].state is TrustState.QUARANTINED
    assert states(records[: n - f]) == {TrustState.TRUSTED}


def test_without_scores_nothing_is_known_and_nothing_moves() -> None:
    records = (initial_record(NodeId("a")),)
    assert update_trust(records, (), round_id=RoundId(1), policy=DEFAULT_POLICY) == records
