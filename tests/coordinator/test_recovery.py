"""Every durable write of a study fails, both ways, and its models come out the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from matl_common.ids import Digest, NodeId
from matl_coordinator.ports import StoreError
from matl_coordinator.service.intake import UnknownUpdateError
from matl_coordinator.service.reception import SupersededError
from tests.coordinator.harness import (
    NODES,
    Running,
    Site,
    events_of,
    honest_update,
    make_site,
    next_round,
    play,
    running,
    seal,
    send,
    together,
)
from tests.fakes import Fault, FaultyStore

# Events that a restart or a repeated request may rightly write again.
REPEATABLE = {"allowlist_read", "coordinator_started", "coordinator_stopped"}


def new_site(parent: Path, name: str, *, rounds: int) -> Site:
    """A study that, from three rounds on, ends with the mean of several rounds' models."""
    (parent / name).mkdir()
    return make_site(parent / name, study={"rounds": rounds, "averaging": "second-half"})


async def models_at_the_end(coordinator: Running) -> tuple[Digest, Digest]:
    """The one released, and the one that training would go on from."""
    state = await coordinator.register.state()
    assert state.latest_model is not None
    return state.latest_model.digest, state.latest_model.base


async def persistent_hospital(coordinator: Running, node_id: NodeId) -> None:
    """Take part, and ask again whenever the coordinator did not confirm."""
    have_round = 0
    while True:
        try:
            start = await next_round(coordinator, node_id, have_round=have_round)
            if start is None:
                return
            update = honest_update(node_id, start)
            await send(
                coordinator,
                node_id,
                seal(coordinator.site, node_id, start, coordinator.plan, update),
            )
            have_round = start.round_id
        except (StoreError, SupersededError, UnknownUpdateError):
            await asyncio.sleep(0.005)


async def undisturbed(site: Site) -> tuple[tuple[Digest, Digest], Counter[str], int]:
    """The models, the kinds of log entries and the number of commits of a plain run."""
    store = FaultyStore(site.connect_store())
    async with running(site, store) as coordinator:
        await play(coordinator)
        models = await models_at_the_end(coordinator)
        counted = kinds(store)
    return models, counted, store.commits


def kinds(store: FaultyStore) -> Counter[str]:
    return Counter(
        str(event["event"]) for event in events_of(store) if event["event"] not in REPEATABLE
    )


async def with_fault_and_reload(
    site: Site, number: int, fault: Fault
) -> tuple[tuple[Digest, Digest], Counter[str]]:
    """One process goes on after the fault, having loaded its state again."""
    store = FaultyStore(site.connect_store())
    store.fail_commit(number, fault)
    while True:
        try:
            async with running(site, store) as coordinator:
                await together(*(persistent_hospital(coordinator, node) for node in NODES))
                return await models_at_the_end(coordinator), kinds(store)
        except StoreError:  # while the study was being founded: the daemon exits and starts again
            store = FaultyStore(site.connect_store())


async def with_fault_and_restart(
    site: Site, number: int, fault: Fault
) -> tuple[tuple[Digest, Digest], Counter[str]]:
    """The process dies at the fault, and another starts from what is on disk."""
    store = FaultyStore(site.connect_store())
    store.fail_commit(number, fault)
    try:
        async with running(site, store) as coordinator:
            await play(coordinator)
    except StoreError:
        pass
    store = FaultyStore(site.connect_store())
    async with running(site, store) as coordinator:
        await together(*(persistent_hospital(coordinator, node) for node in NODES))
        return await models_at_the_end(coordinator), kinds(store)


@pytest.mark.crash
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("recover", [with_fault_and_reload, with_fault_and_restart])
@pytest.mark.parametrize("rounds", [2, 3], ids=["any round", "a round that ends with a mean"])
async def test_a_fault_at_any_commit_changes_neither_the_models_nor_the_log(
    tmp_path: Path, fault: Fault, recover: object, rounds: int
) -> None:
    site = new_site(tmp_path, "undisturbed", rounds=rounds)
    expected, entries, commits = await undisturbed(site)
    # How many decisions share a transaction is up to their timing.
    assert commits > 5 * rounds
    is_mean = expected[0] != expected[1]
    assert is_mean == (rounds == 3)
    # The rounds before one that ends with a mean are like any other.
    first = commits - commits // rounds if is_mean else 0
    for number in range(first, commits):
        site = new_site(tmp_path, str(number), rounds=rounds)
        models, counted = await recover(site, number, fault)  # type: ignore[operator]  # one of two
        assert models == expected, f"other models after commit {number}"
        assert counted == entries, f"another log after commit {number}"
