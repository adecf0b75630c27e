"""A coordinator's log served over mutual TLS to an operator's command, by an honest or a lying one.

``serving`` runs a real coordinator's use cases and server. ``ScriptedLog`` answers from a list of
entries, and whoever subclasses it may lie.
"""

# Before gRPC, which reads its TLS settings once.
import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from typer.testing import CliRunner, Result

import matl_common  # noqa: F401
from matl.cli import app
from matl_common.clock import utc_now
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.tls import ServerIdentity, server_credentials
from matl_common.tlog.merkle import inclusion_proof
from matl_common.wire import audit_pb2 as pb
from matl_common.wire.audit_pb2_grpc import (
    AuditServiceServicer,
    add_AuditServiceServicer_to_server,
)
from matl_coordinator.ports import LoggedEntry, Store
from matl_coordinator.rpc.server import build_server
from matl_coordinator.service.watch import Watch
from tests.coordinator.harness import COORDINATOR, OPERATOR, Site, running
from tests.system.federation import toml_text


@dataclass(frozen=True)
class Desk:
    """An operator's machine, and where the coordinator is."""

    site: Site
    port: int

    def run(self, *arguments: str) -> Result:
        mine = self.site.nodes[OPERATOR].tls
        coordinator = SpiffeId(self.site.allowlist.federation, Role.COORDINATOR, COORDINATOR)
        table = {
            "address": f"127.0.0.1:{self.port}",
            "coordinator": str(coordinator),
            "key": str(mine.private_key),
            "certificate": str(mine.certificate_chain),
            "authority": str(mine.trusted_authority),
        }
        config = self.site.folder / "operator.toml"
        config.write_text(toml_text({"operator": table}))
        return CliRunner().invoke(app, ["-c", str(config), "audit", *arguments])

    @property
    def log_key(self) -> tuple[str, str]:
        return ("--log-key", str(self.site.nodes[OPERATOR].log_verifier_key))


@contextmanager
def serving(site: Site, store: Store) -> Iterator[Desk]:
    """Yield an operator's desk beside a real coordinator on this store, which it closes."""
    ports: list[int] = []
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        async with running(site, store) as coordinator:
            server = build_server(
                site.config,
                use_cases=coordinator.use_cases,
                identity=ServerIdentity(site.config.identity.tls),
                roster=coordinator.roster,
                watch=Watch(register=coordinator.register, meter=coordinator.meter, clock=utc_now),
                meter=coordinator.meter,
                clock=utc_now,
            )
            ports.append(await server.start("127.0.0.1:0"))
            ready.set()
            await asyncio.to_thread(done.wait)
            await server.stop(grace_seconds=0)

    with ThreadPoolExecutor(max_workers=1) as pool:
        ended = pool.submit(asyncio.run, serve())
        ended.add_done_callback(lambda _: ready.set())
        ready.wait()
        try:
            if not ports:
                ended.result()
            yield Desk(site, ports[0])
        finally:
            done.set()
        ended.result()


class ScriptedLog(AuditServiceServicer):
    """Answers as an honest coordinator does."""

    def __init__(self, logged: Sequence[LoggedEntry], note: bytes, read_node: Any) -> None:
        self.note = note
        self.recorded: list[pb.RecordVerificationRequest] = []
        self._logged = logged
        self._read_node = read_node

    def entry(self, index: int) -> pb.LogEntry:
        found = self._logged[index]
        assert found.data is not None
        return pb.LogEntry(
            index=index,
            leaf=found.leaf,
            payload=found.payload,
            entry=found.data,
            leaf_hash=bytes.fromhex(found.leaf_hash),
            salt=found.salt or b"",
        )

    def page(self, start: int, limit: int) -> list[pb.LogEntry]:
        return [self.entry(i) for i in range(start, min(start + limit, len(self._logged)))]

    def ReadLog(self, request: pb.ReadLogRequest, context: Any) -> pb.ReadLogResponse:  # noqa: N802 - gRPC names
        size = len(self._logged)
        if request.newest:
            return pb.ReadLogResponse(entries=[self.entry(size - 1)], log_size=size, disclosed=True)
        return pb.ReadLogResponse(
            entries=self.page(request.from_index, request.limit), log_size=size, disclosed=True
        )

    def GetCheckpoint(  # noqa: N802 - gRPC names
        self, request: pb.GetCheckpointRequest, context: Any
    ) -> pb.GetCheckpointResponse:
        return pb.GetCheckpointResponse(note=self.note)

    def inclusion(self, index: int, size: int) -> pb.ProveInclusionResponse:
        found = self._logged[index]
        return pb.ProveInclusionResponse(
            leaf=found.leaf,
            path=inclusion_proof(index, size, self._read_node),
            salt=found.salt or b"",
            entry=found.data or b"",
        )

    def ProveInclusion(  # noqa: N802 - gRPC names
        self, request: pb.ProveInclusionRequest, context: Any
    ) -> pb.ProveInclusionResponse:
        return self.inclusion(request.index, request.size)

    def RecordVerification(  # noqa: N802 - gRPC names
        self, request: pb.RecordVerificationRequest, context: Any
    ) -> pb.RecordVerificationResponse:
        self.recorded.append(request)
        return pb.RecordVerificationResponse(index=len(self._logged))

    def AddCosignature(  # noqa: N802 - gRPC names
        self, request: pb.AddCosignatureRequest, context: Any
    ) -> pb.AddCosignatureResponse:
        raise NotImplementedError("no operator cosigns")

    def ProveConsistency(  # noqa: N802 - gRPC names
        self, request: pb.ProveConsistencyRequest, context: Any
    ) -> pb.ProveConsistencyResponse:
        raise NotImplementedError("no command asks for it")


@contextmanager
def scripted(site: Site, servicer: AuditServiceServicer) -> Iterator[Desk]:
    """Yield an operator's desk beside a coordinator that answers like this."""
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    add_AuditServiceServicer_to_server(servicer, server)
    tls = site.nodes[COORDINATOR].tls
    port = server.add_secure_port("127.0.0.1:0", server_credentials(tls))
    server.start()
    try:
        yield Desk(site, port)
    finally:
        server.stop(None).wait()
