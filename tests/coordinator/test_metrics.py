"""What the coordinator shows Prometheus, and that strangers make no label."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import grpc
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from matl_common.clock import utc_now
from matl_common.identity.allowlist import RefusalReason
from matl_common.ids import Digest, RoundId
from matl_coordinator.core.rounds import Phase
from matl_coordinator.core.trust_record import TrustState
from matl_coordinator.metrics import LOG_TABLES, REFUSED_PEERS, Metrics
from matl_coordinator.rpc.handshakes import _REASONS
from matl_coordinator.rpc.server import OTHER, served_methods
from matl_coordinator.service.readings import Verification
from matl_coordinator.service.vitals import VitalSigns
from matl_coordinator.start_record import show_standing
from matl_coordinator.store.schema import metadata
from matl_coordinator.store.sql import SqlStore
from tests.contracts.samples import a_round
from tests.coordinator.harness import (
    NODES,
    OPERATOR,
    Running,
    honest_update,
    make_site,
    next_round,
    play,
    running,
    seal,
)
from tests.coordinator.served import served

Sample = tuple[str, tuple[tuple[str, str], ...]]


def samples(meter: Metrics) -> dict[Sample, float]:
    text = generate_latest(meter.registry).decode()
    return {
        (each.name, tuple(sorted(each.labels.items()))): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
    }


def value(meter: Metrics, name: str, **labels: str) -> float:
    return samples(meter)[name, tuple(sorted(labels.items()))]


def label_values(meter: Metrics, label: str) -> set[str]:
    return {found for _, labels in samples(meter) for key, found in labels if key == label}


def vital_signs(coordinator: Running) -> VitalSigns:
    assert isinstance(coordinator.store, SqlStore)
    return VitalSigns(
        register=coordinator.register,
        overview=coordinator.use_cases.overview,
        checkpoints=coordinator.use_cases.checkpoints,
        watched=coordinator.store,
        spool=coordinator.use_cases.intake._spool,
        enrolled=lambda: coordinator.roster.participants,
        backed_up=lambda: datetime(2026, 11, 28, tzinfo=UTC),
        meter=coordinator.meter,
        clock=utc_now,
    )


def test_what_a_stranger_says_becomes_no_label(tmp_path: Path) -> None:
    with served(make_site(tmp_path)) as federation:
        meter = federation.coordinator.meter
        before = {
            sample: each for sample, each in samples(meter).items() if "_created" not in sample[0]
        }
        for node, path in (
            (NODES[0], "/matl.v1.FederationService/Surprise"),
            (NODES[0], "/stranger.of.0xdeadbeef/Anything"),
            (NODES[0], "/matl.v1.OperationsService/Pause"),
            (OPERATOR, "/matl.v1.FederationService/OpenUpdate"),
        ):
            with federation.channel(node) as channel, pytest.raises(grpc.RpcError):
                channel.unary_unary(path, bytes)(b"\xff\xfe stranger", timeout=20)
        new = {
            label
            for name, labels in samples(meter)
            if "_created" not in name and (name, labels) not in before
            for label in labels
        }
        calls = sum(
            each
            for (name, labels), each in samples(meter).items()
            if name == "matl_rpc_calls_total" and ("method", OTHER) in labels
        )
        refused = value(meter, "matl_refused_peers_total", reason="unknown_method")
    names = {path.rpartition(".")[2] for path in served_methods()}
    # So that the first fault of a method is an increase.
    for method, code in product(names, ("INTERNAL", "UNKNOWN")):
        sample = "matl_rpc_calls_total", (("code", code), ("method", method))
        assert before[sample] == 0.0, sample
    assert calls == refused == 2
    assert {found for key, found in new if key == "method"} <= {OTHER, *names}
    assert {found for key, found in new if key == "code"} <= {s.name for s in grpc.StatusCode}
    told = ("Surprise", "0xdeadbeef", "Anything", "stranger")
    assert not [found for _, found in new if any(each in found for each in told)]
    # The round that the coordinator schedules meanwhile has phases of its own.
    assert {key for key, _ in new} <= {"method", "code", "le", "phase", "status"}


def test_every_reason_for_a_refusal_is_there_from_the_start() -> None:
    by_tls = {reason for _, reason in _REASONS} | {"handshake_failed"}
    assert {*RefusalReason, *by_tls} <= set(REFUSED_PEERS)
    assert label_values(Metrics(), "reason") >= set(REFUSED_PEERS)
    # Nodes of the tree are the entries' hashes; whose turn it is, nobody is told.
    tables = {name for name in metadata.tables if name.startswith("log_")}
    assert tables - {"log_nodes", "log_turn"} == set(LOG_TABLES)


async def test_a_look_tells_of_the_study_its_budgets_and_its_log(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    async with running(site) as coordinator:
        meter, signs = coordinator.meter, vital_signs(coordinator)
        start, *_ = await asyncio.gather(*(next_round(coordinator, node) for node in NODES))
        assert start is not None
        sealed = seal(site, NODES[0], start, coordinator.plan, honest_update(NODES[0], start))
        intake, sender = coordinator.use_cases.intake, site.allowed(NODES[0])
        progress = await intake.open_update(sender, sealed.envelope, sealed.hashes)
        reception = await intake.receive(sender, progress.update_digest)
        await intake.take(reception, 0, sealed.chunks[0])
        await reception.settle()
        meter.vitals_taken(await signs.look())
        assert value(meter, "matl_uploads_in_progress") == 1.0
        assert 0.0 < value(meter, "matl_upload_ratio", node=NODES[0]) < 1.0
        assert value(meter, "matl_spool_reserved_bytes") >= sum(map(len, sealed.chunks))
        assert value(meter, "matl_round_updates", status="pending") == len(NODES)
        assert value(meter, "matl_hospital_declared_epsilon", node=NODES[0]) == 0.0

        await intake.let_go(reception)
        await play(coordinator)
        await coordinator.use_cases.checkpoints.newest()
        meter.vitals_taken(found := await signs.look())

    assert value(meter, "matl_rounds_released") == value(meter, "matl_rounds_planned") == 2
    assert value(meter, "matl_round_phase", phase="released") == 1.0
    assert value(meter, "matl_round_updates", status="admitted") == len(NODES)
    assert value(meter, "matl_round_phase_seconds_count", phase="scoring") >= 1
    for node in NODES:
        assert math.isinf(value(meter, "matl_hospital_declared_epsilon", node=node))
        assert 0.0 < value(meter, "matl_hospital_declared_budget_ratio", node=node) <= 1.0
        assert value(meter, "matl_hospital_seen_timestamp_seconds", node=node) > 0
        assert value(meter, "matl_witness_cosigned_entries", node=node) == 0
    assert found.log.signed == found.log.size == value(meter, "matl_log_entries")
    # Nobody has cosigned: the oldest entry is the log's first.
    first = datetime.fromtimestamp(value(meter, "matl_log_unwitnessed_timestamp_seconds"), UTC)
    assert first <= found.at
    assert value(meter, "matl_log_witnessed_entries") == 0


async def test_what_a_removed_hospital_was_shown_with_is_gone(tmp_path: Path) -> None:
    async with running(make_site(tmp_path)) as coordinator:
        await play(coordinator)
        meter, signs = coordinator.meter, vital_signs(coordinator)
        meter.vitals_taken(await signs.look())
        assert label_values(meter, "node") == set(NODES)
        remaining = dict(coordinator.roster.participants)
        remaining.pop(NODES[2])
        signs = vital_signs(coordinator)
        signs._enrolled = lambda: remaining
        meter.vitals_taken(await signs.look())
    left = samples(meter)
    shown = {name for name, labels in left if ("node", NODES[2]) in labels}
    # It is a witness for as long as it is on the list that the log goes by.
    assert shown == {"matl_witness_cosigned_entries"}
    assert value(meter, "matl_trust_state", node=NODES[0], state=TrustState.TRUSTED) in (0.0, 1.0)


def test_a_phase_counts_once_it_was_seen_from_beginning_to_end() -> None:
    meter, rnd = Metrics(), a_round(1)
    meter.round_changed(rnd)
    name = "matl_round_phase_seconds_count"
    assert (name, (("phase", rnd.phase.value),)) not in samples(meter)
    meter.round_changed(replace(rnd, phase=Phase.SCORING))
    meter.round_changed(replace(rnd, phase=Phase.SCORING))
    assert value(meter, name, phase=rnd.phase.value) == 1
    # Another round says nothing of how long the one before took.
    meter.round_changed(replace(rnd, round_id=RoundId(2), phase=Phase.SCHEDULED))
    assert (name, (("phase", "scoring"),)) not in samples(meter)
    assert value(meter, "matl_round_phase", phase="scheduled") == 1


def test_a_disk_that_is_not_there_is_no_number(tmp_path: Path) -> None:
    meter = Metrics()
    meter.watch_disk(tmp_path / "unmounted", spool_quota_bytes=7)
    assert math.isnan(value(meter, "matl_disk_free_bytes"))
    (tmp_path / "unmounted").mkdir()
    assert 0 < value(meter, "matl_disk_free_bytes") <= value(meter, "matl_disk_size_bytes")
    assert value(meter, "matl_spool_quota_bytes") == 7.0


async def test_a_coordinator_that_starts_again_shows_the_newest_models_figures(
    tmp_path: Path,
) -> None:
    names = ("matl_model_accuracy_ratio", "matl_model_quadratic_weighted_kappa")
    site = make_site(tmp_path)
    async with running(site) as coordinator:
        before = await coordinator.register.state()
        await show_standing(coordinator.meter, before, coordinator.store)
        assert all(math.isnan(value(coordinator.meter, name)) for name in names)
        await play(coordinator)
        shown = [value(coordinator.meter, name) for name in names]
        again, state = Metrics(), await coordinator.register.state()
        await show_standing(again, state, coordinator.store)
        trusted = [value(again, "matl_trust_score", node=node) for node in NODES]
    assert not any(map(math.isnan, shown))
    assert [value(again, name) for name in names] == shown
    assert all(each > 0.0 for each in trusted)


async def test_going_over_the_log_and_finding_damage_is_not_having_verified_it(
    tmp_path: Path,
) -> None:
    sound, damaged = (
        f"matl_log_{each}_timestamp_seconds" for each in ("verified", "found_damaged")
    )
    async with running(make_site(tmp_path)) as coordinator:
        meter, signs = coordinator.meter, vital_signs(coordinator)
        readings = coordinator.use_cases.readings
        await readings.verified(OPERATOR, Verification(1, first=0, last=0))
        meter.vitals_taken(await signs.look())
        assert value(meter, sound) == 0.0 < value(meter, damaged)
        await readings.verified(OPERATOR, Verification(1, Digest("ab" * 32)))
        meter.vitals_taken(await signs.look())
        assert 0.0 < value(meter, damaged) <= value(meter, sound)
