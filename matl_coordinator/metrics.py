"""Prometheus metrics of the coordinator, on a port of their own.

Labels are bounded: outcomes and phases are enumerations, node ids come from the
allow-list, and what a stranger sends makes none. Nothing here changes what the coordinator does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from itertools import product
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from matl_common.identity.allowlist import RefusalReason
from matl_common.ids import NodeId
from matl_common.scrapes import describe_process, serve_scrapes, show_disk
from matl_coordinator.core.admission import RefusalCode
from matl_coordinator.core.power import ByzantinePower
from matl_coordinator.core.rounds import Evaluation, Phase, Round
from matl_coordinator.core.trust_record import TrustRecord, TrustState
from matl_coordinator.core.vitals import Vitals
from matl_coordinator.service.alarms import KINDS
from matl_coordinator.service.conductor import NON_COMPLIANT
from matl_coordinator.vital_metrics import NAMESPACE, VitalMetrics

CALL_SECONDS = (0.002, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0, 120.0, 600.0)
REFUSED_PEERS = (
    *RefusalReason,
    # By TLS, before anybody is known.
    *("no_certificate", "wrong_authority", "wrong_purpose", "not_yet_valid", "not_tls_1_3"),
    "handshake_failed",
    *(
        "not_a_front_end",
        "not_authenticated",
        "not_certified",
        "not_for_front_ends",
        "role_not_allowed",
        "too_many_calls",
        "unknown_method",
    ),
)
FAULTS = ("INTERNAL", "UNKNOWN")
"""Statuses of which a method's first call is one too many."""
FILES = ("allowlist", "tls")
LOG_TABLES = ("log_checkpoints", "log_cosignatures", "log_entries", "log_keys")
COMMIT_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
ADMITTED = "admitted"
"""The outcome of an update that is no refusal."""


class Metrics:
    """A ``ports.Meter`` in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._end_serving: Callable[[], None] | None = None
        # Hospitals with values of their own.
        self._shown: set[NodeId] = set()
        self._rounds = self._counter("rounds_total", "Rounds that ended.", "outcome")
        self._updates = self._counter("updates_total", "Updates by what became of them.", "outcome")
        self._refused_peers = self._counter(
            "refused_peers_total",
            "Connections and calls of peers that may not take part.",
            "reason",
        )
        self._delayed = self._counter(
            "delayed_calls_total", "Calls that had to wait because their caller calls too often."
        )
        self._leader = self._gauge(
            "coordinator_leader", "1 for the coordinator that leads, 0 for one that stands by."
        )
        self._reign = self._gauge("coordinator_reign", "Number of this coordinator's take-over.")
        self._enrolled = self._gauge("enrolled_participants", "Hospitals on the allow-list.")
        self._stale = self._gauge(
            "stale_files",
            "1 for a file whose content was refused: what was read before is in force.",
            "file",
        )
        self._valid = self._gauge(
            "tls_certificate_valid_seconds", "Until the coordinator's certificate expires."
        )
        self._received = self._counter("received_bytes_total", "Bytes of updates received.")
        self._sent = self._counter("sent_bytes_total", "Bytes of models sent.")
        self._phase_failures = self._counter(
            "phase_failures_total", "Failed attempts at a phase of a round.", "phase"
        )
        self._store_failures = self._counter(
            "store_failures_total", "Times the store did not confirm and the state was reloaded."
        )
        self._calls = self._counter(
            "rpc_calls_total", "Calls that ended, by method and gRPC status.", "method", "code"
        )
        self._call_seconds = self._histogram(
            "rpc_seconds", "How long calls took, streams as a whole.", CALL_SECONDS, "method"
        )
        self._commit_seconds = self._histogram(
            "store_commit_seconds", "Until the store confirmed a transaction.", COMMIT_SECONDS
        )
        self._trust = self._gauge("trust_score", "Trust of a hospital, 0 to 1.", "node")
        self._trust_state = self._gauge(
            "trust_state", "1 for a hospital's state of trust.", "node", "state"
        )
        self._power = self._gauge(
            "byzantine_power_ratio",
            "Squared reputation that the last round spoke against, over that of all others.",
        )
        self._cartel = self._gauge(
            "cartel_risk",
            "Weight that the largest group of nearly identical updates would have had.",
        )
        self._refused_updates = self._counter(
            "updates_refused_total", "Updates that do not count, by why.", "reason"
        )
        self._alarms = self._counter(
            "alarms_total", "Times an operator was called to look at a round.", "kind"
        )
        self._weight = self._gauge("aggregation_weight_ratio", "Share in the aggregate.", "node")
        self._reach = self._gauge(
            "step_reach_ratio",
            "How much of the last round's aggregate was, or may be, taken; NaN if unknown.",
        )
        self._present = self._gauge("participants_present", "Hospitals heard from recently.")
        self._accuracy = self._gauge(
            "model_accuracy_ratio", "Holdout accuracy of the last model released; NaN if unknown."
        )
        self._kappa = self._gauge(
            "model_quadratic_weighted_kappa",
            "Holdout kappa of the last model released; NaN if unknown.",
        )
        # A model that nobody has looked at is not one that is always wrong, nor a step borne.
        for gauge in (self._accuracy, self._kappa, self._reach):
            gauge.set(float("nan"))
        self._hospital_accuracy = self._gauge(
            "hospital_noised_accuracy_ratio",
            "What a hospital says of a round's base model: noised count over enrolled patients.",
            "node",
        )
        self._hospital_stddev = self._gauge(
            "hospital_noised_accuracy_stddev_ratio",
            "Standard deviation of the noise in it.",
            "node",
        )
        self._disk = self._gauge("disk_bytes", "Bytes on disk, by what they are of.", "kind")
        self._put_away = self._counter(
            "models_put_away_bytes_total", "Bytes of models deleted by limits.keep_models."
        )
        self._foreign_rows = self._counter(
            "log_foreign_rows_total",
            "Rows of the log's tables found that the coordinator did not write.",
            "table",
        )
        self._begin_at_zero()
        self._vitals = VitalMetrics(self.registry)
        describe_process(self.registry, namespace=NAMESPACE)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=NAMESPACE, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, namespace=NAMESPACE, registry=self.registry)

    def _begin_at_zero(self) -> None:
        """So that the first of a kind is an increase, and rules name what is there."""
        for counter, values in (
            (self._rounds, (Phase.RELEASED, Phase.ABORTED)),
            (self._updates, (ADMITTED, *RefusalCode)),
            (self._refused_updates, (NON_COMPLIANT, *RefusalCode)),
            (self._refused_peers, REFUSED_PEERS),
            (self._phase_failures, Phase),
            (self._alarms, KINDS),
            (self._foreign_rows, LOG_TABLES),
        ):
            for value in values:
                counter.labels(str(value))
        for file in FILES:
            self._stale.labels(file=file).set(0)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(
            name, text, labels, buckets=buckets, namespace=NAMESPACE, registry=self.registry
        )

    def watch_disk(self, folder: Path, *, spool_quota_bytes: int) -> None:
        """Show, at every scrape, what room there is on the folder's disk."""
        show_disk(self.registry, folder, namespace=NAMESPACE)
        self._gauge("spool_quota_bytes", "What updates on disk may take.").set(spool_quota_bytes)

    def serve(self, address: str) -> None:
        """Answer scrapes at ``host:port`` from daemon threads, and whether the event loop turns.

        Raises:
            ConfigurationError: the port is taken, or is no port of this machine.
        """
        self._end_serving = serve_scrapes(
            address, self.registry, setting="listen.metrics", loop=asyncio.get_running_loop()
        )

    def close(self) -> None:
        """Answer no more, and leave the port to others."""
        if self._end_serving is not None:
            self._end_serving()
            self._end_serving = None

    def leads(self, reign: int) -> None:
        self._leader.set(1)
        self._reign.set(reign)

    def update_decided(self, outcome: str) -> None:
        self._updates.labels(outcome=outcome).inc()
        if outcome != ADMITTED:
            self._refused_updates.labels(reason=outcome).inc()

    def bytes_received(self, count: int) -> None:
        self._received.inc(count)

    def bytes_sent(self, count: int) -> None:
        self._sent.inc(count)

    def peer_refused(self, reason: str) -> None:
        self._refused_peers.labels(reason=reason).inc()

    def call_delayed(self) -> None:
        self._delayed.inc()

    def enrolment_changed(self, participants: int) -> None:
        self._enrolled.set(participants)

    def file_refused(self, file: str, *, refused: bool) -> None:
        self._stale.labels(file=file).set(refused)

    def certificate_valid(self, seconds: float) -> None:
        self._valid.set(seconds)

    def phase_failed(self, phase: Phase) -> None:
        self._phase_failures.labels(phase=phase.value).inc()

    def store_failed(self) -> None:
        self._store_failures.inc()

    def present(self, count: int) -> None:
        self._present.set(count)

    def round_changed(self, rnd: Round) -> None:
        self._vitals.show_round(rnd)
        if rnd.phase.is_final:
            self._rounds.labels(outcome=rnd.phase.value).inc()
        self._shown |= rnd.admitted_nodes
        for each in rnd.admitted:
            if (found := each.evaluation) is not None and found.correct is not None:
                ratio, stddev = found.correct / found.patients, found.stddev / found.patients
                self._hospital_accuracy.labels(node=each.node_id).set(ratio)
                self._hospital_stddev.labels(node=each.node_id).set(stddev)
        if rnd.evaluation is not None:
            self.model_evaluated(rnd.evaluation)

    def model_evaluated(self, evaluation: Evaluation) -> None:
        self._accuracy.set(evaluation.accuracy)
        self._kappa.set(evaluation.quadratic_weighted_kappa)

    def trust_changed(self, records: Sequence[TrustRecord], rnd: Round) -> None:
        weights = {each.node_id: each.weight for each in rnd.weights}
        self._shown |= {record.node_id for record in records}
        for record in records:
            self._trust.labels(node=record.node_id).set(record.trust)
            for state in TrustState:
                self._trust_state.labels(node=record.node_id, state=state.value).set(
                    state is record.state
                )
            self._weight.labels(node=record.node_id).set(weights.get(record.node_id, 0.0))

    def step_tried(self, reach: float) -> None:
        self._reach.set(reach)

    def power_measured(self, power: ByzantinePower) -> None:
        self._power.set(power.ratio)
        self._cartel.set(power.cartel_share)

    def update_refused(self, reason: str) -> None:
        self._refused_updates.labels(reason=reason).inc()

    def alarm_raised(self, kind: str) -> None:
        self._alarms.labels(kind=kind).inc()

    def methods_served(self, methods: Collection[str]) -> None:
        for method, code in product(methods, FAULTS):
            self._calls.labels(method=method, code=code)

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        self._calls.labels(method=method, code=code).inc()
        self._call_seconds.labels(method=method).observe(seconds)

    def committed(self, seconds: float) -> None:
        self._commit_seconds.observe(seconds)

    def vitals_taken(self, vitals: Vitals) -> None:
        self._vitals.show(vitals)
        enrolled = set(vitals.budgets)
        for node in self._shown - enrolled:
            self._vitals.forget(node)
            for gauge in (
                self._trust,
                self._weight,
                self._hospital_accuracy,
                self._hospital_stddev,
            ):
                gauge.remove(node)
            for state in TrustState:
                self._trust_state.remove(node, state.value)
        self._shown = enrolled

    def log_grew(self, size: int) -> None:
        self._vitals.show_log_size(size)

    def disk_used(self, kind: str, size: int) -> None:
        self._disk.labels(kind=kind).set(size)

    def models_put_away(self, size: int) -> None:
        self._put_away.inc(size)

    def foreign_row_found(self, table: str) -> None:
        self._foreign_rows.labels(table=table).inc()
