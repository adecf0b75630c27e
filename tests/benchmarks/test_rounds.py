from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.rounds.growth import line_through
from benchmarks.rounds.peers import PeerFailedError, parse_result
from benchmarks.rounds.processes import Usage, cpu_between, peak_between
from benchmarks.rounds.site import MILLION, Site, bytes_of, resnet50
from benchmarks.rounds.stand_in import DRIFT, STEP, StandIn
from benchmarks.rounds.study import found_in, times_of
from matl_common.ids import NodeId
from matl_common.tensors import TensorSpec, parse_schema, store_model

PHASES = ("collecting", "scoring", "aggregating", "evaluating", "released")


def test_resnet50_has_the_size_that_peers_are_measured_with() -> None:
    tensors = resnet50()
    assert (len(tensors), bytes_of(tensors)) == (267, 102_440_608)
    assert bytes_of(MILLION) == 4_000_000


def told(at: float, event: str, **facts: object) -> str:
    moment = datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"event": event, "timestamp": moment, **facts})


@pytest.fixture
def site(tmp_path: Path) -> Site:
    names = (NodeId("hospital_000"), NodeId("hospital_001"))
    return Site(tmp_path, names, MILLION, rounds=3)


def test_a_round_lasts_until_the_next_one_opens_and_the_first_is_told_apart(site: Site) -> None:
    lines = ["not json"]
    for number, opened in enumerate((100.0, 110.0, 114.0)):
        for phase, after in zip(PHASES, (0.0, 2.0, 2.5, 3.0, 3.5), strict=True):
            lines.append(told(opened + after, "round_phase", phase=phase, round=number + 1))
    site.log(NodeId("coordinator")).write_text("\n".join(lines))
    samples = [
        Usage(
            at=float(at),
            cpu_seconds={"coordinator": at - 99.0, "hospitals_0": 2 * (at - 99.0)},
            resident_bytes={"coordinator": 1000 + at, "hospitals_0": 7},
        )
        for at in range(99, 119)
    ]
    found = found_in(site, samples)
    assert found.first.seconds == pytest.approx(10.0)
    (second,) = found.costs
    assert (found.seconds, second.whole_cpu_seconds) == pytest.approx((4.0, 12.0))
    assert second.phase_seconds == pytest.approx(
        dict(zip(PHASES, (2.0, 0.5, 0.5, 0.5, 0.5), strict=True))
    )
    assert second.coordinator_peak_bytes == 1114
    # Of the whole study, to the last release.
    assert (found.coordinator_peak_bytes, found.hospitals_peak_bytes) == (1117, 7)


def test_events_are_found_by_name_and_facts(site: Site) -> None:
    lines = [told(1.0, "round_phase", phase="released"), told(2.0, "round_phase", phase="aborted")]
    site.log(NodeId("coordinator")).write_text("\n".join(lines))
    assert times_of(site, "round_phase", phase="aborted") == [2.0]
    assert times_of(site, "round_phase") == [1.0, 2.0]
    assert times_of(site, "study_paused") == []


def test_cpu_of_a_program_that_began_meanwhile_counts_from_its_beginning() -> None:
    samples = [
        Usage(0.0, {"a": 5.0}, {"a": 1}),
        Usage(10.0, {"a": 6.0, "b": 2.0}, {"a": 3, "b": 9}),
    ]
    assert cpu_between(samples, 0.2, 9.9) == {"a": 1.0, "b": 2.0}
    assert peak_between(samples, "a", 0.0, 10.0) == 3
    assert peak_between(samples, "c", 0.0, 10.0) == 0


def test_a_line_is_found_whatever_the_sizes() -> None:
    line = line_through([(n, 0.5 + 0.02 * n) for n in (5, 20, 200)])
    assert (line.fixed, line.each) == pytest.approx((0.5, 0.02))
    assert line.worst == pytest.approx(0.0, abs=1e-9)
    bent = line_through([(n, 0.001 * n**2) for n in (5, 20, 200)])
    assert bent.worst > 0.2


@pytest.mark.parametrize("nested", [False, True])
def test_both_peers_results_are_understood(nested: bool) -> None:  # noqa: FBT001
    cpu = {"cpu_s_per_round": 14.5}
    result = {
        "sec_per_round": [13.0, 9.0, 9.4],
        "rounds_window": cpu if nested else {},
        "server_peak_rss_mb": 1600,
        "client_peak_rss_mb": 3200,
        **({} if nested else cpu),
    }
    found = parse_result("flare", result)
    assert (found.median_seconds, found.cpu_seconds) == (9.4, 14.5)
    assert found.server_peak_bytes == 1600 << 20


@pytest.mark.parametrize("told", [{"error": "server died"}, {"sec_per_round": []}, {}])
def test_a_peer_without_rounds_has_no_figures(told: dict[str, object]) -> None:
    with pytest.raises(PeerFailedError):
        parse_result("flare", told)


def test_stand_in_updates_differ_and_have_the_models_size(tmp_path: Path) -> None:
    schema = parse_schema([TensorSpec("w", (1000,))])
    digest = store_model(tmp_path, schema, [bytes(schema.update_bytes)])
    stand_in, found = StandIn(), set()
    for node, number in (("a", 1), ("a", 2), ("b", 1), ("a", 1)):
        out = tmp_path / f"round-{number:06d}.f32"
        request = {
            "job": "train",
            "model_path": str(tmp_path / f"{digest}.safetensors"),
            "out_path": str(out),
        }
        assert stand_in.answer(node, request) == {"bytes": schema.update_bytes}
        found.add(out.read_bytes())
    assert len(found) == 3
    assert STEP > DRIFT > 0.0
