"""How the study stands, as gauges: set from one look every few seconds, whatever happens between.

The label ``node`` is a hospital of the allow-list; one that was removed loses its values.
"""

from __future__ import annotations

import time
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, Histogram

from matl_common.ids import NodeId
from matl_coordinator.core.rounds import Phase, Round
from matl_coordinator.core.vitals import LogVitals, Vitals

NAMESPACE: Final = "matl"
PHASE_SECONDS = (0.1, 0.5, 2.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0)


class VitalMetrics:
    """See the module."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._looked = self._gauge(
            "vitals_timestamp_seconds", "When the figures that are only looked at were last read."
        )
        self._lag = self._gauge("event_loop_lag_seconds", "By how much the last look was late.")
        self._paused = self._gauge("study_paused", "1 while no further round opens.")
        self._released = self._gauge("rounds_released", "Models the study has released.")
        self._planned = self._gauge("rounds_planned", "Models the study is to release.")
        self._appeals = self._gauge("appeals_open", "Appeals of hospitals nobody has answered.")
        self._round = self._gauge("round_number", "The newest round.")
        self._phase = self._gauge("round_phase", "1 for the newest round's phase.", "phase")
        self._phase_since = self._gauge(
            "round_phase_started_timestamp_seconds",
            "When the newest round's phase began; at a start, when this process first saw it.",
        )
        self._phase_seconds = Histogram(
            "round_phase_seconds",
            "How long phases took that this process saw from their beginning to their end.",
            ["phase"],
            buckets=PHASE_SECONDS,
            namespace=NAMESPACE,
            registry=registry,
        )
        self._deadline = self._gauge(
            "round_deadline_timestamp_seconds", "When the newest round closes; 0 before it opens."
        )
        self._wanted = self._gauge(
            "round_minimum_participants", "Hospitals without which the newest round does not open."
        )
        self._quorum = self._gauge(
            "round_quorum", "Admitted updates without which the newest round is aborted."
        )
        self._updates = self._gauge(
            "round_updates",
            "Hospitals invited to the newest round, by what became of them.",
            "status",
        )
        self._upload = self._gauge(
            "upload_ratio", "Share of its update that a hospital has sent while collecting.", "node"
        )
        self._uploading = self._gauge("uploads_in_progress", "Updates that are partly there.")
        self._spooled = self._gauge(
            "spool_reserved_bytes", "What updates on disk take, or have room reserved for."
        )
        self._seen = self._gauge(
            "hospital_seen_timestamp_seconds", "When a hospital last called; 0 if not yet.", "node"
        )
        self._epsilon = self._gauge(
            "hospital_declared_epsilon",
            "Spent by a hospital's admitted updates at the plan's delta, for add-or-remove-one "
            "patient; NaN where only its own ledger knows.",
            "node",
        )
        self._fraction = self._gauge(
            "hospital_declared_budget_ratio", "Share of the study's budget in them.", "node"
        )
        self._left = self._gauge(
            "hospital_rounds_left", "Rounds that the budget still allows a hospital.", "node"
        )
        self._log_size = self._gauge("log_entries", "Leaves of the log.")
        self._signed = self._gauge("log_signed_entries", "Entries under the newest checkpoint.")
        self._witnessed = self._gauge(
            "log_witnessed_entries", "Entries under a checkpoint that a quorum has cosigned."
        )
        self._unwitnessed = self._gauge(
            "log_unwitnessed_timestamp_seconds",
            "When the first entry was written that no quorum has cosigned; 0 if there is none.",
        )
        self._cosigned = self._gauge(
            "witness_cosigned_entries",
            "The largest checkpoint that a witness has cosigned.",
            "node",
        )
        self._verified = self._gauge(
            "log_verified_timestamp_seconds",
            "When somebody last found the whole log sound, by the log; 0 if nobody has.",
        )
        self._damaged = self._gauge(
            "log_found_damaged_timestamp_seconds",
            "When somebody last found damage in it, by the log; 0 if nobody has.",
        )
        self._backup_begun = self._gauge(
            "backup_begun_timestamp_seconds", "When a backup was last begun; 0 if none was."
        )
        self._backup_completed = self._gauge(
            "backup_completed_timestamp_seconds", "When one was last completed; 0 if none was."
        )
        # The newest round's phase, and since when by a clock that nobody sets.
        self._current: tuple[int, Phase, float] | None = None
        self._witnesses: set[NodeId] = set()

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, namespace=NAMESPACE, registry=self._registry)

    def show(self, vitals: Vitals) -> None:
        """Show a look's findings."""
        self._looked.set(vitals.at.timestamp())
        self._lag.set(vitals.lag_seconds)
        self._paused.set(vitals.paused)
        self._released.set(vitals.rounds_released)
        self._planned.set(vitals.rounds_planned)
        self._appeals.set(vitals.open_appeals)
        self._spooled.set(vitals.spooled_bytes)
        if vitals.round is not None:
            self.show_round(vitals.round)
        self._uploading.set(sum(0.0 < each < 1.0 for each in vitals.uploads.values()))
        for node, budget in vitals.budgets.items():
            self._upload.labels(node=node).set(vitals.uploads.get(node, 0.0))
            seen = vitals.last_seen.get(node)
            self._seen.labels(node=node).set(seen.timestamp() if seen else 0.0)
            unknown = float("nan")
            self._epsilon.labels(node=node).set(
                unknown if budget.epsilon is None else budget.epsilon
            )
            self._fraction.labels(node=node).set(budget.fraction)
            self._left.labels(node=node).set(budget.rounds_left)
        self._show_log(vitals.log)

    def show_log_size(self, size: int) -> None:
        """Show a log that has grown."""
        self._log_size.set(size)

    def show_round(self, rnd: Round) -> None:
        """Show a round, new or not; a phase that ended has taken its time."""
        self._round.set(rnd.round_id)
        self._turn_phase(rnd)
        self._deadline.set(rnd.deadline.timestamp() if rnd.deadline else 0.0)
        self._wanted.set(rnd.rules.minimum_participants)
        self._quorum.set(rnd.rules.quorum)
        for status, nodes in (
            ("admitted", rnd.admitted_nodes),
            ("excluded", rnd.excluded_nodes),
            ("pending", rnd.pending_nodes),
        ):
            self._updates.labels(status=status).set(len(nodes))

    def _turn_phase(self, rnd: Round) -> None:
        current, now = self._current, time.monotonic()
        if current is not None and current[:2] == (rnd.round_id, rnd.phase):
            return
        if current is not None and current[0] == rnd.round_id:
            self._phase_seconds.labels(phase=current[1].value).observe(now - current[2])
        self._current = rnd.round_id, rnd.phase, now
        self._phase_since.set(time.time())
        for phase in Phase:
            self._phase.labels(phase=phase.value).set(phase is rnd.phase)

    def _show_log(self, log: LogVitals) -> None:
        self._log_size.set(log.size)
        self._signed.set(log.signed)
        self._witnessed.set(log.witnessed)
        since = log.unwitnessed_since
        self._unwitnessed.set(since.timestamp() if since else 0.0)
        for node in self._witnesses - set(log.cosigned):
            self._cosigned.remove(node)
        self._witnesses = set(log.cosigned)
        for node, size in log.cosigned.items():
            self._cosigned.labels(node=node).set(size)
        for gauge, event in (
            (self._verified, "log_verified"),
            (self._damaged, "log_found_damaged"),
            (self._backup_begun, "backup_begun"),
        ):
            at = log.newest.get(event)
            gauge.set(at.timestamp() if at else 0.0)
        self._backup_completed.set(log.backed_up.timestamp() if log.backed_up else 0.0)

    def forget(self, node: NodeId) -> None:
        """Drop a hospital's values."""
        for gauge in (
            self._upload,
            self._seen,
            self._epsilon,
            self._fraction,
            self._left,
        ):
            gauge.remove(node)
