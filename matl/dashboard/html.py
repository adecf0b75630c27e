"""A board as HTML: one function for each part of the page. Pure; every text is escaped.

Nothing here links anywhere, loads anything, or runs in the browser. Figures are also words, colours
also signs, and every table has its headings, for whoever sees neither.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from matl.charts import Chart, Curve, Level, line_chart, svg
from matl.dashboard.alerts import Alert
from matl.dashboard.board import (
    Board,
    BudgetRow,
    EntryRow,
    Line,
    RoundPanel,
    Step,
    Tile,
    Tone,
    TrustRow,
    TrustStep,
    Upload,
)
from matl_coordinator.core.trust_record import DEFAULT_POLICY

_SIGNS: Final = {Tone.GOOD: "✓", Tone.PLAIN: "•", Tone.WARNING: "!", Tone.BAD: "✕"}
_WORDS: Final = {Tone.GOOD: "good", Tone.PLAIN: "", Tone.WARNING: "warning", Tone.BAD: "bad"}


def header_html(board: Board, *, at: str) -> str:
    """What is looked at, and when it was asked."""
    return (
        f'<header class="matl-head"><h1>{escape(board.title)}</h1>'
        f"<p>{escape(board.subtitle)} · asked at {escape(at)} UTC · read-only, no patient data</p>"
        "</header>"
    )


def tiles_html(tiles: Iterable[Tile]) -> str:
    """The figures at the top."""
    inner = "".join(
        f'<li class="tile {each.tone}"><span class="label">{escape(each.label)}</span>'
        f'<span class="value">{escape(each.value)}</span>'
        f'<span class="note">{escape(each.note)}</span></li>'
        for each in tiles
    )
    return f'<ul class="tiles" aria-label="At a glance">{inner}</ul>'


def alerts_html(alerts: Sequence[Alert]) -> str:
    """What deserves attention."""
    if not alerts:
        return '<p class="calm"><span aria-hidden="true">✓</span> Nothing needs attention.</p>'
    return f'<ul class="alerts" role="list">{"".join(map(_alert, alerts))}</ul>'


def _alert(alert: Alert) -> str:
    says = f"<p>{escape(alert.says)}</p>" if alert.says else ""
    remedy = f'<p class="remedy">{escape(alert.remedy)}</p>' if alert.remedy else ""
    role = ' role="alert"' if alert.tone is Tone.BAD else ""
    return (
        f'<li class="alert {alert.tone}"{role}>{_sign(alert.tone)}'
        f"<div><strong>{escape(alert.title)}</strong>{says}{remedy}</div></li>"
    )


def _sign(tone: Tone) -> str:
    word = f'<span class="unseen">{_WORDS[tone]}: </span>' if _WORDS[tone] else ""
    return f'<span class="sign {tone}" aria-hidden="true">{_SIGNS[tone]}</span>{word}'


def round_html(panel: RoundPanel | None) -> str:
    """The round under way, with a bar for every hospital's upload."""
    if panel is None:
        return '<p class="calm">No round yet: the study waits for enough hospitals.</p>'
    steps = "".join(map(_step, panel.steps))
    rows = "".join(map(_upload, panel.uploads))
    return (
        f"<h3>{escape(panel.title)}</h3><p>{escape(panel.says)}</p>"
        f'<ol class="steps">{steps}</ol>'
        f'<table class="bars"><caption class="unseen">Uploads of {escape(panel.title)}</caption>'
        f"<thead>{_head('Hospital', 'Upload', 'Status')}</thead><tbody>{rows}</tbody></table>"
    )


def _step(step: Step) -> str:
    now = ' aria-current="step"' if step.state == "now" else ""
    return f'<li class="{step.state}"{now}>{escape(step.name)}</li>'


def _upload(upload: Upload) -> str:
    why = f'<div class="why">{escape(upload.why)}</div>' if upload.why else ""
    return (
        f'<tr><th scope="row">{escape(upload.node)}</th>'
        f"<td>{_bar(upload.fraction, upload.tone, f'{upload.node} has uploaded')}</td>"
        f'<td><span class="pill {upload.tone}">{escape(upload.status)}</span>{why}</td></tr>'
    )


def _bar(fraction: float, tone: Tone, label: str, *, said: str = "") -> str:
    percent = f"{max(0.0, min(1.0, fraction)):.0%}"
    return (
        f'<div class="bar {tone}" role="progressbar" aria-label="{escape(label)}" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent[:-1]}">'
        f'<span class="fill" style="width:{percent}"></span>'
        f'<span class="said">{said or percent}</span>'
        "</div>"
    )


def accuracy_html(lines: Sequence[Line]) -> str:
    """How good the released models are, round by round."""
    if not lines:
        return '<p class="calm">No release was evaluated yet.</p>'
    curves = [Curve(each.name, each.points) for each in lines]
    return _picture(line_chart(curves, says="Released models on the coordinator's holdout set."))


def trust_html(rows: Sequence[TrustRow]) -> str:
    """Every hospital's standing and why."""
    inner = "".join(
        f'<tr><th scope="row">{escape(each.node)}</th>'
        f"<td>{_trust_bar(each)}</td>"
        f'<td><span class="pill {each.tone}">{escape(each.state)}</span> '
        f'<span class="change">{escape(each.change)}</span></td>'
        f"<td>{escape(each.why)}</td></tr>"
        for each in rows
    )
    return (
        '<table class="bars"><caption class="unseen">Trust in each hospital</caption>'
        f"<thead>{_head('Hospital', 'Trust', 'State', 'Why')}</thead><tbody>{inner}</tbody></table>"
    )


def _trust_bar(row: TrustRow) -> str:
    return _bar(row.trust, row.tone, f"trust in {row.node}", said=f"{row.trust:.2f}")


def trust_chart_html(rows: Sequence[TrustRow]) -> str:
    """Trust over rounds."""
    if not any(each.line.points for each in rows):
        return '<p class="calm">No round was scored yet.</p>'
    levels = (
        # What the coordinator was configured with is not told here; a state's colour goes by that.
        Level(DEFAULT_POLICY.trusted_from, "trusted from, by default"),
        Level(DEFAULT_POLICY.excluded_below, "excluded below, by default"),
    )
    curves = [Curve(each.node, each.line.points) for each in rows]
    says = "Trust in each hospital after each round."
    return _picture(line_chart(curves, levels=levels, says=says))


def _picture(chart: Chart) -> str:
    """A chart as an image in itself: Streamlit lets no drawing into its page."""
    data = base64.b64encode(svg(chart).encode()).decode()
    return f'<img class="chart" alt="{escape(chart.says)}" src="data:image/svg+xml;base64,{data}">'


def trust_steps_html(steps: Sequence[TrustStep]) -> str:
    """Every round's judgement of every hospital, the newest first."""
    rows = (
        (str(each.round_id), each.node, f"{each.trust:.2f}", each.state, each.why)
        for each in reversed(steps)
    )
    return table_html("Trust round by round", ("Round", "Hospital", "Trust", "State", "Why"), rows)


def budget_html(rows: Sequence[BudgetRow], note: str, *, of: str = "Hospital") -> str:
    """What is spent of every privacy budget, of hospitals or of studies."""
    inner = "".join(
        f'<tr><th scope="row">{escape(each.node)}</th>'
        f"<td>{_bar(each.fraction, each.tone, f'budget that {each.node} has spent')}</td>"
        f"<td>ε {escape(each.spent)} of {escape(each.budget)}</td><td>{each.rounds_left}</td></tr>"
        for each in rows
    )
    return (
        '<table class="bars"><caption class="unseen">Privacy budgets</caption>'
        f"<thead>{_head(of, 'Spent of the budget', 'ε', 'Rounds left')}</thead>"
        f'<tbody>{inner}</tbody></table><p class="fine">{escape(note)}</p>'
    )


def entries_html(rows: Sequence[EntryRow], says: str) -> str:
    """The log's newest entries with what was verified of each."""
    inner = "".join(
        f"<tr><td>{each.index}</td><td>{escape(each.at)}</td>"
        f'<th scope="row">{escape(each.event)}</th><td>{escape(each.about)}</td>'
        f'<td class="says">{escape(each.says)}</td>'
        f'<td><span class="pill {each.tone}">{escape(each.proof)}</span></td></tr>'
        for each in rows
    )
    columns = _head("Entry", "At (UTC)", "Event", "About", "Says", "Proof")
    return (
        '<table class="log"><caption class="unseen">Newest log entries</caption>'
        f"<thead>{columns}</thead><tbody>{inner}</tbody></table>"
        f'<p class="fine">{escape(says)}</p>'
    )


def table_html(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A plain table."""
    inner = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<table class="plain"><caption class="unseen">{escape(caption)}</caption>'
        f"<thead>{_head(*columns)}</thead><tbody>{inner}</tbody></table>"
    )


def _head(*columns: str) -> str:
    inner = "".join(f'<th scope="col">{escape(each)}</th>' for each in columns)
    return f"<tr>{inner}</tr>"
