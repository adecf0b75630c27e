"""Rounds through the use cases: the good, the bad, and what stays alive."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from matl_common.clock import utc_now
from matl_common.errors import MatlError
from matl_common.ids import Digest, NodeId, digest_of
from matl_common.protocol import PayloadType, RoundStart
from matl_common.signing import verify
from matl_common.wire.documents import parse_receipt
from matl_common.worker import NO_ROOM, WorkerCrashedError, WorkerFailedError
from matl_coordinator.core.admission import RefusalCode
from matl_coordinator.core.rounds import Phase
from matl_coordinator.ports import SpoolError, StaleWriterError
from matl_coordinator.service.intake import RefusedError, UnknownUpdateError
from matl_coordinator.service.operations import OperationError
from matl_coordinator.service.reception import SupersededError
from tests.coordinator.harness import (
    NODES,
    OPERATOR,
    TICK_SECONDS,
    Running,
    Site,
    events_of,
    final_model,
    honest_update,
    loss,
    make_site,
    metrics_of,
    next_round,
    play,
    running,
    seal,
    send,
    take_part,
    together,
    until_paused,
    weights_of,
)

A, B, C = NODES


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


async def first_round(coordinator: Running) -> RoundStart:
    """The first round, with every hospital in it."""
    starts = await asyncio.gather(*(next_round(coordinator, node) for node in NODES))
    assert starts[0] is not None
    return starts[0]


async def refused(coordinator: Running, node_id: NodeId, sealed: object) -> RefusalCode:
    with pytest.raises(RefusedError) as caught:
        await send(coordinator, node_id, sealed)  # type: ignore[arg-type]  # always a Sealed
    return caught.value.code


async def test_a_study_runs_to_its_end_and_the_model_learns(site: Site) -> None:
    store = site.connect_store()
    async with running(site, store) as coordinator:
        await play(coordinator)
        final = weights_of(coordinator.models.path(await final_model(coordinator)))
        assert loss(final) < 0.6 * loss(np.zeros_like(final))
        names = [event["event"] for event in events_of(store)]
    assert names.count("model_released") == 2
    assert names.count("update_admitted") == 2 * len(NODES)
    assert names[0] == "study_founded"


async def test_two_undisturbed_runs_end_in_the_same_model(tmp_path: Path) -> None:
    finals = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        async with running(make_site(tmp_path / name)) as coordinator:
            await play(coordinator)
            finals.append(await final_model(coordinator))
    assert finals[0] == finals[1]


async def test_an_admission_is_in_the_log_that_its_receipt_names(site: Site) -> None:
    store = site.connect_store()
    async with running(site, store) as coordinator:
        start = await first_round(coordinator)
        sealed = seal(site, A, start, coordinator.plan, honest_update(A, start))
        intake, allowed = coordinator.use_cases.intake, coordinator.site.allowed
        assert await intake.last_receipt(allowed(A)) is None
        progress = await send(coordinator, A, sealed)
        again = await send(coordinator, A, sealed)
        newest, none = [await intake.last_receipt(allowed(node)) for node in (A, B)]
        assert progress.receipt is not None
        key = site.coordinator_key()
        receipt = parse_receipt(verify(progress.receipt, key, PayloadType.RECEIPT))
        (logged,) = store.log_entries(start=receipt.log_index, limit=1)
        event = events_of(store)[receipt.log_index]
    assert receipt.update_digest == digest_of(sealed.envelope.payload)
    assert logged.leaf_hash == receipt.log_leaf_hash
    assert (event["event"], event["node"]) == ("update_admitted", A)
    assert again.receipt is not None
    assert parse_receipt(again.receipt.payload) == receipt
    assert newest is not None
    assert newest.payload == progress.receipt.payload
    assert none is None


async def test_an_answer_that_never_arrived_is_given_again_after_the_round(site: Site) -> None:
    store = site.connect_store()
    async with running(site, store) as coordinator:
        start = await first_round(coordinator)
        sealed = {
            node: seal(site, node, start, coordinator.plan, honest_update(node, start))
            for node in NODES
        }
        not_finite = honest_update(C, start)
        not_finite[0] = np.nan
        sealed[C] = seal(site, C, start, coordinator.plan, not_finite)
        unfinished = seal(site, B, start, coordinator.plan, 2 * honest_update(B, start))
        first = {node: await send(coordinator, node, sealed[node]) for node in (A, B)}
        assert await refused(coordinator, C, sealed[C]) is RefusalCode.NOT_FINITE
        await next_round(coordinator, A, have_round=start.round_id)
        entries = len(events_of(store))
        for node in (A, B):
            again = await send(coordinator, node, sealed[node])
            given, given_again = first[node].receipt, again.receipt
            assert given is not None
            assert given_again is not None
            assert given_again.payload == given.payload
        assert await refused(coordinator, C, sealed[C]) is RefusalCode.NOT_FINITE
        assert len(events_of(store)) == entries
        # Another update than the one decided is late, and nothing else.
        assert await refused(coordinator, B, unfinished) is RefusalCode.NO_ROUND


async def test_a_wrong_update_whose_round_has_closed_is_late_in_the_log_and_to_the_meter(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path, collect_seconds=2.0)
    store = site.connect_store()
    async with running(site, store) as coordinator:
        start = await first_round(coordinator)
        wrong = honest_update(C, start)
        wrong[0] = np.nan
        sealed = seal(site, C, start, coordinator.plan, wrong)
        intake, allowed = coordinator.use_cases.intake, site.allowed(C)
        progress = await intake.open_update(allowed, sealed.envelope, sealed.hashes)
        reception = await intake.receive(allowed, progress.update_digest)
        for index, chunk in enumerate(sealed.chunks):
            await reception.take(index, chunk)
        await reception.settle()
        for node in (A, B):
            update = honest_update(node, start)
            await send(coordinator, node, seal(site, node, start, coordinator.plan, update))
        await next_round(coordinator, A, have_round=start.round_id)
        with pytest.raises(RefusedError, match="has closed"):
            await intake.complete(allowed, reception)
        counted = metrics_of(coordinator)
    codes = [event["code"] for event in events_of(store) if event["event"] == "update_refused"]
    assert codes == ["no_round"]
    assert counted['matl_updates_total{outcome="no_round"}'] == 1.0
    assert counted['matl_updates_total{outcome="not_finite"}'] == 0.0


async def test_an_upload_that_broke_goes_on_from_its_last_durable_chunk(site: Site) -> None:
    async with running(site) as coordinator:
        start = await first_round(coordinator)
        sealed = seal(site, A, start, coordinator.plan, honest_update(A, start))
        half = await send(coordinator, A, sealed, chunks=1)
        assert (half.durable_chunks, half.total_chunks, half.receipt) == (1, 3, None)
        assert (await send(coordinator, A, sealed)).receipt is not None


async def test_an_upload_goes_on_in_another_process(site: Site) -> None:
    async with running(site) as coordinator:
        start = await first_round(coordinator)
        sealed = seal(site, A, start, coordinator.plan, honest_update(A, start))
        await send(coordinator, A, sealed, chunks=2)
    async with running(site) as coordinator:
        node = site.allowed(A)
        intake = coordinator.use_cases.intake
        progress = await intake.open_update(node, sealed.envelope, sealed.hashes)
        assert progress.durable_chunks == 2
        assert (await send(coordinator, A, sealed)).receipt is not None


async def test_chunks_out_of_order_or_damaged_are_not_taken_and_the_right_ones_still_are(
    site: Site,
) -> None:
    async with running(site) as coordinator:
        start = await first_round(coordinator)
        sealed = seal(site, A, start, coordinator.plan, honest_update(A, start))
        node, intake = site.allowed(A), coordinator.use_cases.intake
        progress = await intake.open_update(node, sealed.envelope, sealed.hashes)
        reception = await intake.receive(node, progress.update_digest)
        damaged = bytes([sealed.chunks[0][0] ^ 1]) + sealed.chunks[0][1:]
        for index, data in ((1, sealed.chunks[1]), (0, damaged), (0, b""), (7, sealed.chunks[0])):
            await reception.take(index, data)
            with pytest.raises(SpoolError):
                await reception.settle()
        await reception.take(0, sealed.chunks[0])
        await reception.take(0, sealed.chunks[0])
        with pytest.raises(SpoolError):
            await reception.take(1, sealed.chunks[1])
        assert (await send(coordinator, A, sealed)).receipt is not None


async def test_a_newer_stream_of_the_same_hospital_takes_over(site: Site) -> None:
    async with running(site) as coordinator:
        start = await first_round(coordinator)
        sealed = seal(site, A, start, coordinator.plan, honest_update(A, start))
        node, intake = site.allowed(A), coordinator.use_cases.intake
        progress = await intake.open_update(node, sealed.envelope, sealed.hashes)
        older = await intake.receive(node, progress.update_digest)
        await older.take(0, sealed.chunks[0])
        newer = await intake.receive(node, progress.update_digest)
        with pytest.raises(SupersededError):
            await older.take(1, sealed.chunks[1])
        await newer.take(1, sealed.chunks[1])
        await newer.settle()


async def test_nobody_sends_chunks_of_an_update_it_did_not_declare(site: Site) -> None:
    async with running(site) as coordinator:
        start = await first_round(coordinator)
        sealed = seal(site, A, start, coordinator.plan, honest_update(A, start))
        progress = await send(coordinator, A, sealed, chunks=0)
        with pytest.raises(UnknownUpdateError):
            await coordinator.use_cases.intake.receive(site.allowed(B), progress.update_digest)


@pytest.mark.hostile
async def test_every_kind_of_bad_update_is_refused_logged_and_leaves_the_round_alive(
    site: Site,
) -> None:
    store = site.connect_store()
    async with running(site, store) as coordinator:
        start = await first_round(coordinator)
        plan, update = coordinator.plan, honest_update(C, start)
        by_another = seal(site, B, start, plan, update)
        oversize = seal(site, C, start, plan, update, byte_count=1 << 40)
        replayed = seal(site, C, start, plan, update, nonce=b"\0" * 32)
        stale = seal(site, C, start, plan, update, base_model=Digest("ab" * 32))
        short = seal(site, C, start, plan, update[:-1])
        assert await refused(coordinator, C, by_another) is RefusalCode.BAD_SIGNATURE
        assert await refused(coordinator, C, oversize) is RefusalCode.WRONG_SIZE
        assert await refused(coordinator, C, replayed) is RefusalCode.REPLAYED
        assert await refused(coordinator, C, stale) is RefusalCode.WRONG_BASE_MODEL
        assert await refused(coordinator, C, short) is RefusalCode.WRONG_SIZE
        poisoned = update.copy()
        poisoned[12345] = np.nan
        final = seal(site, C, start, plan, poisoned)
        assert await refused(coordinator, C, final) is RefusalCode.NOT_FINITE
        assert await refused(coordinator, C, final) is RefusalCode.NOT_FINITE
        another = seal(site, C, start, plan, update)
        assert await refused(coordinator, C, another) is RefusalCode.EQUIVOCATION
        await together(
            *(take_part(coordinator, node) for node in (A, B)), honest_later(coordinator)
        )
        codes = [event["code"] for event in events_of(store) if event["event"] == "update_refused"]
    assert codes == [
        "bad_signature",
        "wrong_size",
        "replayed",
        "wrong_base_model",
        "wrong_size",
        "not_finite",
        "equivocation",
    ]


async def honest_later(coordinator: Running) -> None:
    """Hospital C behaves from round 2 on."""
    have_round = 1
    while (start := await next_round(coordinator, C, have_round=have_round)) is not None:
        update = honest_update(C, start)
        await send(coordinator, C, seal(coordinator.site, C, start, coordinator.plan, update))
        have_round = start.round_id


@pytest.mark.hostile
async def test_a_hospital_that_floods_the_coordinator_with_refusals_does_not_flood_the_log(
    site: Site,
) -> None:
    store = site.connect_store()
    async with running(site, store) as coordinator:
        start = await first_round(coordinator)
        for number in range(50):
            sealed = seal(
                site,
                C,
                start,
                coordinator.plan,
                honest_update(C, start),
                nonce=bytes([number]) * 32,
            )
            assert await refused(coordinator, C, sealed) is RefusalCode.REPLAYED
        refusals = [event for event in events_of(store) if event["event"] == "update_refused"]
    assert len(refusals) == 32


@pytest.mark.hostile
async def test_a_hospital_whose_updates_harm_loses_trust_and_weight_with_a_reason(
    tmp_path: Path,
) -> None:
    def harmful(node_id: NodeId, start: RoundStart) -> NDArray[np.float64]:
        return -honest_update(node_id, start)

    site = make_site(tmp_path)
    async with running(site) as coordinator:
        await play(coordinator, make={C: harmful})
        state = await coordinator.register.state()
        trust = {record.node_id: record for record in state.trust}
        assert state.round is not None
        weights = {each.node_id: each.weight for each in state.round.weights}
    assert trust[C].trust < 0.4 < min(trust[A].trust, trust[B].trust)
    assert weights[C] == 0.0
    assert "against the holdout reference" in trust[C].reason


@pytest.mark.hostile
async def test_a_round_that_too_few_trusted_hospitals_support_is_held_and_the_study_paused(
    site: Site,
) -> None:
    def harmful(node_id: NodeId, start: RoundStart) -> NDArray[np.float64]:
        return -honest_update(node_id, start)

    store = site.connect_store()
    async with running(site, store) as coordinator:
        playing = asyncio.create_task(play(coordinator, make=dict.fromkeys(NODES, harmful)))
        state = await until_paused(coordinator)
        playing.cancel()
        assert state.round is not None
        assert (state.round.phase, state.rounds_released) == (Phase.ABORTED, 0)
        assert state.latest_model is not None
        assert state.latest_model.round_id == 0
        waiting_for, _ = coordinator.use_cases.conductor.waiting(state, utc_now())
        names = [event["event"] for event in events_of(store)]
    assert waiting_for.startswith("paused: ")
    assert names[-2:] == ["round_aborted", "study_paused"]


async def test_a_failing_scoring_worker_costs_a_retry_and_not_the_round(site: Site) -> None:
    async with running(site) as coordinator:
        coordinator.scorer.fail_next = [WorkerCrashedError("killed")] * 3
        await play(coordinator)
        state = await coordinator.register.state()
        assert state.round is not None
        assert (state.round.phase, state.rounds_released) == (Phase.RELEASED, 2)
        assert coordinator.scorer.fail_next == []


async def test_a_phase_that_always_fails_ends_the_round_and_pauses_the_study(site: Site) -> None:
    store = site.connect_store()
    async with running(site, store) as coordinator:
        attempts = site.config.worker.attempts
        coordinator.scorer.fail_next = [WorkerCrashedError("killed")] * attempts
        playing = asyncio.create_task(play(coordinator))
        await until_paused(coordinator)
        names = [event["event"] for event in events_of(store)]
        assert names[-2:] == ["round_aborted", "study_paused"]
        await coordinator.use_cases.operations.resume(OPERATOR, "the worker is back")
        await playing
        names = [event["event"] for event in events_of(store)]
    assert names.count("round_aborted") == 1
    assert names.count("model_released") == 2


@pytest.mark.parametrize("kind", ["spool", "worker"])
async def test_a_full_disk_costs_a_wait_and_no_round(site: Site, kind: str) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    error: MatlError = SpoolError("cannot make a scratch folder")
    if kind == "worker":
        error = WorkerFailedError(NO_ROOM, "a disk is full")
    error.__cause__ = full
    store = site.connect_store()
    async with running(site, store) as coordinator:
        coordinator.scorer.fail_next = [error] * (site.config.worker.attempts + 2)
        await play(coordinator)
        names = [event["event"] for event in events_of(store)]
    assert coordinator.scorer.fail_next == []
    assert not {"round_aborted", "study_paused"} & set(names)
    assert names.count("model_released") == 2


@pytest.mark.hostile
async def test_an_admitted_update_that_changed_on_disk_is_not_aggregated(site: Site) -> None:
    async with running(site) as coordinator:
        start = await first_round(coordinator)
        for node in (A, B):
            await send(
                coordinator,
                node,
                seal(site, node, start, coordinator.plan, honest_update(node, start)),
            )
        spooled = site.config.state_dir / "spool" / "1" / f"{A}.update"
        data = bytearray(spooled.read_bytes())
        data[100_000] ^= 1
        spooled.write_bytes(data)
        await send(coordinator, C, seal(site, C, start, coordinator.plan, honest_update(C, start)))
        state = await until_paused(coordinator)
        assert state.study is not None
    assert f"the spooled update of {A} is not the one that was admitted" in state.study.pause_reason
    assert state.rounds_released == 0


async def test_a_paused_study_opens_no_round_until_it_is_resumed(site: Site) -> None:
    async with running(site) as coordinator:
        operations = coordinator.use_cases.operations
        await first_round(coordinator)
        await operations.pause(OPERATOR, "maintenance")
        with pytest.raises(OperationError, match="paused already"):
            await operations.pause(OPERATOR, "again")
        playing = asyncio.create_task(play(coordinator))
        state = await coordinator.register.state()
        while state.rounds_released < 1:
            await coordinator.register.wait_for_change(state, seconds=10.0)
            state = await coordinator.register.state()
        await asyncio.sleep(20 * TICK_SECONDS)
        assert (await coordinator.register.state()).round == state.round
        await operations.resume(OPERATOR, "done")
        await playing


async def test_an_operators_quarantine_counts_until_the_release(site: Site) -> None:
    async with running(site) as coordinator:
        operations = coordinator.use_cases.operations
        await first_round(coordinator)
        with pytest.raises(OperationError, match="not quarantined"):
            await operations.release(OPERATOR, C, "by mistake")
        with pytest.raises(OperationError, match="reason"):
            await operations.quarantine(OPERATOR, C, "  ")
        await operations.quarantine(OPERATOR, C, "under inquiry")
        await play(coordinator)
        state = await coordinator.register.state()
        assert state.round is not None
        weights = {each.node_id: each.weight for each in state.round.weights}
        assert weights[C] == 0.0
        await operations.release(OPERATOR, C, "cleared")


async def test_nobody_waits_for_a_round_once_waits_are_ended(site: Site) -> None:
    async with running(site) as coordinator:
        invitations = coordinator.use_cases.invitations
        waiting = asyncio.create_task(
            invitations.await_round(site.allowed(A), have_round=0, wait_seconds=3600.0)
        )
        await asyncio.sleep(0)
        assert coordinator.use_cases.overview.last_seen(A) is not None
        invitations.end_waits()
        late = invitations.await_round(site.allowed(B), have_round=0, wait_seconds=3600.0)
        for offer in await asyncio.wait_for(asyncio.gather(waiting, late), 30.0):
            assert offer.round_start is None


async def test_a_second_coordinator_takes_over_and_the_first_never_writes_again(site: Site) -> None:
    with pytest.raises(StaleWriterError):  # noqa: PT012 - what ends the first one's conductor
        async with running(site) as first:
            await first_round(first)
            async with running(site) as second:
                await first_round(second)
                operations = first.use_cases.operations
                for _ in range(2):
                    with pytest.raises(StaleWriterError):
                        await operations.pause(OPERATOR, "too late")
                await play(second)


async def test_a_chunk_that_is_refused_while_its_stream_breaks_is_in_the_log(site: Site) -> None:
    async with running(site) as coordinator:
        start = await first_round(coordinator)
        sealed = seal(site, A, start, coordinator.plan, honest_update(A, start))
        node, intake = site.allowed(A), coordinator.use_cases.intake
        progress = await intake.open_update(node, sealed.envelope, sealed.hashes)
        reception = await intake.receive(node, progress.update_digest)
        await intake.take(reception, 0, bytes(len(sealed.chunks[0])))
        await intake.let_go(reception)
        assert "update_refused" in [each["event"] for each in events_of(coordinator.store)]
        assert (await send(coordinator, A, sealed)).receipt is not None
