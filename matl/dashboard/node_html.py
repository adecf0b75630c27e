"""One hospital's board as HTML. Pure; every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from matl.dashboard.node_board import NodeBoard, ReceiptRow


def node_header_html(board: NodeBoard) -> str:
    """Which hospital this is."""
    return (
        f'<header class="matl-head"><h1>This hospital: {escape(board.title)}</h1>'
        f"<p>{escape(board.subtitle)} · from its own files, which are only read</p></header>"
    )


def receipts_html(rows: Sequence[ReceiptRow]) -> str:
    """Updates that the coordinator admitted, with the proof that is kept of each."""
    if not rows:
        return '<p class="calm">No update was admitted yet.</p>'
    columns = ("Round", "Update", "Admitted (UTC)", "Entry", "Proof")
    head = "".join(f'<th scope="col">{each}</th>' for each in columns)
    inner = "".join(
        f'<tr><th scope="row">{each.round_id}</th><td>{escape(each.update)}</td>'
        f"<td>{escape(each.admitted_at)}</td><td>{each.entry}</td>"
        f'<td><span class="pill {each.tone}">{escape(each.proof)}</span></td></tr>'
        for each in rows
    )
    return (
        '<table class="log"><caption class="unseen">Receipts</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{inner}</tbody></table>"
    )


def data_html(facts: Iterable[tuple[str, str]]) -> str:
    """What is known of the data without reading a row of it."""
    inner = "".join(f"<dt>{escape(name)}</dt><dd>{escape(said)}</dd>" for name, said in facts)
    return f'<dl class="facts">{inner}</dl>'
