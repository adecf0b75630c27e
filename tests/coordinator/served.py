"""A coordinator's use cases behind its real server, on a loop of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import grpc

from matl_common.clock import utc_now
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.tls import ServerIdentity, TlsFiles, channel_credentials, channel_options
from matl_common.ids import NodeId
from matl_coordinator.rpc.server import build_server
from matl_coordinator.service.watch import Watch
from tests.coordinator.harness import COORDINATOR, FEDERATION, Running, Site, running

T = TypeVar("T")
NAME = SpiffeId(FEDERATION, Role.COORDINATOR, COORDINATOR)


@dataclass(frozen=True)
class Served:
    """A coordinator that answers on a port of this process."""

    site: Site
    coordinator: Running
    port: int
    loop: asyncio.AbstractEventLoop

    def ask(self, question: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the coordinator's loop, from another thread."""
        return asyncio.run_coroutine_threadsafe(question, self.loop).result(60)

    @contextmanager
    def channel(self, node: NodeId, *, files: TlsFiles | None = None) -> Iterator[grpc.Channel]:
        """A connection of its own with an enrolled node's certificate, or with another."""
        options = (*channel_options(NAME), ("grpc.use_local_subchannel_pool", 1))
        credentials = channel_credentials(files or self.site.nodes[node].tls)
        address = f"127.0.0.1:{self.port}"
        with grpc.secure_channel(address, credentials, options=options) as channel:
            yield channel


@contextmanager
def served(
    site: Site, *, clock: Callable[[], datetime] = utc_now, grace_seconds: float = 0.0
) -> Iterator[Served]:
    """Yield a served coordinator. Its loop runs in a thread, so that a test may block.

    At the end, calls under way have ``grace_seconds``.
    """
    found: list[Served] = []
    ready, loop = threading.Event(), asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        async with running(site) as coordinator:
            watch = Watch(register=coordinator.register, meter=coordinator.meter, clock=clock)
            server = build_server(
                site.config,
                use_cases=coordinator.use_cases,
                identity=ServerIdentity(site.config.identity.tls),
                roster=coordinator.roster,
                watch=watch,
                meter=coordinator.meter,
                clock=clock,
            )
            found.append(Served(site, coordinator, await server.start("127.0.0.1:0"), loop))
            ready.set()
            await over.wait()
            await server.stop(grace_seconds=grace_seconds)

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            ready.set()
            loop.close()

    thread = threading.Thread(target=run, name="coordinator")
    thread.start()
    try:
        assert ready.wait(60)
        yield found[0]
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(over.set)
        thread.join(60)
