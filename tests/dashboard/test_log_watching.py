"""A log that is followed: an honest coordinator's, and ones that lie to whoever looks."""

# Before gRPC, which reads its TLS settings once.
import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import matl_common  # noqa: F401
from matl.calls import OperationsError
from matl.dashboard.log_watching import ENTRIES_SHOWN, LogWatcher
from matl.dashboard.snapshot import Proof
from matl.dashboard.watching import Watcher
from matl.log.sources import CoordinatorSource
from matl.log.verification import Believed
from matl.operations import OperationsClient, connect_operator
from matl_common.clock import utc_now
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.keys import load_verifier_key
from matl_common.tlog.entry import encode_entry, parse_entry
from matl_common.wire import audit_pb2 as pb
from matl_coordinator.ports import Store
from tests.coordinator.harness import COORDINATOR, OPERATOR, Site, make_site
from tests.logs import an_entry
from tests.sdk.serving import Desk, ScriptedLog, scripted, serving
from tests.sdk.test_audit_over_the_wire import cosigned

pytestmark = pytest.mark.certificates


@contextmanager
def watching(desk: Desk, *, with_policy: bool = True, key: bool = True) -> Iterator[LogWatcher]:
    """An operator's watcher at a desk."""
    site = desk.site
    name = SpiffeId(site.allowlist.federation, Role.COORDINATOR, COORDINATOR)
    log_key = load_verifier_key(site.nodes[OPERATOR].log_verifier_key)
    policy = None
    if with_policy:
        store = site.connect_store()
        policy = site.checkpoints(store).policy
        store.close()
    with connect_operator(f"127.0.0.1:{desk.port}", site.nodes[OPERATOR].tls, name) as client:
        source = CoordinatorSource(client.audit)
        yield LogWatcher(source, Believed(log_key, policy) if key else None)


@pytest.fixture
def study(tmp_path: Path) -> tuple[Site, Store, bytes]:
    """Return twenty entries under a checkpoint that every hospital has cosigned."""
    site = make_site(tmp_path)
    store = site.connect_store()
    store.load()
    store.commit([], [an_entry("happened", number=number) for number in range(20)])
    note = asyncio.run(cosigned(site, store))
    return site, store, note


def test_what_an_honest_coordinator_shows_is_proven_and_what_is_new_follows(
    study: tuple[Site, Store, bytes],
) -> None:
    site, store, _ = study
    with serving(site, store) as desk, watching(desk) as watcher:
        log, entries, alarms = watcher.look()
        assert (log.problem, len(entries)) == ("", ENTRIES_SHOWN)
        assert [each.event for each in alarms] == ["allowlist_read"]
        proofs = {each.index: each.proof for each in entries}
        assert proofs[19] is Proof.WITNESSED
        store.commit([], [an_entry("alarm", kind="cartel", round=1)])
        later, entries, alarms = watcher.look()
        assert later.problem == ""
        assert later.size > log.size
        assert [each.event for each in alarms] == ["alarm", "allowlist_read"]
        assert alarms[0].index in {each.index for each in entries}
        assert all(each.proof is not Proof.BROKEN for each in entries)


def test_without_a_key_nothing_is_called_proven(study: tuple[Site, Store, bytes]) -> None:
    site, store, _ = study
    with serving(site, store) as desk, watching(desk, key=False) as watcher:
        log, entries, _ = watcher.look()
        assert (log.signed_size, log.problem) == (0, "")
        assert {each.proof for each in entries} == {Proof.UNCHECKED}


def test_who_leads_after_a_failover_is_watched_on_and_the_log_goes_on(
    study: tuple[Site, Store, bytes],
) -> None:
    site, store, _ = study
    name = SpiffeId(site.allowlist.federation, Role.COORDINATOR, COORDINATOR)
    ports = [0]

    def connect() -> AbstractContextManager[OperationsClient]:
        return connect_operator(f"127.0.0.1:{ports[-1]}", site.nodes[OPERATOR].tls, name)

    believed = Believed(load_verifier_key(site.nodes[OPERATOR].log_verifier_key))
    watcher = Watcher(connect, believed, clock=utc_now, fresh_for=timedelta())
    with closing(watcher):
        with pytest.raises(OperationsError):
            watcher.look()
        with serving(site, store) as desk:
            ports.append(desk.port)
            before = watcher.look()
        with serving(site, site.connect_store()) as desk:
            ports.append(desk.port)
            after = watcher.look()
    assert (before.log.problem, after.log.problem) == ("", "")
    indices = [each.index for each in after.entries]
    assert indices == list(range(indices[0], indices[0] - len(indices), -1))
    assert indices[0] > before.entries[0].index


class OtherEntry(ScriptedLog):
    """Shows entry 19 saying something else than the log has."""

    def entry(self, index: int) -> pb.LogEntry:
        found = super().entry(index)
        if index == 19:
            found.entry = encode_entry({**parse_entry(found.entry), "number": 7})
        return found


class OtherPath(ScriptedLog):
    """Shows a path that leads elsewhere."""

    def inclusion(self, index: int, size: int) -> pb.ProveInclusionResponse:
        found = super().inclusion(index, size)
        found.path[0] = bytes(32)
        return found


class ShorterLog(ScriptedLog):
    """Forgets its newest entry once it was read."""

    reads = 0

    def ReadLog(self, request: pb.ReadLogRequest, context: Any) -> pb.ReadLogResponse:  # noqa: N802 - gRPC names
        found = super().ReadLog(request, context)
        self.reads += 1
        if self.reads > 2:
            found.log_size -= 1
        return found


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("lie", "told"),
    [
        (OtherEntry, "another entry"),
        (OtherPath, "the proof does not show leaf 19"),
        (ShorterLog, "now has 19"),
    ],
)
def test_a_lie_is_found_and_not_forgotten(
    lie: type[ScriptedLog], told: str, study: tuple[Site, Store, bytes]
) -> None:
    site, store, note = study
    size = 20
    servicer = lie(store.log_entries(start=0, limit=size), note, _node_of(store))
    with scripted(site, servicer) as desk, watching(desk, with_policy=False) as watcher:
        watcher.look()
        log, entries, _ = watcher.look()
        assert told in log.problem
        # An honest answer afterwards does not put it right.
        assert watcher.look()[0].problem == log.problem
        if lie is not ShorterLog:
            assert Proof.BROKEN in {each.proof for each in entries}


@pytest.mark.hostile
def test_a_cosignature_that_is_none_is_told_and_ends_no_watching(
    study: tuple[Site, Store, bytes],
) -> None:
    site, store, note = study
    *lines, last = note.decode().splitlines()
    name, signature = last.rsplit(" ", 1)
    forged = f"{signature[:-6]}{'A' * 4}{signature[-2:]}"
    assert forged != signature
    bad = "\n".join([*lines, f"{name} {forged}", ""]).encode()
    servicer = ScriptedLog(store.log_entries(start=0, limit=20), bad, _node_of(store))
    with scripted(site, servicer) as desk, watching(desk) as watcher:
        log, entries, _ = watcher.look()
        assert "does not verify" in log.problem
        assert (log.witnessed_size, log.cosigners) == (0, ())
        assert Proof.WITNESSED not in {each.proof for each in entries}


def _node_of(store: Store) -> Any:
    return lambda level, index: store.log_nodes([(level, index)])[(level, index)]
