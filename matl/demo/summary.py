"""What the demonstration found: gathered as values, printed as a table, kept as JSON.

Gathers from the coordinator, from each hospital's own ledger, and from the reference arms.
Every form it gives the figures says that the images are semi-synthetic.
"""

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from matl.demo.federation import LOG_FILE, PLOT_FILE, SUMMARY_FILE, Layout, is_attacked
from matl.demo.progress import Findings, NoResultError, trust_style
from matl.demo.reference import (
    REPEATS,
    ReferenceArms,
    TestSet,
    load_head,
    load_reference_data,
    train_references,
)
from matl.demo.study import (
    CLINICAL_THRESHOLD,
    DATASET,
    IMAGES_NOTE,
    RECIPE,
    STUDY_ID,
    SUSPECT,
    Attack,
    Settings,
    display_name,
)
from matl.history import History
from matl.machine import machine
from matl.operations import Evaluation, Round
from matl.plots import TRUSTED_FROM, draw_results
from matl_common.durable import write_atomically
from matl_common.ids import Digest, NodeId
from matl_common.privacy.charges import epsilon_of
from matl_common.privacy.mechanisms import Adjacency, PrivacyUnit
from matl_common.protocol import PrivacyTerms
from matl_common.tensors import MODEL_SUFFIX
from matl_participant.core.account import Account, AttemptState, Planned
from matl_participant.core.spending import WARNING_FRACTION, summarise, warning_epsilon
from matl_participant.ledger import open_ledger
from matl_participant.training.head import HeadTraining

_BARELY_POINTS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Spending:
    """ε of one hospital: what was left after each released round, and what was spent."""

    spent: float
    budget: float
    remaining: tuple[float, ...]
    has_ledger: bool
    attempts_lost: int = 0
    budget_fraction: float | None = None
    """Of the steps, and so of Σ 1/σ²; ``None`` without a ledger."""
    rounds_left: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is shown and kept."""

    settings: Settings
    findings: Findings
    matl: tuple[float, ...]
    """Accuracy of the released models on the test images, as fractions."""
    own: tuple[float, ...]
    """The same of the rounds' own models, which are not released where the study averages."""
    references: ReferenceArms
    spending: Mapping[NodeId, Spending]
    seconds: Mapping[str, float]
    command: str
    date: datetime


def conclude(
    layout: Layout,
    settings: Settings,
    findings: Findings,
    *,
    seconds: Mapping[str, float],
    command: str,
    date: datetime,
) -> Report:
    """Read the ledgers, train the reference arms, and put everything together.

    The participants must have stopped: a ledger has one writer.
    """
    started = time.monotonic()
    data = load_reference_data(layout, settings)
    terms = read_privacy_terms(layout, settings)
    references = train_references(
        load_head(model_path(layout, findings.rounds[0].base_model)),
        data.hospitals,
        data.test,
        rounds=len(findings.rounds),
        training=HeadTraining(
            steps=RECIPE.steps_per_round,
            learning_rate=RECIPE.learning_rate,
            noise_multiplier=terms.noise_multiplier,
            max_grad_norm=terms.max_grad_norm,
            declared_patients=1,
        ),
        attack=settings.attack,
    )
    return Report(
        settings=settings,
        findings=findings,
        matl=accuracies_on_test(layout, [r.released_model for r in findings.rounds], data.test),
        own=accuracies_on_test(layout, [r.round_model for r in findings.rounds], data.test),
        references=references,
        spending=read_spending(layout, settings, findings),
        seconds={**seconds, "reference_arms": time.monotonic() - started},
        command=command,
        date=date,
    )


def accuracies_on_test(layout: Layout, models: Sequence[str], test: TestSet) -> tuple[float, ...]:
    """Accuracy of each of these models on the test images, which their coordinator never saw."""
    return tuple(test.accuracy(load_head(model_path(layout, digest))) for digest in models)


def model_path(layout: Layout, digest: str) -> Path:
    """A model in the coordinator's store."""
    return layout.models / f"{Digest(digest)}{MODEL_SUFFIX}"


def read_spending(
    layout: Layout, settings: Settings, findings: Findings
) -> Mapping[NodeId, Spending]:
    """ε by hospital: from its own ledger, or as declared where it keeps none."""
    declared = {each.node_id: each.epsilon_spent or 0.0 for each in findings.participants}
    spending: dict[NodeId, Spending] = {}
    for spec in settings.hospitals:
        node = spec.node_id
        if is_attacked(settings, node):
            spending[node] = Spending(declared[node], settings.epsilon, (), has_ledger=False)
            continue
        folder = layout.state(node) / "ledger"
        with open_ledger(folder, dataset=DATASET, study_id=STUDY_ID) as ledger:
            spending[node] = spending_of(ledger.account, findings.rounds)
    return spending


def read_privacy_terms(layout: Layout, settings: Settings) -> PrivacyTerms:
    """The study's terms, as the first hospital's ledger froze them."""
    folder = layout.state(settings.hospitals[0].node_id) / "ledger"
    with open_ledger(folder, dataset=DATASET, study_id=STUDY_ID) as ledger:
        return _planned(ledger.account).privacy


def spending_of(account: Account, rounds: Sequence[Round]) -> Spending:
    """What an account spent, and what was left after each of these rounds."""
    terms, summary = _planned(account).privacy, summarise(account)
    budget = terms.target_epsilon

    def left_after(round_id: int) -> float:
        # Without noise both are infinite, and nothing is left to speak of.
        if terms.noise_multiplier == 0.0:
            return 0.0
        so_far = [each for each in account.attempts if each.round_id <= round_id]
        epsilon = epsilon_of(
            terms,
            steps=sum(each.steps for each in so_far),
            evaluations=sum(each.evaluations for each in so_far),
        )
        return max(0.0, budget - epsilon)

    return Spending(
        spent=summary.epsilon_spent,
        budget=budget,
        remaining=tuple(left_after(rnd.round_id) for rnd in rounds),
        has_ledger=True,
        attempts_lost=sum(each.state is AttemptState.ABANDONED for each in account.attempts),
        budget_fraction=summary.budget_fraction,
        rounds_left=summary.rounds_left,
    )


def _planned(account: Account) -> Planned:
    if account.plan is None:
        raise NoResultError("a hospital's ledger has no plan: it took no part in the study")
    return account.plan


def trust_by_hospital(settings: Settings, rounds: Sequence[Round]) -> Mapping[NodeId, list[float]]:
    """Trust after each round; a hospital that was not in a round keeps what it had."""
    trust: dict[NodeId, list[float]] = {}
    for spec in settings.hospitals:
        values: list[float] = []
        for rnd in rounds:
            known = {each.node_id: each.trust for each in rnd.contributions}
            values.append(known.get(spec.node_id, values[-1] if values else 0.0))
        trust[spec.node_id] = values
    return trust


def summary_document(report: Report) -> dict[str, object]:
    """``summary.json`` as a value; figures that are not finite become ``null``."""
    findings, status = report.findings, report.findings.status
    final = findings.rounds[-1]
    arms = {
        "matl": report.matl,
        "fedavg": report.references.fedavg,
        "fedavg_weighted": report.references.fedavg_weighted,
        "centralised": report.references.centralised,
    }
    return {
        "images": f"{IMAGES_NOTE}: the figures say nothing about patients",
        "machine": machine(),
        "date": report.date.isoformat(timespec="seconds"),
        "command": report.command,
        "settings": _finite(asdict(report.settings)),
        "recipe": asdict(RECIPE),
        "rounds": len(findings.rounds),
        "accuracy": {name: values[-1] for name, values in arms.items()},
        "accuracy_per_round": {name: list(values) for name, values in arms.items()}
        | {
            "matl_not_averaged": list(report.own),
            "fedavg_weighted_all_careful": list(report.references.fedavg_weighted_all_careful),
        },
        "holdout": [_finite(asdict(e)) for r in findings.rounds if (e := r.evaluation)],
        "trust": dict(trust_by_hospital(report.settings, findings.rounds)),
        "standing": {
            each.node_id: {"trust": each.trust, "state": each.state, "reason": each.reason}
            for each in findings.participants
        },
        "epsilon": {
            node: _finite(
                {
                    "spent": each.spent,
                    "budget": each.budget,
                    "remaining_per_round": list(each.remaining),
                    "from_ledger": each.has_ledger,
                    "attempts_lost": each.attempts_lost,
                    "budget_fraction": each.budget_fraction,
                    "rounds_left": each.rounds_left,
                }
            )
            for node, each in report.spending.items()
        },
        "released_model": final.released_model,
        "averaged": final.averaged,
        "log": {"size": status.log_size, "root": status.log_root},
        "measurements": {f"{name}_seconds": round(s, 1) for name, s in report.seconds.items()},
    }


def write_results(layout: Layout, report: Report) -> None:
    """Write the plots, the log, the released model and, last, ``summary.json``."""
    released = model_path(layout, report.findings.rounds[-1].released_model)
    shutil.copyfile(released, layout.out / released.name)
    entries = b"".join(entry + b"\n" for entry in report.findings.log_entries)
    write_atomically(layout.out / LOG_FILE, [entries], mode=0o644)
    draw(report, layout.out / PLOT_FILE)
    # A study without a summary counts as unfinished.
    text = json.dumps(summary_document(report), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(layout.out / SUMMARY_FILE, [text.encode() + b"\n"], mode=0o644)


def draw(report: Report, path: Path) -> None:
    """Write the four plots."""
    settings, rounds = report.settings, report.findings.rounds
    epsilon = f"{settings.epsilon:g}" if settings.is_private else "∞"
    history = History(
        rounds=[rnd.round_id for rnd in rounds],
        accuracy=report.matl,
        trust={display_name(n): t for n, t in trust_by_hospital(settings, rounds).items()},
        epsilon_remaining={
            display_name(node): each.remaining
            for node, each in report.spending.items()
            if each.has_ledger
        },
        epsilon_budget=settings.epsilon,
        epsilon_warning=(
            warning_epsilon(settings.epsilon, RECIPE.delta) if settings.is_private else math.inf
        ),
        references={
            "Centralised, no privacy": report.references.centralised,
            "FedAvg, unweighted": report.references.fedavg,
            "FedAvg, weighted by size": report.references.fedavg_weighted,
        },
        clinical_threshold=CLINICAL_THRESHOLD,
        delta=RECIPE.delta,
    )
    draw_results(
        history,
        path,
        title=f"Five hospitals learn to grade diabetic retinopathy, each at ε = {epsilon}",
        note=f"{IMAGES_NOTE.capitalize()} of {settings.patients:,} patients: the figures say "
        f"nothing about real ones.  {_fault(settings)}",
    )


def print_summary(console: Console, report: Report, layout: Layout) -> None:
    """Print the tables and what to make of them."""
    console.print()
    console.rule("[bold]What the federation learned[/bold]")
    console.print(_rounds_table(report))
    console.print(_hospitals_table(report))
    console.print(_arms_table(report))
    for line in _remarks(report):
        console.print(Text(f"· {line}"), soft_wrap=True)
    status = report.findings.status
    console.print(
        Text(f"\nLog: {status.log_size} entries, root {status.log_root}", style="dim"),
        soft_wrap=True,
    )
    final = report.findings.rounds[-1].released_model
    for name in (PLOT_FILE, SUMMARY_FILE, LOG_FILE, f"{final}{MODEL_SUFFIX}"):
        console.print(Text(str(layout.out / name)), soft_wrap=True)


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    # A title wider than its table would be wrapped.
    table.min_width = len(title)
    return table


def _rounds_table(report: Report) -> Table:
    table = _table(f"Accuracy, and trust in A to E ({IMAGES_NOTE})")
    for column in ("Round", "Test", "Holdout", "κ"):
        table.add_column(column, justify="right", no_wrap=True)
    trust = trust_by_hospital(report.settings, report.findings.rounds)
    for node in trust:
        table.add_column(node.rpartition("_")[2].upper(), justify="right", no_wrap=True)
    for row, (rnd, accuracy) in enumerate(zip(report.findings.rounds, report.matl, strict=True)):
        evaluation = _known(rnd.evaluation)
        table.add_row(
            str(rnd.round_id),
            f"{100 * accuracy:.1f} %",
            f"{100 * evaluation.accuracy:.1f} %",
            f"{evaluation.quadratic_weighted_kappa:.3f}",
            *(Text(f"{t[row]:.2f}", style=trust_style(t[row])) for t in trust.values()),
        )
    return table


def _hospitals_table(report: Report) -> Table:
    relation = f"{Adjacency.ADD_OR_REMOVE_ONE} {PrivacyUnit.PATIENT}"
    table = _table(f"Hospitals, after the last round (ε at δ = {RECIPE.delta:g}, {relation})")
    # Broken by hand, so that no column of an 80-column terminal is cut.
    for column in ("Hospital", "Patients", "Trust", "ε spent", "Of the\nbudget", "Rounds\nleft"):
        is_text = column == "Hospital"
        table.add_column(column, justify="left" if is_text else "right", no_wrap=True)
    standing = {each.node_id: each for each in report.findings.participants}
    for spec in report.settings.hospitals:
        seen, spending = standing[spec.node_id], report.spending[spec.node_id]
        spent = _epsilon(spending.spent)
        table.add_row(
            display_name(spec.node_id),
            f"{spec.patients:,}",
            Text(f"{seen.trust:.2f} {seen.state}", style=trust_style(seen.trust)),
            spent if spending.has_ledger else f"{spent} claimed",
            _share(spending.budget_fraction),
            "" if spending.rounds_left is None else str(spending.rounds_left),
        )
    return table


def _share(budget_fraction: float | None) -> Text:
    if budget_fraction is None:
        return Text("no ledger")
    is_half_spent = budget_fraction >= WARNING_FRACTION
    return Text(f"{budget_fraction:.1%}", style="yellow" if is_half_spent else "")


def _arms_table(report: Report) -> Table:
    table = _table(f"The same data, trained otherwise ({IMAGES_NOTE})")
    table.add_column("Arm")
    table.add_column("Accuracy, test", justify="right")
    references = report.references
    for name, values in (
        ("Centralised: all patients pooled, true labels, no privacy", references.centralised),
        ("MATL: what was released", report.matl),
        ("FedAvg weighted by size", references.fedavg_weighted),
        ("FedAvg unweighted, as in the tutorial", references.fedavg),
    ):
        style = "bold" if name.startswith("MATL") else ""
        table.add_row(Text(name, style=style), Text(f"{100 * values[-1]:.1f} %", style=style))
    return table


def _remarks(report: Report) -> list[str]:
    """What the figures mean, in sentences that the figures decide."""
    settings, references, matl = report.settings, report.references, report.matl[-1]
    remarks = [
        f"These are {IMAGES_NOTE}: nothing here is a figure about patients.",
        _fault(settings),
    ]
    plain, weighted = references.fedavg[-1], references.fedavg_weighted[-1]
    remarks.append(
        f"What was released is {100 * (matl - plain):+.1f} points from unweighted FedAvg, and "
        f"{100 * (matl - weighted):+.1f} from FedAvg weighted by size."
    )
    if averaged := report.findings.rounds[-1].averaged:
        remarks.append(
            f"It is the mean of the models of the last {averaged} rounds, which costs no privacy; "
            f"the last round's own reaches {100 * report.own[-1]:.1f} %. The other arms' are not "
            "averaged."
        )
    remarks.append(_remark_on_weighting(report))
    remarks += [
        f"{display_name(each.node_id)} is {each.state}: "
        f"{each.reason.partition(': ')[2] or each.reason}."
        for each in report.findings.participants
        if each.trust < TRUSTED_FROM
    ]
    if settings.is_private:
        remarks.append(
            f"The noise is drawn anew in every run: FedAvg is the median of {REPEATS} draws, what "
            "was released is one. The centralised arm has none."
        )
    verdict = "reached" if matl >= CLINICAL_THRESHOLD else "not reached"
    remarks.append(
        f"The tutorial's clinical threshold of {100 * CLINICAL_THRESHOLD:.0f} % is {verdict}."
    )
    return remarks


def _remark_on_weighting(report: Report) -> str:
    """How much FedAvg weighted by size suffers from hospital E."""
    settings, references = report.settings, report.references
    suspect = next(spec for spec in settings.hospitals if spec.node_id == SUSPECT)
    share = 100 * suspect.patients / settings.patients
    careful = references.fedavg_weighted_all_careful[-1]
    lost = 100 * (careful - references.fedavg_weighted[-1])
    fault = "mislabelling" if settings.attack is Attack.NONE else "hostile"
    facts = (
        f"{display_name(SUSPECT)} has {share:.0f} % of the patients, and were it careful, "
        f"accuracy would be {100 * careful:.1f} %, {lost:+.1f} points"
    )
    if lost < _BARELY_POINTS:
        return f"FedAvg weighted by size barely notices a small {fault} hospital: {facts}."
    return (
        f"FedAvg weighted by size suffers from a {fault} hospital even when it is small: {facts}."
    )


def _fault(settings: Settings) -> str:
    match settings.attack:
        case Attack.NONE:
            return f"{display_name(SUSPECT)}'s labels are all wrong."
        case attack:
            return f"{display_name(SUSPECT)} is hostile: {attack.value}."


def _epsilon(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "∞"


def _known(evaluation: Evaluation | None) -> Evaluation:
    assert evaluation is not None, "only rounds that released a model are gathered"
    return evaluation


def _finite(document: dict[str, object]) -> dict[str, object]:
    """JSON has no infinity and no NaN."""

    def cleaned(value: object) -> object:
        match value:
            case float() if not math.isfinite(value):
                return None
            case list() | tuple():
                return [cleaned(each) for each in value]
        return value

    return {name: cleaned(value) for name, value in document.items()}
