"""A report as words, tables and charts, in order. Pure: HTML and PDF are two ways to set it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from matl.charts import Chart, Curve, Level, line_chart
from matl.report.evidence import Evidence, ProvenRelease
from matl.report.study import RoundRecord, Study
from matl_participant.core.spending import shown_epsilon

_NO_FIGURE: Final = "–"


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Words."""

    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and what they are."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """A table; ``widths`` are shares of the page."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    widths: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart and what it shows."""

    chart: Chart
    caption: str


@dataclass(frozen=True, slots=True)
class Files:
    """Texts to take away, by the name of the file."""

    summary: str
    texts: tuple[tuple[str, str], ...]


Block = Paragraph | Facts | Rows | Figure | Files


@dataclass(frozen=True, slots=True)
class Part:
    """One section."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report."""

    title: str
    subtitle: str
    tiles: tuple[tuple[str, str, str], ...]
    parts: tuple[Part, ...] = field(default=())


def study_document(study: Study, evidence: Evidence, *, made_at: datetime) -> Document:
    """The report of a study whose log was opened."""
    scores = study.last_scores
    released = [each for each in study.rounds if each.outcome == "released"]
    most = max((each.fraction for each in study.spending.values()), default=0.0)
    return Document(
        title=f"Study {study.name}",
        subtitle=_subtitle(study.federation, made_at),
        tiles=(
            ("Models released", str(len(released)), f"in {len(study.rounds)} rounds"),
            (
                "Accuracy",
                f"{scores.accuracy:.1%}" if scores else _NO_FIGURE,
                f"κ {scores.kappa:.3f}, {scores.images} images" if scores else "no holdout set",
            ),
            ("Hospitals", str(len(study.hospitals)), f"{sum(study.patients.values())} enrolled"),
            ("Privacy budget", f"{most:.0%} spent", "by the hospital that spent the most"),
            ("Log", f"{evidence.audit.tally.size} entries", "gone over, and sound"),
        ),
        parts=(
            _about(study),
            _models(study),
            _trust(study),
            _privacy(study),
            _incidents(study),
            _rounds(study),
            _releases(study, evidence.releases),
            log_part(evidence, made_at=made_at),
        ),
    )


def sealed_document(evidence: Evidence, *, made_at: datetime) -> Document:
    """The report of a log whose entries cannot be opened here: what its leaves tell."""
    events = Counter(each.event for each in evidence.entries)
    rows = tuple((event.replace("_", " "), str(count)) for event, count in sorted(events.items()))
    told = Paragraph(
        "The entries of an exported log are encrypted, so there are no curves, trust or reasons "
        "here. What follows is what every leaf tells in the clear. Ask the coordinator, or read "
        "its database, for the whole report."
    )
    releases = tuple(
        (str(each.facts["round"]), str(each.facts["at"])[:19], str(each.index))
        for each in evidence.entries
        if each.event == "model_released"
    )
    return Document(
        title=f"Log {evidence.origin}",
        subtitle=_subtitle("", made_at),
        tiles=(
            ("Log", f"{evidence.audit.tally.size} entries", "gone over, and sound"),
            ("Models released", str(events["model_released"]), "by the leaves"),
        ),
        parts=(
            Part("What the leaves tell", (told, Rows(("Event", "Entries"), rows))),
            Part("Releases", (Rows(("Round", "At (UTC)", "Entry"), releases),)),
            log_part(evidence, made_at=made_at),
        ),
    )


def _subtitle(federation: str, made_at: datetime) -> str:
    of = f"of {federation}, " if federation else ""
    return (
        f"Report {of}made {made_at:%Y-%m-%d %H:%M} UTC from the transparency log alone. It holds "
        "no patient data."
    )


def _about(study: Study) -> Part:
    plan, terms = study.plan, study.plan.privacy
    target = f"{terms.target_epsilon:g} at δ = {terms.target_delta:g}"
    promise = f"ε ≤ {target}, {terms.adjacency} {terms.unit}"
    noise = (
        f"{terms.noise}, multiplier {terms.noise_multiplier:.3g}, clipped at "
        f"{terms.max_grad_norm:g}"
    )
    if not terms.noise_multiplier:
        promise, noise = "none: this study adds no noise", "none"
    return Part(
        "What was agreed",
        (
            Facts(
                (
                    ("Founded", study.founded_at[:19].replace("T", " ")),
                    ("Recipe", f"{plan.training.recipe}, {plan.training.steps_per_round} steps"),
                    ("Privacy", promise),
                    ("Noise", noise),
                    ("Aggregation", study.rule or "not on record"),
                    ("Withstands", study.claim or "not on record"),
                    (
                        "Enrolled",
                        ", ".join(f"{node} ({n})" for node, n in sorted(study.patients.items())),
                    ),
                )
            ),
        ),
    )


def _models(study: Study) -> Part:
    found = [(each.round_id, each.scores) for each in study.rounds if each.scores is not None]
    if not found:
        return Part(
            "Released models", (Paragraph("No release was evaluated: there is no holdout set."),)
        )
    curves = (
        Curve("Accuracy", tuple((n, each.accuracy) for n, each in found)),
        Curve("Balanced acc.", tuple((n, each.balanced_accuracy) for n, each in found)),
        Curve("Quadratic κ", tuple((n, each.kappa) for n, each in found)),
    )
    last = found[-1][1]
    recall = Rows(
        tuple(f"Grade {grade}" for grade in range(len(last.recall))),
        (tuple(_percent(each) for each in last.recall),),
    )
    says = "Released models on the coordinator's holdout set."
    return Part(
        "Released models",
        (
            Figure(line_chart(curves, says=says), f"{says} {last.images} images."),
            Paragraph(f"Recall by grade of the release of round {found[-1][0]}:"),
            recall,
        ),
    )


def _percent(share: float) -> str:
    return _NO_FIGURE if share != share else f"{share:.1%}"  # noqa: PLR0124 - NaN


def _trust(study: Study) -> Part:
    curves = [
        Curve(
            node,
            tuple(
                (rnd.round_id, rnd.standings[node].trust)
                for rnd in study.rounds
                if node in rnd.standings
            ),
        )
        for node in study.hospitals
    ]
    if not any(each.points for each in curves):
        return Part("Trust", (Paragraph("No round was scored."),))
    levels = (
        Level(study.trusted_from, f"trusted from {study.trusted_from:g}"),
        Level(study.excluded_below, f"excluded below {study.excluded_below:g}"),
    )
    says = "Trust in each hospital after each round."
    return Part(
        "Trust",
        (
            Figure(line_chart(curves, levels=levels, says=says), says),
            Rows(
                ("Hospital", "Trust", "State", "Weight", "Why"),
                tuple(_last_standings(study)),
                (0.16, 0.08, 0.14, 0.1, 0.52),
            ),
        ),
    )


def _last_standings(study: Study) -> Iterator[tuple[str, ...]]:
    for node in study.hospitals:
        found = [rnd.standings[node] for rnd in study.rounds if node in rnd.standings]
        if found:
            last = found[-1]
            yield (node, f"{last.trust:.2f}", last.state, f"{last.weight:.1%}", last.why)


def _privacy(study: Study) -> Part:
    terms = study.plan.privacy
    note = Paragraph(
        "By the updates that the log admitted, priced by the study's signed plan. A hospital's own "
        "ledger also counts attempts that never arrived, and evaluations; ε is not linear in the "
        "share of the budget."
    )
    if not terms.noise_multiplier:
        return Part("Privacy", (Paragraph("This study adds no noise and promises no privacy."),))
    curves = [Curve(node, each.epsilon) for node, each in study.spending.items()]
    rows = tuple(
        (
            node,
            str(shown_epsilon(each.epsilon[-1][1])),
            f"{terms.target_epsilon:g}",
            f"{each.fraction:.1%}",
        )
        for node, each in study.spending.items()
    )
    chart = line_chart(
        curves,
        says="ε that each hospital's patients have spent.",
        levels=(Level(terms.target_epsilon, f"budget ε = {terms.target_epsilon:g}"),),
        top=terms.target_epsilon * 1.08,
    )
    return Part(
        "Privacy",
        (
            Figure(chart, f"ε spent at δ = {terms.target_delta:g}, {terms.adjacency}."),
            Rows(("Hospital", "ε spent", "ε budget", "Of the budget"), rows),
            note,
        ),
    )


def _incidents(study: Study) -> Part:
    if not study.incidents:
        return Part("What was detected and refused", (Paragraph("Nothing."),))
    rows = tuple(
        (
            str(each.index),
            each.at[:19].replace("T", " "),
            "" if each.round_id is None else str(each.round_id),
            each.node,
            each.what,
            each.why,
        )
        for each in study.incidents
    )
    columns = ("Entry", "At (UTC)", "Round", "About", "What", "Why")
    return Part(
        "What was detected and refused",
        (
            Paragraph(
                "Attacks, careless data, refusals and operators' orders, in the log's own words. "
                "What nobody noticed is not here."
            ),
            Rows(columns, rows, (0.07, 0.17, 0.08, 0.13, 0.19, 0.36)),
        ),
    )


def _rounds(study: Study) -> Part:
    rows = tuple(map(_round_row, study.rounds))
    columns = ("Round", "Opened (UTC)", "Outcome", "Admitted", "Against", "Accuracy", "κ", "Why")
    return Part("Rounds", (Rows(columns, rows, (0.08, 0.2, 0.12, 0.11, 0.1, 0.11, 0.08, 0.2)),))


def _round_row(rnd: RoundRecord) -> tuple[str, ...]:
    against, honest = rnd.power
    together = against + honest
    left_out = [f"{node}: {why}" for node, why in sorted({**rnd.excluded, **rnd.refused}.items())]
    return (
        str(rnd.round_id),
        rnd.opened_at[:19].replace("T", " "),
        rnd.outcome,
        f"{len(rnd.admitted)} of {len(rnd.invited)}",
        f"{against / together:.0%}" if together else _NO_FIGURE,
        _NO_FIGURE if rnd.scores is None else f"{rnd.scores.accuracy:.1%}",
        _NO_FIGURE if rnd.scores is None else f"{rnd.scores.kappa:.3f}",
        "; ".join([*([rnd.why] if rnd.why else []), *left_out]),
    )


def _releases(study: Study, proven: Mapping[int, ProvenRelease]) -> Part:
    if not study.releases:
        return Part("Releases and their proofs", (Paragraph("No model was released."),))
    rows, files = [], []
    for number, index in sorted(study.releases.items()):
        found = proven.get(index)
        rows.append((str(number), study.models[number], str(index), _proof_says(found)))
        if found is not None:
            files.append(_proof_files(number, found))
    return Part(
        "Releases and their proofs",
        (
            Paragraph(
                "Each release is an entry of the log. Entry, path and checkpoint were verified "
                "when this report was made; with the two files below and the log's policy anybody "
                "does so again: matl audit check ENTRY PROOF --policy POLICY."
            ),
            Rows(
                ("Round", "Model (SHA-256)", "Entry", "Proof"), tuple(rows), (0.08, 0.52, 0.1, 0.3)
            ),
            *files,
        ),
    )


def _proof_says(found: ProvenRelease | None) -> str:
    if found is None:
        return "no checkpoint is over it yet"
    by = f", cosigned by {', '.join(found.cosigners)}" if found.cosigners else ""
    quorum = "; its quorum has witnessed it" if found.has_quorum else ""
    return f"holds under the checkpoint of {found.checkpoint_size} entries{by}{quorum}"


def _proof_files(number: int, found: ProvenRelease) -> Files:
    return Files(
        f"Proof of round {number}",
        (
            (f"{found.index}.entry.json", found.entry),
            (f"{found.index}.tlog-proof", found.proof),
        ),
    )


def log_part(evidence: Evidence, *, made_at: datetime) -> Part:
    """What was verified of the log when the report was made."""
    audit = evidence.audit
    opened = (
        "none: they are encrypted, and the keys are not here"
        if audit.opened is None
        else f"{audit.opened}, each what its leaf commits to"
    )
    rows = (
        ("Log", evidence.origin),
        ("Gone over", f"{audit.tally.size} entries, {made_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("Root", audit.tally.root.hex()),
        ("Opened", opened),
        ("Signed", f"{audit.signed_size} entries under the largest checkpoint"),
        ("Witnessed", _witnessed(audit.witnessed_size)),
    )
    warnings = [Paragraph(f"Note: {each}.") for each in audit.warnings]
    return Part("The log", (Facts(rows), *warnings))


def _witnessed(size: int) -> str:
    if not size:
        return "by no quorum, as far as was looked"
    return f"{size} entries under one that a quorum has cosigned"
