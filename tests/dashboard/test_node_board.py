"""What is shown of one hospital, from what its daemon's metrics and files tell."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import generate_latest

from matl.dashboard.board import Tile, Tone
from matl.dashboard.node_board import node_board_of
from matl.dashboard.node_snapshot import DataState, NodeSnapshot, Receipt, parse_metrics
from matl.dashboard.snapshot import Proof
from matl_common.protocol import Standing
from matl_participant.metrics import Metrics
from tests.dashboard.samples import NOW


def hospital(metrics: Metrics) -> NodeSnapshot:
    """A hospital that nothing is wrong with, and whose daemon tells this."""
    return NodeSnapshot(
        at=NOW,
        node_id="hospital_a",
        coordinator="spiffe://dr-study/coordinator/main",
        budgets=(),
        verdicts=(),
        data=DataState(("image", "label", "group_key")),
        dataset="aptos",
        receipts=(),
        admitted=0,
        metrics=parse_metrics(generate_latest(metrics.registry).decode()),
        metrics_problem="",
        cosigned_size=0,
        evidence=0,
    )


def tile(snapshot: NodeSnapshot, label: str) -> Tile:
    """The tile of this name."""
    return next(each for each in node_board_of(snapshot).tiles if each.label == label)


def test_what_a_daemon_that_has_just_begun_was_not_told_is_no_figure_and_no_alert() -> None:
    begun = hospital(Metrics())
    assert tile(begun, "Trust").value == "–"
    assert node_board_of(begun).alerts == ()


def test_what_a_daemon_was_told_is_shown() -> None:
    metrics = Metrics()
    metrics.show_standing(Standing(0.0, "quarantined", 1, "its updates are noise"))
    metrics.certificate_valid.set(86_400.0)
    told = hospital(metrics)
    assert (tile(told, "Trust").value, tile(told, "Trust").tone) == ("0.00", Tone.BAD)
    assert tile(told, "Trust").note == "quarantined, by the coordinator's word"
    assert [each.says for each in node_board_of(told).alerts] == ["in 1.0 days"]


def test_receipts_are_all_counted_though_the_newest_are_shown() -> None:
    shown = tuple(Receipt(n, "a" * 64, NOW, n, Proof.PROVEN) for n in range(12))
    found = tile(replace(hospital(Metrics()), receipts=shown, admitted=40), "Receipts")
    assert (found.value, found.note) == ("40", "12 of the newest 12 proven here")
