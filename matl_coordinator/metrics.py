"""Prometheus metrics of the coordinator, on a port of their own.

Labels are bounded: outcomes and phases are enumerations, node ids come from the
allow-list. Nothing here changes what the coordinator does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from matl_common.scrapes import serve_scrapes
from matl_coordinator.core.power import ByzantinePower
from matl_coordinator.core.rounds import Phase, Round
from matl_coordinator.core.trust_record import TrustRecord, TrustState

NAMESPACE = "matl"
ADMITTED = "admitted"
"""The outcome of an update that is no refusal."""


class Metrics:
    """A ``ports.Meter`` in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._end_serving: Callable[[], None] | None = None
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
        self._round = self._gauge("round_number", "The newest round.")
        self._phase = self._gauge("round_phase", "1 for the newest round's phase.", "phase")
        self._present = self._gauge("participants_present", "Hospitals heard from recently.")
        self._accuracy = self._gauge(
            "model_accuracy_ratio", "Holdout accuracy of the last model released."
        )
        self._kappa = self._gauge(
            "model_quadratic_weighted_kappa", "Holdout kappa of the last model released."
        )
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
        self._log_size = self._gauge("log_entries", "Leaves of the log.")
        self._foreign_rows = self._counter(
            "log_foreign_rows_total",
            "Rows of the log's tables found that the coordinator did not write.",
            "table",
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=NAMESPACE, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, namespace=NAMESPACE, registry=self.registry)

    def serve(self, address: str, port: int) -> None:
        """Answer scrapes from a daemon thread.

        Raises:
            OSError: the port is taken.
        """
        self._end_serving = serve_scrapes(address, port, self.registry)

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
        self._round.set(rnd.round_id)
        for phase in Phase:
            self._phase.labels(phase=phase.value).set(phase is rnd.phase)
        if rnd.phase.is_final:
            self._rounds.labels(outcome=rnd.phase.value).inc()
        for each in rnd.admitted:
            if (found := each.evaluation) is not None and found.correct is not None:
                ratio, stddev = found.correct / found.patients, found.stddev / found.patients
                self._hospital_accuracy.labels(node=each.node_id).set(ratio)
                self._hospital_stddev.labels(node=each.node_id).set(stddev)
        if rnd.evaluation is not None:
            self._accuracy.set(rnd.evaluation.accuracy)
            self._kappa.set(rnd.evaluation.quadratic_weighted_kappa)

    def trust_changed(self, records: Sequence[TrustRecord], rnd: Round) -> None:
        weights = {each.node_id: each.weight for each in rnd.weights}
        for record in records:
            self._trust.labels(node=record.node_id).set(record.trust)
            for state in TrustState:
                self._trust_state.labels(node=record.node_id, state=state.value).set(
                    state is record.state
                )
            self._weight.labels(node=record.node_id).set(weights.get(record.node_id, 0.0))

    def power_measured(self, power: ByzantinePower) -> None:
        self._power.set(power.ratio)
        self._cartel.set(power.cartel_share)

    def update_refused(self, reason: str) -> None:
        self._refused_updates.labels(reason=reason).inc()

    def alarm_raised(self, kind: str) -> None:
        self._alarms.labels(kind=kind).inc()

    def log_grew(self, size: int) -> None:
        self._log_size.set(size)

    def disk_used(self, kind: str, size: int) -> None:
        self._disk.labels(kind=kind).set(size)

    def models_put_away(self, size: int) -> None:
        self._put_away.inc(size)

    def foreign_row_found(self, table: str) -> None:
        self._foreign_rows.labels(table=table).inc()
