"""What a hospital knows of itself: its ledgers, data, receipts and metrics, as values.

Reads files on this machine, beside the running daemon, and the daemon's own metrics on loopback.
Asks no coordinator, changes nothing, and reads no image and no row of the labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.error import URLError
from urllib.request import urlopen

from matl.dashboard.snapshot import Proof
from matl_common.errors import ConfigurationError, IntegrityError, InvalidInputError
from matl_common.identity.keys import load_verifier_key
from matl_common.ids import FederationId
from matl_common.log_evidence import claim_of
from matl_common.tlog.checkpoint import open_checkpoint, verify_checkpoint
from matl_common.tlog.note import VerifierKey
from matl_common.tlog.submission import Worth, judge, shown_in
from matl_participant.config import Config
from matl_participant.core.journal import LedgerCorruptError
from matl_participant.core.spending import Summary, projected_end, summarise
from matl_participant.data.inspect import check_patient_unit, inspect_data
from matl_participant.files import StateFolder
from matl_participant.ledger import read_accounts
from matl_participant.log_files import (
    CHECKPOINT_FILE,
    EvidenceFolder,
    Submission,
    read_proof,
    submissions,
)
from matl_participant.metrics import NAMESPACE
from matl_participant.verification import Verdict, verify_ledgers

_SCRAPE_SECONDS = 2.0
_MOST_METRIC_BYTES = 1 << 20
_RECEIPTS_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Budget:
    """One study's cost to this hospital's patients, and when it would be spent at this pace."""

    summary: Summary
    projected_end: datetime | None


@dataclass(frozen=True, slots=True)
class Receipt:
    """An update that the coordinator admitted, and what is verified of its place in the log."""

    round_id: int
    update: str
    admitted_at: datetime
    index: int
    proof: Proof
    why: str = ""


@dataclass(frozen=True, slots=True)
class DataState:
    """What a look at the labels' header found; ``problem`` is why the daemon would refuse."""

    columns: tuple[str, ...] = ()
    warning: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """A hospital at one moment.

    Attributes:
        at: when this was read.
        node_id: the hospital.
        coordinator: SPIFFE id of the coordinator it speaks to.
        budgets: every study's, by the ledgers.
        verdicts: whether the ledgers can be relied upon.
        data: what was found of the data set's header.
        dataset: the data set's name.
        receipts: the newest, newest first.
        admitted: how many receipts there are.
        metrics: of the daemon, by name without prefix, with labels; empty where they cannot be
            read.
        metrics_problem: why; empty where nothing is wrong.
        cosigned_size: entries of the log under the last checkpoint cosigned here; 0 for none.
        evidence: files of evidence against the log that nobody has dealt with.
    """

    at: datetime
    node_id: str
    coordinator: str
    budgets: tuple[Budget, ...]
    verdicts: tuple[Verdict, ...]
    data: DataState
    dataset: str
    receipts: tuple[Receipt, ...]
    admitted: int
    metrics: Mapping[str, float]
    metrics_problem: str
    cosigned_size: int
    evidence: int


def read_node(
    config: Config, *, now: datetime, previous: NodeSnapshot | None = None
) -> NodeSnapshot:
    """Look at a hospital's state.

    Args:
        config: the participant's.
        now: the time.
        previous: what was read before. While no ledger has a new entry its budgets are kept: a
            sampled study's ε takes seconds to compose.

    Raises:
        OSError: a file of it cannot be read.
    """
    state = StateFolder(config.state_dir)
    log_key = _log_key(config)
    verdicts = verify_ledgers(state)
    is_same = previous is not None and previous.verdicts == verdicts
    budgets = previous.budgets if previous and is_same else _budgets(state, config, now=now)
    admitted = _admitted(state, config)
    metrics, metrics_problem = _metrics(config.daemon.metrics)
    return NodeSnapshot(
        at=now,
        node_id=config.node_id,
        coordinator=config.coordinator.spiffe_id,
        budgets=budgets,
        verdicts=verdicts,
        data=_data(config),
        dataset=config.data.dataset,
        receipts=tuple(_receipt(each, log_key) for each in admitted[:_RECEIPTS_SHOWN]),
        admitted=len(admitted),
        metrics=metrics,
        metrics_problem=metrics_problem,
        cosigned_size=_cosigned_size(state, log_key),
        evidence=len(EvidenceFolder(state).standing()),
    )


def _log_key(config: Config) -> VerifierKey | None:
    path = config.coordinator.log_key
    return None if path is None else load_verifier_key(path)


def _budgets(state: StateFolder, config: Config, *, now: datetime) -> tuple[Budget, ...]:
    found = []
    try:
        accounts = read_accounts(state.ledger, limit=config.privacy.dataset_limit)
    except LedgerCorruptError:
        # ``verdicts`` names the line.
        return ()
    for account, shared in accounts:
        summary = summarise(account, shared)
        end = projected_end(account, rounds=summary.rounds_left, now=now)
        found.append(Budget(summary, end))
    return tuple(found)


def _data(config: Config) -> DataState:
    try:
        columns = inspect_data(config.data.images, config.data.labels_file)
        warning = check_patient_unit(columns, config.data.images_per_patient)
    except ConfigurationError as error:
        return DataState(problem=str(error))
    return DataState(columns, warning or "")


def _admitted(state: StateFolder, config: Config) -> list[Submission]:
    """What the coordinator gave a receipt for, newest first."""
    found = submissions(state, FederationId(config.coordinator.name.federation))
    return sorted(found, key=lambda each: each.receipt.admitted_at, reverse=True)


def _receipt(submission: Submission, log_key: VerifierKey | None) -> Receipt:
    receipt = submission.receipt
    proof, why = _proof(submission, log_key)
    return Receipt(
        receipt.round_id,
        receipt.update_digest,
        receipt.admitted_at,
        receipt.log_index,
        proof,
        why,
    )


def _proof(submission: Submission, log_key: VerifierKey | None) -> tuple[Proof, str]:
    """Whether the proof that is kept shows what the receipt promises."""
    if log_key is None:
        return Proof.UNCHECKED, "coordinator.log_key is not set"
    kept = read_proof(submission)
    if kept is None:
        return Proof.PENDING, ""
    try:
        signed = verify_checkpoint(kept.checkpoint, [log_key])
        found = judge(claim_of(submission.receipt), shown_in(kept), signed.checkpoint)
    except (IntegrityError, InvalidInputError) as error:
        return Proof.BROKEN, str(error)
    if found.worth is Worth.HOLDS:
        return Proof.PROVEN, ""
    return Proof.BROKEN, found.reason


def _cosigned_size(state: StateFolder, log_key: VerifierKey | None) -> int:
    if log_key is None:
        return 0
    try:
        note = (state.path / CHECKPOINT_FILE).read_bytes()
        return open_checkpoint(note, [log_key]).checkpoint.size
    except (OSError, IntegrityError, InvalidInputError):
        return 0


def _metrics(address: str) -> tuple[Mapping[str, float], str]:
    if not address:
        return {}, "daemon.metrics is not set"
    try:
        with urlopen(f"http://{address}/metrics", timeout=_SCRAPE_SECONDS) as answer:
            text = answer.read(_MOST_METRIC_BYTES).decode(errors="replace")
    except (OSError, URLError):
        return {}, "the daemon does not answer"
    return parse_metrics(text), ""


def parse_metrics(text: str) -> Mapping[str, float]:
    """A participant's metrics by name without prefix, with labels as they stand."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith(f"{NAMESPACE}_"):
            found[name.removeprefix(f"{NAMESPACE}_")] = float(value)
    return found
