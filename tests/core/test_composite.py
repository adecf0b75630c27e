from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from matl_common.ids import NodeId, RoundId
from matl_coordinator.core.composite import SCHEDULED, Activity, activity_of, composite_of
from matl_coordinator.core.trust import (
    HoldoutScore,
    TrustPolicy,
    TrustRecord,
    TrustState,
    initial_record,
    update_trust,
)

A, B, C = (NodeId(name) for name in "abc")
PAPER = TrustPolicy(composite="matl-paper")
MONDAY = datetime(2026, 3, 2, 2, 0, tzinfo=UTC)


def test_the_composite_weighs_its_parts_as_the_paper_does() -> None:
    found = composite_of(pogq=0.5, clones=1, n=5, activity=Activity(-0.5, 0.25))
    assert found.tcdm == pytest.approx(1 - 0.6 * 0.25 - 0.4 * 0.5)
    assert found.score == pytest.approx(0.4 * 0.5 + 0.3 * 0.65 + 0.3 * 0.25)
    assert composite_of(pogq=1.0, clones=0, n=1, activity=Activity(0.0, 1.0)).score == 1.0


def test_everybody_a_clone_has_no_diversity() -> None:
    assert composite_of(pogq=1.0, clones=4, n=5).tcdm == 0.0


def test_a_daemon_on_a_schedule_cannot_pass_058() -> None:
    best = composite_of(pogq=1.0, clones=0, n=20, activity=SCHEDULED)
    assert best.score == pytest.approx(0.58)
    nightly = [MONDAY + timedelta(days=day) for day in range(30)]
    assert composite_of(
        pogq=1.0, clones=0, n=20, activity=activity_of(nightly, nightly)
    ).score == pytest.approx(0.58)


def played(policy: TrustPolicy, *, activity: Activity = SCHEDULED) -> TrustRecord:
    """A perfect hospital's record after 60 rounds."""
    records: tuple[TrustRecord, ...] = tuple(initial_record(node) for node in (A, B, C))
    for number in range(1, 61):
        scores = [HoldoutScore(node, 1.0, 0.01, loss_improvement=10.0) for node in (A, B, C)]
        records = update_trust(
            records,
            scores,
            round_id=RoundId(number),
            activity=dict.fromkeys((A, B, C), activity),
            policy=policy,
        )
    return records[0]


def test_selected_it_decides_and_a_scheduled_hospital_is_never_trusted() -> None:
    record = played(PAPER)
    assert record.trust == pytest.approx(0.58, abs=1e-3)
    assert record.state is TrustState.MARGINAL
    assert record.reason == (
        "reduced weight: composite of MATL's paper 0.58, from PoGQ 1.00, diversity 0.60 and "
        "entropy 0.00"
    )
    irregular = played(PAPER, activity=Activity(0.0, 1.0))
    assert irregular.state is TrustState.TRUSTED


def test_not_selected_it_is_reported_and_changes_nothing() -> None:
    record = played(TrustPolicy())
    assert record.state is TrustState.TRUSTED
    assert record.components is not None
    assert record.components.composite == pytest.approx(0.58)
    assert record.components.tcdm == pytest.approx(0.6)
    assert record.components.entropy == 0.0
    other = played(TrustPolicy(), activity=Activity(0.0, 1.0))
    assert other.trust == record.trust


def test_selected_a_hospital_whose_updates_harm_loses_trust_only_by_its_score() -> None:
    record = initial_record(A)
    bad = HoldoutScore(A, -5.0, 0.01, loss_improvement=-10.0)
    for number in range(1, 40):
        (record,) = update_trust([record], [bad], round_id=RoundId(number), policy=PAPER)
    assert record.trust == pytest.approx(0.18, abs=0.01)
    assert record.state is TrustState.QUARANTINED
    assert record.components is not None
    assert not record.components.harm


def test_activity_is_measured_from_hours_and_from_the_federations_times() -> None:
    nightly = [MONDAY + timedelta(days=day) for day in range(24)]
    spread = [MONDAY + timedelta(days=day, hours=day) for day in range(24)]
    assert activity_of(nightly, nightly) == Activity(1.0, 0.0)
    assert activity_of(spread, nightly).entropy == pytest.approx(1.0)
    assert activity_of(spread, nightly).temporal_correlation > 0.9
    assert activity_of([], []) == SCHEDULED
    assert replace(activity_of([MONDAY], [MONDAY]), entropy=0.0) == SCHEDULED
