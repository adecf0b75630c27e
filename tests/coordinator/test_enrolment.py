"""A changed allow-list: whom it lets in, and what it does to the open round."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from matl_common.clock import utc_now
from matl_common.identity.allowlist import AllowedNode, Allowlist, encode_allowlist, enrol
from matl_common.ids import NodeId
from matl_coordinator.core.rounds import Phase, Round
from matl_coordinator.preflight import check_hospitals
from matl_coordinator.replay import replay_round
from matl_coordinator.service.enrolment import EnrolmentFile
from tests.coordinator.harness import (
    NODES,
    Running,
    events_of,
    honest_update,
    make_site,
    next_round,
    play,
    running,
    seal,
    send,
)

A, B, C = NODES


def write(coordinator: Running, content: bytes) -> None:
    coordinator.site.config.federation.allowlist.write_bytes(content)


def enrol_only(coordinator: Running, *nodes: NodeId, **changed: AllowedNode) -> None:
    """Write a list of these hospitals, some of them changed, and of everybody who is none."""
    allowlist = coordinator.site.allowlist
    kept = [
        changed.get(node_id, node)
        for node_id, node in allowlist.nodes.items()
        if node_id in nodes or node_id not in NODES
    ]
    write(coordinator, encode_allowlist(enrol(allowlist.federation, kept)))


def told(coordinator: Running, event: str) -> list[dict[str, object]]:
    return [each for each in events_of(coordinator.store) if each["event"] == event]


@asynccontextmanager
async def followed(folder: Path, **rounds: object) -> AsyncIterator[tuple[Running, EnrolmentFile]]:
    terms: dict[str, Any] = {"keep_spooled": 10, "byzantine": 0, "minimum_participants": 2}
    site = make_site(folder, study={"rounds": 1}, **{**terms, **rounds})
    async with running(site) as coordinator:
        yield coordinator, following(coordinator)


def following(
    coordinator: Running, *, check: Callable[[Allowlist], None] | None = None
) -> EnrolmentFile:
    return EnrolmentFile(
        path=coordinator.site.config.federation.allowlist,
        roster=coordinator.roster,
        register=coordinator.register,
        meter=coordinator.meter,
        check=check or partial(check_hospitals, coordinator.site.config),
        clock=utc_now,
    )


async def offer_and_send(coordinator: Running, *nodes: NodeId) -> None:
    starts = await asyncio.gather(*(next_round(coordinator, node) for node in NODES))
    for node, start in zip(NODES, starts, strict=True):
        assert start is not None
        if node in nodes:
            update = honest_update(node, start)
            await send(
                coordinator, node, seal(coordinator.site, node, start, coordinator.plan, update)
            )


async def phase(coordinator: Running, *wanted: Phase) -> Round:
    while True:
        state = await coordinator.register.state()
        if state.round is not None and state.round.phase in wanted:
            return state.round
        await coordinator.register.wait_for_change(state, seconds=1.0)


async def test_the_list_read_at_start_changes_nothing(tmp_path: Path) -> None:
    async with followed(tmp_path) as (coordinator, file):
        before = coordinator.roster.admitting
        size = coordinator.register.log_size
        await file.look()
        assert coordinator.roster.admitting is before
        assert coordinator.register.log_size == size


async def test_what_a_removed_hospital_sent_does_not_count(tmp_path: Path) -> None:
    async with followed(tmp_path) as (coordinator, file):
        await offer_and_send(coordinator, A, C)
        enrol_only(coordinator, A, B)
        await file.look()
        rnd = await phase(coordinator, Phase.COLLECTING)
        assert rnd.admitted_nodes == {A}
        assert rnd.pending_nodes == {B}
        start = await next_round(coordinator, B)
        assert start is not None
        update = honest_update(B, start)
        await send(coordinator, B, seal(coordinator.site, B, start, coordinator.plan, update))
        released = await phase(coordinator, Phase.RELEASED)
        assert {each.node_id for each in released.weights} == {A, B}
        (change,) = told(coordinator, "enrolment_changed")
        assert change["removed"] == [C]
        (removal,) = told(coordinator, "node_removed")
        assert (removal["node"], removal["reason"]) == (C, "no longer enrolled")
        entries = events_of(coordinator.store)
        site = coordinator.site
    await replay_round(site.config, entries, 1)


async def test_a_hospital_removed_while_its_update_is_scored_has_no_part_in_the_model(
    tmp_path: Path,
) -> None:
    async with followed(tmp_path) as (coordinator, file):
        coordinator.scorer.go_on = asyncio.Event()
        await offer_and_send(coordinator, *NODES)
        await phase(coordinator, Phase.SCORING)
        enrol_only(coordinator, A, B)
        await file.look()
        coordinator.scorer.go_on.set()
        released = await phase(coordinator, Phase.RELEASED)
        assert {each.node_id for each in released.weights} == {A, B}
        # It was judged again, rather than failed and repeated.
        failures = coordinator.meter.registry.get_sample_value(
            "matl_phase_failures_total", {"phase": "scoring"}
        )
        assert not failures
        entries = events_of(coordinator.store)
        site = coordinator.site
    await replay_round(site.config, entries, 1)


async def test_a_round_under_aggregation_is_finished_by_the_list_it_was_scored_by(
    tmp_path: Path,
) -> None:
    async with followed(tmp_path, rule="fltrust") as (coordinator, file):
        coordinator.scorer.build = asyncio.Event()
        await offer_and_send(coordinator, *NODES)
        scored = await phase(coordinator, Phase.AGGREGATING)
        enrol_only(coordinator, A, B)
        await file.look()
        # Shut out at once, and counted until the round is over.
        assert C not in coordinator.roster.admitting.nodes
        assert C in coordinator.roster.participants
        coordinator.scorer.build.set()
        released = await phase(coordinator, Phase.RELEASED)
        assert released.weights == scored.weights
        await file.look()
        assert C not in coordinator.roster.participants
        entries = events_of(coordinator.store)
        names = [each["event"] for each in entries]
        assert names.index("model_aggregated") < names.index("enrolment_changed")
        assert not told(coordinator, "node_removed")


async def test_a_round_that_loses_its_quorum_while_it_is_scored_is_aborted(tmp_path: Path) -> None:
    async with followed(tmp_path) as (coordinator, file):
        coordinator.scorer.go_on = asyncio.Event()
        await offer_and_send(coordinator, *NODES)
        await phase(coordinator, Phase.SCORING)
        enrol_only(coordinator, A)
        await file.look()
        coordinator.scorer.go_on.set()
        rnd = await phase(coordinator, Phase.ABORTED)
        assert rnd.abort_reason == "hospitals were removed, and 1 updates are left of 2 needed"
        state = await coordinator.register.state()
        assert state.study is not None
        assert state.study.paused
        assert "quorum" in state.study.pause_reason


@pytest.mark.parametrize(
    "content",
    [b"not TOML [", b"", None, b"patients = " + b"9" * 5000],
    ids=["text", "", "gone", "number"],
)
async def test_a_file_that_cannot_be_used_changes_nothing_and_says_so_once(
    tmp_path: Path, content: bytes | None
) -> None:
    async with followed(tmp_path) as (coordinator, file):
        before = coordinator.roster.admitting
        path = coordinator.site.config.federation.allowlist
        good = path.read_bytes()
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        for _ in range(3):
            await file.look()
        assert coordinator.roster.admitting is coordinator.roster.on_record is before
        assert len(told(coordinator, "allowlist_refused")) == 1
        assert stale(coordinator) == 1.0
        path.write_bytes(good)
        await file.look()
        assert stale(coordinator) == 0.0
        assert not told(coordinator, "enrolment_changed")


async def test_a_fault_that_nobody_thought_of_does_not_end_the_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matl_coordinator.service.following.POLL_SECONDS", 0.01)
    async with followed(tmp_path) as (coordinator, _):
        faults = iter([RuntimeError("unthought of")])

        def check(allowlist: Allowlist) -> None:
            if fault := next(faults, None):
                raise fault
            check_hospitals(coordinator.site.config, allowlist)

        file = following(coordinator, check=check)
        run = asyncio.create_task(file.run())
        await eventually(lambda: stale(coordinator) == 1.0)
        enrol_only(coordinator, *NODES[:-1])
        await eventually(lambda: NODES[-1] not in coordinator.roster.admitting.nodes)
        assert stale(coordinator) == 0.0
        assert not run.done()
        run.cancel()


async def eventually(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110 - what is polled has no event to wait for
            await asyncio.sleep(0.01)


def stale(coordinator: Running) -> float | None:
    return coordinator.meter.registry.get_sample_value("matl_stale_files", {"file": "allowlist"})


async def test_a_list_of_another_federation_is_refused(tmp_path: Path) -> None:
    async with followed(tmp_path) as (coordinator, file):
        text = encode_allowlist(coordinator.site.allowlist)
        write(
            coordinator,
            text.replace(b'"dr-study"', b'"other-study"').replace(b"dr-study", b"other-study"),
        )
        await file.look()
        assert set(coordinator.roster.admitting.nodes) >= set(NODES)
        assert len(told(coordinator, "allowlist_refused")) == 1


async def test_a_list_that_does_not_suit_the_study_shuts_out_but_lets_nobody_in(
    tmp_path: Path,
) -> None:
    async with followed(tmp_path) as (coordinator, file):
        # Six grades where there are five; and hospital_c is gone.
        damaged = replace(coordinator.site.allowed(B), label_histogram=(1, 2, 3, 4, 5, 6))
        enrol_only(coordinator, A, B, **{B: damaged})
        await file.look()
        assert set(coordinator.roster.participants) == {A, B}
        assert coordinator.roster.participants[B] == coordinator.site.allowed(B)
        state = await coordinator.register.state()
        assert state.study is not None
        assert not state.study.paused
        assert "label_histogram" in str(told(coordinator, "allowlist_refused")[0]["reason"])


async def test_a_hospital_added_takes_part_without_a_restart(tmp_path: Path) -> None:
    site = make_site(tmp_path, study={"rounds": 1}, byzantine=0, minimum_participants=2)
    everybody = site.allowlist
    path = site.config.federation.allowlist
    path.write_bytes(encode_allowlist(enrol(everybody.federation, _without(everybody, C))))
    async with running(site.read_again()) as coordinator:
        assert set(coordinator.roster.participants) == {A, B}
        path.write_bytes(encode_allowlist(everybody))
        await following(coordinator).look()
        assert set(coordinator.roster.participants) == set(NODES)
        await play(replace(coordinator, site=site))
        rnd = await phase(coordinator, Phase.RELEASED)
        assert C in rnd.invited


def _without(allowlist: Allowlist, node: NodeId) -> list[AllowedNode]:
    return [each for node_id, each in allowlist.nodes.items() if node_id != node]
