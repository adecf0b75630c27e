"""What a terminal shows of a board, as text."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, RenderableType

from matl.dashboard.board import board_of
from matl.dashboard.terminal import board_view, part_of
from tests.dashboard.samples import NOW, snapshot


def shown() -> RenderableType:
    """A federation in which nothing is wrong."""
    return board_view(board_of(snapshot()), (), at=NOW)


def drawn(view: RenderableType, *, width: int = 120) -> str:
    """A view as a terminal of this width shows it, its lines joined."""
    screen = StringIO()
    Console(width=width, file=screen).print(view)
    return " ".join(screen.getvalue().split())


def test_an_epsilon_is_shown_with_its_delta_and_its_relation() -> None:
    assert "ε at δ = 1e-05 (add-or-remove-one patient)" in drawn(shown())


def test_a_board_tells_when_it_was_asked() -> None:
    assert "asked at 2026-11-28 12:00:00 UTC" in drawn(shown())


def test_what_a_terminal_is_too_small_for_is_shown_by_turns_and_nothing_is_left_out() -> None:
    whole = StringIO()
    Console(width=80, file=whole).print(shown())
    lines: list[str] = []
    for turn in range(20):
        screen = StringIO()
        small = Console(width=80, height=24, file=screen)
        small.print(part_of(shown(), small, turn=turn))
        *part, says = screen.getvalue().splitlines()
        assert len(part) < 24
        lines += part
        if f"part {turn + 1} of {turn + 1}" in says:
            break
    assert [each.rstrip() for each in lines] == [
        each.rstrip() for each in whole.getvalue().splitlines()
    ]


def test_what_fits_is_shown_whole() -> None:
    large = Console(width=120, height=200, file=StringIO())
    view = shown()
    assert part_of(view, large, turn=3) is view
