"""Prometheus metrics of a front end. Labels are bounded: methods are those that are served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

from prometheus_client import CollectorRegistry, Counter, Gauge

from matl_common.scrapes import describe_process, serve_scrapes

NAMESPACE = "matl_front_end"
OTHER = "other"
LEADERLESS_SECONDS = 10.0
"""How long nobody may say that it leads before hospitals are better off at another front end.

Calls are answered all the while, so that a hospital's connection stays where it is.
"""


class FrontEndMetrics:
    """What operators watch, in a registry of its own."""

    def __init__(
        self, *, methods: Collection[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``methods`` are the names that calls are counted by; all others are one."""
        self._clock = clock
        self._leaderless_since: float | None = clock()
        self.registry = CollectorRegistry()
        self._end_serving: Callable[[], None] | None = None
        self._methods = frozenset(methods)
        self._received = self._counter("received_bytes_total", "Bytes of updates received.")
        self._kept = self._counter(
            "kept_bytes_total",
            "Bytes of updates that others had received, and that did not come again.",
        )
        self._sent = self._counter("sent_bytes_total", "Bytes of models sent from the folder here.")
        self._spool_failures = self._counter(
            "spool_failures_total",
            "Calls that the shared spool ended: not mounted, or a disk's fault.",
        )
        self._calls = self._counter(
            "calls_total", "Calls that ended, by method and gRPC status.", "method", "code"
        )
        self._under_way = self._gauge("calls_under_way", "Calls of hospitals and operators.")
        self._handshakes = self._counter(
            "refused_handshakes_total", "Connections that TLS refused.", "reason"
        )
        self._reachable = self._gauge("leader_reachable", "1 while a coordinator says it leads.")
        self._stale = self._gauge(
            "stale_files",
            "1 for a file whose content was refused: what was read before is in force.",
            "file",
        )
        self._valid = self._gauge(
            "certificate_valid_seconds", "Until a certificate expires, by who sees it.", "seen_by"
        )
        describe_process(self.registry, namespace=NAMESPACE)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=NAMESPACE, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, namespace=NAMESPACE, registry=self.registry)

    def serve(self, address: str) -> None:
        """Answer scrapes at ``host:port`` from threads, and whether hospitals are well served.

        Raises:
            ConfigurationError: the port is taken, or is no port of this machine.
        """
        self._end_serving = serve_scrapes(
            address,
            self.registry,
            setting="listen.metrics",
            loop=asyncio.get_running_loop(),
            ailment=self.ailment,
        )

    def close(self) -> None:
        """Answer no more, and leave the port to others."""
        if self._end_serving is not None:
            self._end_serving()
            self._end_serving = None

    def bytes_received(self, count: int) -> None:
        """A chunk came in."""
        self._received.inc(count)

    def bytes_sent(self, count: int) -> None:
        """A part of a model was sent from here."""
        self._sent.inc(count)

    def bytes_kept(self, count: int) -> None:
        """An upload goes on after what others had received."""
        self._kept.inc(count)

    def spool_failed(self) -> None:
        """A call ended because the shared spool could not be used."""
        self._spool_failures.inc()

    def call_began(self) -> None:
        """Somebody who is certified calls."""
        self._under_way.inc()

    def call_ended(self, method: str, code: str) -> None:
        """The call is over."""
        self._under_way.dec()
        self._calls.labels(method=method if method in self._methods else OTHER, code=code).inc()

    def handshake_refused(self, reason: str) -> None:
        """Somebody could not connect."""
        self._handshakes.labels(reason=reason).inc()

    def leader_reachable(self, *, reachable: bool) -> None:
        """A coordinator said that it leads, or none did."""
        self._reachable.set(reachable)
        if reachable:
            self._leaderless_since = None
        elif self._leaderless_since is None:
            self._leaderless_since = self._clock()

    def ailment(self) -> str | None:
        """Why hospitals should be sent elsewhere, or nothing. Safe to call from any thread."""
        since = self._leaderless_since
        if since is None or self._clock() - since < LEADERLESS_SECONDS:
            return None
        return "reaches no coordinator that leads"

    def file_refused(self, file: str, *, refused: bool) -> None:
        """A file was read again: it is in force, or what was read before still is."""
        self._stale.labels(file=file).set(refused)

    def certificate_valid(self, seconds: float) -> None:
        """For how long the certificate is that hospitals see."""
        self._valid.labels(seen_by="hospitals").set(seconds)

    def own_certificate_valid(self, seconds: float) -> None:
        """For how long the certificate is that the leader sees."""
        self._valid.labels(seen_by="leader").set(seconds)
