"""What a start, an append, a checkpoint and proofs cost does not grow with the log.

Counted in steps of SQLite's virtual machine, which every row that is looked at takes, and in
stored hashes that are read; not in seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from matl_common.tlog.merkle import NodeAddress
from matl_coordinator.ports import Store
from matl_coordinator.service.audit import Audit
from matl_coordinator.store.sql import SqlStore
from tests.coordinator.harness import Site, make_site, running
from tests.logs import an_entry

SHORT, LONG = 1_000, 50_000
LEVELS = LONG.bit_length()


class Steps:
    """Steps that SQLite has taken on connections that were opened while this counts."""

    def __init__(self) -> None:
        self._count = count()
        self._last = 0

    def listen(self, connection: Any, _entry: object) -> None:
        connection.set_progress_handler(self._step, 1)

    def _step(self) -> None:
        self._last = next(self._count)

    def taken(self) -> int:
        """Since this was asked last."""
        self._step()
        taken, self._count, self._last = self._last, count(), 0
        return taken


@contextmanager
def counting() -> Iterator[Steps]:
    steps = Steps()
    event.listen(Engine, "connect", steps.listen)
    try:
        yield steps
    finally:
        event.remove(Engine, "connect", steps.listen)


class ReadNodes:
    """Counts the hashes that are read through a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.read = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def log_nodes(self, addresses: Sequence[NodeAddress]) -> Mapping[NodeAddress, bytes]:
        found = self._store.log_nodes(addresses)
        self.read += len(found)
        return found


async def site_of(folder: Path, size: int) -> Site:
    """A study whose log has about ``size`` entries."""
    site = make_site(folder)
    async with running(site):
        pass
    store = site.connect_store()
    store.load()
    entry = an_entry("filling")
    for _ in range(0, size, 1000):
        store.commit([], [entry] * 1000)
    await site.checkpoints(store).newest()
    store.close()
    return site


async def costs(site: Site) -> dict[str, int]:
    """Steps of what a coordinator does, by name."""
    found: dict[str, int] = {}
    with counting() as steps:
        store = site.connect_store()
        assert isinstance(store, SqlStore)
        async with running(site, store) as coordinator:
            await coordinator.use_cases.checkpoints.resume()
            found["start"] = steps.taken()
            await coordinator.register.settle()
            steps.taken()
            writer = site.connect_store()
            writer.load()
            steps.taken()
            writer.commit([], [an_entry("one more")])
            found["append"] = steps.taken()
            given = await site.checkpoints(writer).to_cosign(old_size=7)
            found["checkpoint"] = steps.taken()
            await Audit(writer).inclusion(5, size=given.witnessed.size)
            found["inclusion"] = steps.taken()
            writer.close()
    return found


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return asyncio.run(site_of(tmp_path_factory.mktemp("long"), LONG))


async def test_what_a_coordinator_does_costs_the_same_in_a_log_fifty_times_as_long(
    tmp_path: Path, long_log: Site
) -> None:
    short, long = await costs(await site_of(tmp_path, SHORT)), await costs(long_log)
    assert short.keys() == {"start", "append", "checkpoint", "inclusion"}
    for name, steps in short.items():
        # Room for the tree's six levels more; a look at every row would be fifty times as much.
        assert steps > 0
        assert long[name] < 2 * steps, (name, steps, long[name])


async def test_a_proof_reads_as_many_stored_hashes_as_the_tree_has_levels(long_log: Site) -> None:
    store = long_log.connect_store()
    nodes = ReadNodes(store)
    size = store.log_head().size
    assert size > LONG
    for index in (0, 12_345, size - 1):
        nodes.read = 0
        await Audit(nodes).inclusion(index, size=size)
        # One sibling a level, some of them of several nodes at the tree's ragged edge.
        assert 0 < nodes.read <= 2 * LEVELS
    for old_size in (1, 4096, 33_333, size - 1):
        nodes.read = 0
        checkpoints = long_log.checkpoints(nodes)
        assert (await checkpoints.to_cosign(old_size=old_size)).proof
        # The same, and once more for the root that is signed.
        assert 0 < nodes.read <= 3 * LEVELS
    store.close()
