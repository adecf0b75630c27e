"""What a report is made of is what was gone over, whatever a coordinator shows later."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from matl.log.sources import CoordinatorSource
from matl.log.verification import Believed
from matl.operations import connect_operator
from matl.report.evidence import evidence_from_coordinator
from matl_common.errors import IntegrityError
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.keys import load_verifier_key
from matl_common.tlog.disclosure import parse_disclosure
from matl_common.tlog.proof import parse_proof
from matl.log.proofs import check_entry
from matl_common.wire import audit_pb2 as pb
from matl_coordinator.ports import LoggedEntry, Store
from tests.coordinator.harness import COORDINATOR, OPERATOR, Site, make_site
from tests.logs import an_entry
from tests.sdk.serving import Desk, ScriptedLog, scripted
from tests.sdk.test_audit_over_the_wire import cosigned

pytestmark = pytest.mark.certificates
SIZE = 8


def log_of(folder: Path, *, told: int) -> tuple[Site, Store, bytes]:
    """A log of a few entries, the last of which releases a model."""
    folder.mkdir()
    site = make_site(folder)
    store = site.connect_store()
    store.load()
    store.commit([], [an_entry("happened", number=told) for _ in range(SIZE - 1)])
    store.commit([], [an_entry("model_released", round=1, model="ab" * 32)])
    return site, store, asyncio.run(cosigned(site, store))


def servicer_of(store: Store, note: bytes, kind: type[ScriptedLog] = ScriptedLog) -> ScriptedLog:
    logged = store.log_entries(start=0, limit=SIZE)

    def node(level: int, index: int) -> bytes:
        return store.log_nodes([(level, index)])[(level, index)]

    return kind(logged, note, node)


@contextmanager
def source_at(desk: Desk) -> Iterator[tuple[CoordinatorSource, Believed]]:
    site = desk.site
    name = SpiffeId(site.allowlist.federation, Role.COORDINATOR, COORDINATOR)
    believed = Believed(load_verifier_key(site.nodes[OPERATOR].log_verifier_key))
    with connect_operator(f"127.0.0.1:{desk.port}", site.nodes[OPERATOR].tls, name) as client:
        yield CoordinatorSource(client.audit), believed


def test_every_entry_is_read_and_a_release_proved_in_files_that_prove_it_again(
    tmp_path: Path,
) -> None:
    site, store, note = log_of(tmp_path / "a", told=1)
    with scripted(site, servicer_of(store, note)) as desk, source_at(desk) as (source, believed):
        found = evidence_from_coordinator(source, believed)
    assert [each.index for each in found.entries] == list(range(SIZE))
    release = found.releases[SIZE - 1]
    entry, proof = parse_disclosure(release.entry.encode()), parse_proof(release.proof.encode())
    assert check_entry(entry, proof, believed).facts["event"] == "model_released"


class TwoLogs(ScriptedLog):
    """Shows one log to be gone over and another, sound in itself, to be read."""

    other: tuple[LoggedEntry, ...]
    pages = 0

    def ReadLog(self, request: pb.ReadLogRequest, context: Any) -> pb.ReadLogResponse:  # noqa: N802 - gRPC names
        self.pages += not request.newest
        if self.pages > 1:
            self._logged = self.other
        return super().ReadLog(request, context)


@pytest.mark.hostile
def test_a_log_exchanged_between_going_over_it_and_reading_it_gives_no_report(
    tmp_path: Path,
) -> None:
    site, store, note = log_of(tmp_path / "a", told=1)
    _, other, _ = log_of(tmp_path / "b", told=2)
    servicer = servicer_of(store, note, TwoLogs)
    assert isinstance(servicer, TwoLogs)
    servicer.other = tuple(other.log_entries(start=0, limit=SIZE))
    with (
        scripted(site, servicer) as desk,
        source_at(desk) as (source, believed),
        pytest.raises(IntegrityError, match="not those that were gone over"),
    ):
        evidence_from_coordinator(source, believed)
