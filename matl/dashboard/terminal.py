"""A board on a terminal: what the page shows, with rich. Pure but for the console's width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import SegmentLines
from rich.table import Table
from rich.text import Text

from matl.dashboard.alerts import Alert
from matl.dashboard.board import (
    Board,
    BudgetRow,
    EntryRow,
    Line,
    RoundPanel,
    Tile,
    Tone,
    TrustRow,
)
from matl.dashboard.node_board import NodeBoard, ReceiptRow
from matl.terminal import printable

_STYLES = {Tone.GOOD: "green", Tone.PLAIN: "cyan", Tone.WARNING: "yellow", Tone.BAD: "bold red"}
_SIGNS = {Tone.GOOD: "✓", Tone.PLAIN: "•", Tone.WARNING: "!", Tone.BAD: "✕"}
_BLOCKS = "▁▂▃▄▅▆▇█"
_BAR_WIDTH = 18


def board_view(board: Board, alerts: Sequence[Alert], *, at: datetime) -> RenderableType:
    """A federation, from the top down, as it was when it was asked."""
    return Group(
        Text(printable(board.title), style="bold"),
        Text(f"{printable(board.subtitle)} · asked at {_moment(at)}", style="dim"),
        _tiles(board.tiles),
        _alerts(alerts),
        Columns([_round(board.round), _accuracy(board.accuracy)]),
        _trust(board.trust),
        _budgets(board.budget, of="Hospital"),
        _text(board.budget_note, style="dim"),
        _entries(board.entries),
        Text(printable(board.log_says), style="dim"),
    )


def node_view(board: NodeBoard, *, at: datetime) -> RenderableType:
    """One hospital, from the top down, as it was when its files were read."""
    facts = Table.grid(padding=(0, 2))
    for name, said in board.data:
        facts.add_row(Text(name, style="dim"), _text(said))
    return Group(
        Text(f"This hospital: {printable(board.title)}", style="bold"),
        Text(f"{printable(board.subtitle)} · read at {_moment(at)}", style="dim"),
        _tiles(board.tiles),
        _alerts(board.alerts),
        _budgets(board.budgets, of="Study"),
        *(_text(each, style="dim") for each in board.statements),
        _receipts(board.receipts),
        Panel(facts, title="Data", title_align="left"),
    )


def trouble_view(alert: Alert) -> RenderableType:
    """Only that something is wrong."""
    return _alerts([alert])


def part_of(view: RenderableType, screen: Console, *, turn: int) -> RenderableType:
    """What of a view fits this screen, from the top down turn by turn; all of it where it fits."""
    lines = screen.render_lines(view, screen.options.update(height=None), pad=False)
    if len(lines) <= screen.height:
        return view
    room = max(1, screen.height - 1)
    parts = math.ceil(len(lines) / room)
    at = turn % parts
    shown = SegmentLines(lines[at * room : (at + 1) * room], new_lines=True)
    return Group(shown, Text(f"part {at + 1} of {parts}, by turns", style="dim"))


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _text(said: str, *, style: str = "") -> Text:
    return Text(printable(said), style=style, overflow="fold")


def _tiles(tiles: Iterable[Tile]) -> RenderableType:
    panels = []
    for each in tiles:
        inner = Group(
            Text(each.label, style="dim"),
            _text(each.value, style=f"bold {_STYLES[each.tone]}"),
            _text(each.note, style="dim"),
        )
        panels.append(Panel(inner, width=26, border_style=_STYLES[each.tone]))
    return Columns(panels)


def _alerts(alerts: Sequence[Alert]) -> RenderableType:
    if not alerts:
        return Text("✓ Nothing needs attention.", style="green")
    rows = Table.grid(padding=(0, 1))
    for each in alerts:
        said = Text.assemble((printable(each.title), "bold"))
        if each.says:
            said.append(f": {printable(each.says)}")
        if each.remedy:
            said.append(f" → {printable(each.remedy)}", style="dim")
        rows.add_row(Text(_SIGNS[each.tone], style=_STYLES[each.tone]), said)
    worst = alerts[0].tone
    return Panel(rows, title="Alerts", title_align="left", border_style=_STYLES[worst])


def _table(title: str, *columns: str) -> Table:
    return Table(
        *columns, title=title, title_justify="left", title_style="bold", box=None, pad_edge=False
    )


def _bar(fraction: float, tone: Tone) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(
        total=1.0,
        completed=fraction,
        width=_BAR_WIDTH,
        complete_style=_STYLES[tone],
        finished_style=_STYLES[tone],
    )
    grid.add_row(bar, f"{fraction:4.0%}")
    return grid


def _round(panel: RoundPanel | None) -> RenderableType:
    if panel is None:
        return Text("No round yet.", style="dim")
    found = _table(panel.title, "Hospital", "Upload", "Status")
    for each in panel.uploads:
        status = Text(each.status, style=_STYLES[each.tone])
        if each.why:
            status.append(f" ({printable(each.why)})", style="dim")
        found.add_row(_text(each.node), _bar(each.fraction, each.tone), status)
    now = " → ".join(
        f"[{each.name}]" if each.state in {"now", "failed"} else each.name for each in panel.steps
    )
    return Group(Text(now, style="dim"), _text(panel.says), found)


def _accuracy(lines: Iterable[Line]) -> RenderableType:
    found = _table("Released models", "", "Rounds", "Last")
    for each in lines:
        values = [value for _, value in each.points]
        found.add_row(each.name, Text(spark(values), style="cyan"), f"{values[-1]:.3f}")
    return found


def spark(values: Sequence[float], *, high: float = 1.0, most: int = 40) -> str:
    """The last ``most`` values as blocks, from 0 to ``high``."""
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(top * max(0.0, min(1.0, v / high)))] for v in values[-most:])


def _trust(rows: Iterable[TrustRow]) -> RenderableType:
    found = _table("Trust", "Hospital", "Trust", "State", "Rounds", "Why")
    for each in rows:
        values = [value for _, value in each.line.points]
        found.add_row(
            _text(each.node),
            f"{each.trust:.2f} {each.change}",
            Text(each.state, style=_STYLES[each.tone]),
            spark(values),
            _text(each.why),
        )
    return found


def _budgets(rows: Iterable[BudgetRow], *, of: str) -> RenderableType:
    found = _table("Privacy budget", of, "Spent of the budget", "ε", "Rounds left")
    for each in rows:
        found.add_row(
            _text(each.node),
            _bar(each.fraction, each.tone),
            f"{each.spent} of {each.budget}",
            str(each.rounds_left),
        )
    return found


def _entries(rows: Iterable[EntryRow]) -> RenderableType:
    found = _table("Log", "Entry", "At (UTC)", "Event", "About", "Says", "Proof")
    for each in rows:
        found.add_row(
            str(each.index),
            _text(each.at),
            _text(each.event),
            _text(each.about),
            _text(each.says),
            Text(each.proof, style=_STYLES[each.tone]),
        )
    return found


def _receipts(rows: Iterable[ReceiptRow]) -> RenderableType:
    found = _table("Receipts", "Round", "Update", "Admitted (UTC)", "Entry", "Proof")
    for each in rows:
        proof = Text(each.proof, style=_STYLES[each.tone])
        found.add_row(
            str(each.round_id), _text(each.update), each.admitted_at, str(each.entry), proof
        )
    return found
