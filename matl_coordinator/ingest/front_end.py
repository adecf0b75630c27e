"""One running front end: every part made, started in order, and ended in reverse."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack

import structlog

from matl_common.clock import utc_now
from matl_common.errors import ConfigurationError
from matl_common.identity.tls import ServerIdentity
from matl_common.version import __version__
from matl_coordinator.ingest.config import FrontEndConfig
from matl_coordinator.ingest.downloads import Downloads
from matl_coordinator.ingest.leader import Leader
from matl_coordinator.ingest.metrics import FrontEndMetrics
from matl_coordinator.ingest.server import FrontEndServer
from matl_coordinator.ingest.uploads import Uploads
from matl_coordinator.rpc.handshakes import watched_handshakes
from matl_coordinator.rpc.renewal import CertificateFiles
from matl_coordinator.rpc.server import served_methods
from matl_coordinator.store.loans import Loans

log = structlog.get_logger(__name__)


class FrontEnd:
    """All parts of one running front end. ``run`` returns when told to stop."""

    def __init__(self, config: FrontEndConfig) -> None:
        """Read keys; nothing is opened yet.

        Raises:
            ConfigurationError: a file is missing or does not fit.
            TokenError: a key's token cannot be reached.
        """
        for folder in filter(None, (config.spool, config.models)):
            if not folder.is_dir():
                raise ConfigurationError(
                    f"there is no folder {folder}: mount it from the coordinator's state_dir; a "
                    "coordinator that has run once has made it"
                )
        self._config = config
        self._identity = ServerIdentity(config.identity.tls)
        self._metrics = FrontEndMetrics(
            methods=[path.rpartition(".")[2] for path in served_methods()]
        )
        self._leader = Leader(
            config.leader.address,
            config.leader.tls,
            config.coordinator_name,
            poll_seconds=config.leader.poll_seconds,
            timeout_seconds=config.leader.timeout_seconds,
            meter=self._metrics,
        )
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Drain and return from ``run``."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until stopped.

        Raises:
            ConfigurationError: a port cannot be listened on.
        """
        config = self._config
        async with AsyncExitStack() as stack:
            stack.callback(self._metrics.close)
            self._serve_metrics()
            loop = asyncio.get_running_loop()
            stack.enter_context(
                watched_handshakes(
                    lambda reason: loop.call_soon_threadsafe(
                        self._metrics.handshake_refused, reason
                    )
                )
            )
            stack.push_async_callback(self._leader.close)
            certificates = CertificateFiles(
                identity=self._identity, meter=self._metrics, note=_unlogged, clock=utc_now
            )
            for work in (self._leader.run(), certificates.run()):
                stack.push_async_callback(_ended, asyncio.create_task(work))
            server = FrontEndServer(
                identity=self._identity,
                leader=self._leader,
                uploads=Uploads(
                    self._leader,
                    Loans(config.spool),
                    idle_seconds=config.limits.idle_seconds,
                    meter=self._metrics,
                ),
                downloads=self._downloads(),
                meter=self._metrics,
            )
            port = await server.start(config.listen.address)
            log.info(
                "front_end_ready", version=__version__, port=port, leader=config.leader.address
            )
            await self._stop.wait()
            log.info("front_end_draining", seconds_at_most=config.limits.drain_seconds)
            await server.stop(grace_seconds=config.limits.drain_seconds)

    def _downloads(self) -> Downloads | None:
        config = self._config
        if config.models is None:
            return None
        return Downloads(
            self._leader,
            config.models,
            idle_seconds=config.limits.idle_seconds,
            meter=self._metrics,
        )

    def _serve_metrics(self) -> None:
        if not self._config.listen.metrics:
            return
        self._metrics.serve(self._config.listen.metrics)


async def _unlogged(event: str, facts: Mapping[str, object]) -> None:
    """The log is the leader's."""


async def _ended(task: asyncio.Task[None]) -> None:
    """Whatever it came to."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
