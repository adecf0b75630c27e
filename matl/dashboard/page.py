"""The page, as Streamlit runs it: the door, then the board again and again. Orders nothing.

What is shown comes from ``board`` and ``html``; here is only where it goes on the page, and when a
session ends.
"""

# First, because it puts TLS 1.2 out of reach of gRPC.
import matl_common  # noqa: F401, I001

from datetime import datetime
from html import escape
from importlib.resources import files
from typing import Final

import streamlit as st

from matl.calls import OperationsError
from matl.dashboard import html
from matl.dashboard.alerts import Alert, alerts_of
from matl.dashboard.board import Tone, board_of
from matl.dashboard.desk import Desk, shared_desk
from matl.dashboard.gate import Verdict, is_idle
from matl.dashboard.node_board import node_board_of
from matl.dashboard.node_html import data_html, node_header_html, receipts_html
from matl.dashboard.node_watching import NodeWatcher
from matl.dashboard.watching import Watcher

_LAST_ACTIVE: Final = "last_active"
_ENDED: Final = "ended"
_STYLE: Final = files("matl.dashboard").joinpath("style.css").read_text("utf-8")


def page() -> None:
    """Run once for every click and key; the live part also runs by itself."""
    desk = shared_desk()
    st.set_page_config(page_title="MATL monitor", page_icon="🏥", layout="wide")
    st.html(f"<style>{_STYLE}</style>")
    last_active = st.session_state.get(_LAST_ACTIVE)
    if not isinstance(last_active, datetime) or _has_ended(desk, last_active):
        st.session_state.pop(_LAST_ACTIVE, None)
        _door(desk)
        return
    # Reached by a click or a key alone: what runs by itself is the fragment below.
    st.session_state[_LAST_ACTIVE] = desk.clock()
    _controls(desk)
    st.fragment(_live, run_every=desk.every)(desk)


def _has_ended(desk: Desk, last_active: datetime) -> bool:
    ended = is_idle(last_active=last_active, now=desk.clock(), limit=desk.idle_after)
    if ended:
        st.session_state[_ENDED] = True
    return ended


def _door(desk: Desk) -> None:
    _, middle, _ = st.columns([1, 2, 1])
    with middle:
        st.html(
            '<header class="matl-head"><h1>MATL monitor</h1><p>Read-only, no patient data. Log in '
            "with the token that the terminal shows; each works once.</p></header>"
        )
        if st.session_state.pop(_ENDED, False):
            st.info("The session has ended: nobody used it for a while.")
        with st.form("door", border=True):
            offered = st.text_input("One-time token", type="password", autocomplete="off")
            if not st.form_submit_button("Log in", type="primary"):
                return
        match desk.door.knock(offered):
            case Verdict.OPENED:
                st.session_state[_LAST_ACTIVE] = desk.clock()
                st.rerun()
            case Verdict.WRONG:
                st.error("That is not the token; the terminal shows the one that works.")
            case Verdict.TOO_MANY:
                st.error("Too many wrong tokens; wait a minute.")


def _controls(desk: Desk) -> None:
    says, stay, leave = st.columns([6, 1, 1], vertical_alignment="center")
    minutes = desk.idle_after.total_seconds() / 60
    says.html(
        f'<p class="fine">Signed in. Ends after {minutes:g} minutes without a click or a key.</p>'
    )
    stay.button("Stay", help="Begin the idle time anew.", width="stretch")
    if leave.button("Sign out", width="stretch"):
        del st.session_state[_LAST_ACTIVE]
        st.rerun()


def _live(desk: Desk) -> None:
    last_active = st.session_state.get(_LAST_ACTIVE)
    # Gone where the clock ticks while somebody signs out.
    if not isinstance(last_active, datetime) or _has_ended(desk, last_active):
        st.rerun()
    if desk.federation is not None:
        _federation(desk.federation)
    if desk.node is not None:
        _node(desk.node)


def _federation(watcher: Watcher) -> None:
    trouble: tuple[Alert, ...] = ()
    try:
        snapshot = watcher.look()
    except OperationsError as error:
        trouble = (
            Alert(
                Tone.BAD,
                "The coordinator does not answer as it should",
                str(error),
                "what is shown is as it was; see docs/runbooks/coordinator-down.md",
            ),
        )
        if watcher.last is None:
            st.html(_card("Alerts", html.alerts_html(trouble)))
            return
        snapshot = watcher.last
    board = board_of(snapshot)
    st.html(html.header_html(board, at=f"{snapshot.at:%Y-%m-%d %H:%M:%S}"))
    st.html(html.tiles_html(board.tiles))
    st.html(_card("Alerts", html.alerts_html((*trouble, *alerts_of(snapshot)))))
    left, right = st.columns(2)
    left.html(_card("Round", html.round_html(board.round)))
    right.html(_card("Released models", html.accuracy_html(board.accuracy)))
    left, right = st.columns(2)
    left.html(_card("Trust", html.trust_html(board.trust)))
    right.html(_card("Trust over rounds", html.trust_chart_html(board.trust)))
    if board.trust_steps:
        with st.expander("Trust round by round, with the coordinator's reasons"):
            st.html(f'<div class="card">{html.trust_steps_html(board.trust_steps)}</div>')
    st.html(_card("Privacy budget", html.budget_html(board.budget, board.budget_note)))
    st.html(_card("Log", html.entries_html(board.entries, board.log_says)))


def _node(watcher: NodeWatcher) -> None:
    try:
        board = node_board_of(watcher.look())
    except OSError as error:
        failed = Alert(Tone.BAD, "This hospital's state cannot be read", error.strerror or "")
        st.html(_card("This hospital", html.alerts_html([failed])))
        return
    st.html(node_header_html(board))
    st.html(html.tiles_html(board.tiles))
    st.html(_card("Alerts of this hospital", html.alerts_html(board.alerts)))
    note = " ".join(f"{each}." for each in board.statements)
    st.html(_card("Privacy ledgers", html.budget_html(board.budgets, note, of="Study")))
    left, right = st.columns([3, 2])
    left.html(_card("Receipts", receipts_html(board.receipts)))
    right.html(_card("Data", data_html(board.data)))


def _card(title: str, inner: str) -> str:
    return (
        f'<section class="card" aria-label="{escape(title)}"><h2>{escape(title)}</h2>'
        f"{inner}</section>"
    )


page()
