"""Prometheus metrics of a participant, on a port of their own.

Nothing here describes patients, labels or training: no loss, no counts, no timing of
a round but when its update was admitted, which the coordinator knows. Labels are bounded: nothing
that a coordinator says becomes one. Nothing here changes what the participant does.
"""

import asyncio
import math
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge

from matl_common.protocol import Standing
from matl_common.scrapes import describe_process, serve_scrapes, show_disk
from matl_participant.core.spending import Summary

NAMESPACE = "matl_participant"
ACTIONS = (
    *("attest", "hello", "prepare", "await_round", "pull_model", "train", "seal", "upload"),
    *("take_leave", "witness"),
)
OUTCOMES = ("admitted", "lost", "refused")
_MEMORY_STEP = 64 << 20
STATES = ("trusted", "marginal", "quarantined")
OTHER = "other"
"""Whatever else a coordinator calls a hospital's state."""


class Metrics:
    """All metrics of one participant, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rounds_joined = self._counter("rounds_joined_total", "Rounds charged and trained for.")
        self.uploads = self._counter(
            "uploads_total", "Sealed updates by what became of them.", "outcome"
        )
        self.attempts_lost = self._counter(
            "attempts_lost_total", "Charged attempts that gave no update."
        )
        self.sent = self._counter("sent_bytes_total", "Bytes of updates sent.")
        self.received = self._counter("received_bytes_total", "Bytes of models received.")
        self.failures = self._counter(
            "failures_total", "Failed calls and jobs, by what failed.", "action"
        )
        self.connected = self._gauge(
            "connected", "1 while the coordinator answers and its plan is the ledger's."
        )
        self.attested = self._gauge(
            "coordinator_attested", "1 while genuine evidence of the coordinator's machine counts."
        )
        self.attested_simulated = self._gauge(
            "coordinator_attested_SIMULATED",
            "1 while SIMULATED evidence counts, which proves nothing; then the other one is 0.",
        )
        self.certificate_valid = self._gauge(
            "tls_certificate_valid_seconds", "Until this hospital's certificate expires."
        )
        self.halted = self._gauge("halted", "1 once the study has ended here for good.")
        self.round = self._gauge("round_number", "The last round attempted.")
        self.trust = self._gauge("trust_score", "How the coordinator sees this hospital, 0 to 1.")
        self.trust_state = self._gauge(
            "trust_state", "1 for the state of trust the coordinator names.", "state"
        )
        self.seen = self._gauge(
            "coordinator_seen_timestamp_seconds", "When the coordinator last answered."
        )
        self.admitted_at = self._gauge(
            "update_admitted_timestamp_seconds", "When an update was last admitted."
        )
        self.epsilon_spent = self._gauge(
            "epsilon_spent", "Spent at the plan's delta, for add-or-remove-one patient."
        )
        self.epsilon_target = self._gauge("epsilon_target", "What the study may spend.")
        self.budget_fraction = self._gauge(
            "budget_fraction", "Share of the study's budget spent; linear, as epsilon is not."
        )
        self.dataset_epsilon_spent = self._gauge(
            "dataset_epsilon_spent",
            "Spent by all studies on the data set, for add-or-remove-one patient.",
        )
        self.dataset_epsilon_limit = self._gauge(
            "dataset_epsilon_limit", "What all studies together may spend; +Inf without a limit."
        )
        self.resident_peak = self._gauge(
            "training_resident_peak_bytes",
            "Main memory that a training process took at most, up to the next 64 MiB.",
            "process",
        )
        self.device_peak = self._gauge(
            "training_device_peak_bytes",
            "GPU memory in tensors that a training process took at most, up to the next 64 MiB.",
            "process",
        )
        self.rounds_left = self._gauge("rounds_left", "Rounds the budget still allows.")
        self.cosigned_size = self._gauge(
            "log_cosigned_size", "Entries in the last checkpoint of the log cosigned here."
        )
        self.cosigned_at = self._gauge(
            "log_cosigned_timestamp_seconds", "When the log was last seen to hold that cosignature."
        )
        self.proofs_owed = self._gauge(
            "log_proofs_owed", "Receipted updates that the log has not been shown to hold yet."
        )
        self.log_distrusted = self._gauge(
            "log_distrusted", "1 once there is evidence against the log; see log-evidence."
        )
        for outcome in OUTCOMES:
            self.uploads.labels(outcome)
        for action in ACTIONS:
            self.failures.labels(action)
        describe_process(self.registry, namespace=NAMESPACE)

    def show_budget(self, summary: Summary) -> None:
        """Show what the ledger says."""
        self.epsilon_spent.set(summary.epsilon_spent)
        self.epsilon_target.set(summary.target_epsilon)
        self.budget_fraction.set(summary.budget_fraction)
        self.rounds_left.set(summary.rounds_left)
        together = summary.together
        self.dataset_epsilon_spent.set(together.epsilon_spent)
        self.dataset_epsilon_limit.set(
            math.inf if together.limit_epsilon is None else together.limit_epsilon
        )
        self.halted.set(summary.halted is not None)

    def show_standing(self, standing: Standing) -> None:
        """Show how the coordinator sees us."""
        self.trust.set(standing.trust)
        named = standing.state if standing.state in STATES else OTHER
        for state in (*STATES, OTHER):
            self.trust_state.labels(state=state).set(state == named)

    def show_memory(self, process: str, *, resident_bytes: int, device_bytes: int) -> None:
        """Show what a training process took, in steps that hide a few thousand patients."""
        self.resident_peak.labels(process).set(_stepped(resident_bytes))
        self.device_peak.labels(process).set(_stepped(device_bytes))

    def watch_disk(self, folder: Path) -> None:
        """Show, at every scrape, what room there is on the folder's disk."""
        show_disk(self.registry, folder, namespace=NAMESPACE)

    def serve(self, address: str) -> None:
        """Answer scrapes at ``host:port`` from daemon threads, and whether the event loop turns.

        Raises:
            ConfigurationError: the port is taken, or is no port of this machine.
        """
        serve_scrapes(
            address, self.registry, setting="daemon.metrics", loop=asyncio.get_running_loop()
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=NAMESPACE, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, namespace=NAMESPACE, registry=self.registry)


def _stepped(memory: int) -> int:
    return -(-memory // _MEMORY_STEP) * _MEMORY_STEP
