"""What a terminal shows of a board, as text."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, RenderableType

from matl.dashboard.board import board_of
from matl.dashboard.terminal import board_view
from tests.dashboard.samples import snapshot


def drawn(view: RenderableType, *, width: int = 120) -> str:
    """A view as a terminal of this width shows it, its lines joined."""
    screen = StringIO()
    Console(width=width, file=screen).print(view)
    return " ".join(screen.getvalue().split())


def test_an_epsilon_is_shown_with_its_delta_and_its_relation() -> None:
    assert "ε at δ = 1e-05 (add-or-remove-one patient)" in drawn(
        board_view(board_of(snapshot()), ())
    )
