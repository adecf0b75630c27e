"""A daemon's log lines as a picture for a terminal: rounds, phases, uploads.

``seen`` folds one line into what is known, purely; ``watch`` draws. Who has no terminal gets the
lines themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from matl.terminal import printable

_BAR_WIDTH: Final = 40
_KEPT_LINES: Final = 6
_PHASES: Final[Mapping[str, str]] = {
    "scheduled": "waiting for the hospitals",
    "collecting": "collecting updates",
    "scoring": "scoring updates",
    "aggregating": "aggregating",
    "evaluating": "evaluating the new model",
    "released": "model released",
    "aborted": "given up",
}
_UPLOADS: Final[Mapping[str, str]] = {
    "update_receiving": "uploading",
    "update_admitted": "admitted",
    "update_refused": "refused",
}
_DOINGS: Final[Mapping[str, str]] = {
    "participant.connected": "connected",
    "participant.data_checked": "the images are in order",
    "participant.round_offered": "a round is offered",
    "participant.model_pulled": "has the model",
    "participant.training": "training",
    "participant.update_sealed": "the update is sealed, and sent",
    "participant.update_admitted": "the update is admitted",
    "participant.retrying": "waiting for the coordinator",
    "participant.draining": "stopping",
    "participant.stopped": "stopped",
}
_TROUBLE: Final = frozenset({"warning", "error", "critical"})


@dataclass(frozen=True, slots=True)
class Scene:
    """What the lines so far tell.

    Attributes:
        round: the newest round; 0 before the first.
        doing: its phase, or what this hospital does, in words.
        uploads: of the round's hospitals, and what became of each.
        released: how many models were released while this was watched.
        accuracy: of the newest one, where there is a holdout set.
        trouble: the newest warnings and errors.
    """

    round: int = 0
    doing: str = "starting"
    uploads: Mapping[str, str] = field(default_factory=dict)
    released: int = 0
    accuracy: float | None = None
    trouble: tuple[str, ...] = ()


def seen(scene: Scene, line: Mapping[str, Any]) -> Scene:
    """What is known after one more line."""
    event, number = str(line.get("event", "")), line.get("round")
    if line.get("level") in _TROUBLE:
        scene = replace(scene, trouble=(*scene.trouble, told(line))[-_KEPT_LINES:])
    if isinstance(number, int) and number > scene.round:
        scene = replace(scene, round=number, uploads={})
    if event in _UPLOADS and number == scene.round:
        uploads = {**scene.uploads, str(line.get("node")): _UPLOADS[event]}
        return replace(scene, uploads=uploads)
    match event:
        case "round_phase":
            phase = str(line.get("phase"))
            return replace(scene, doing=_PHASES.get(phase, phase))
        case "model_released":
            accuracy = line.get("accuracy")
            known = float(accuracy) if isinstance(accuracy, int | float) else scene.accuracy
            return replace(scene, released=scene.released + 1, accuracy=known)
        case "coordinator_ready":
            return replace(scene, doing=_PHASES.get(str(line.get("phase")), "ready"))
    if event in _DOINGS:
        return replace(scene, doing=_DOINGS[event])
    return scene


def parse_line(text: str) -> Mapping[str, Any] | None:
    """A structured line; ``None`` for one that is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def told(line: Mapping[str, Any]) -> str:
    """A line for people, on one line."""
    rest = " ".join(
        f"{key}={value}"
        for key, value in sorted(line.items())
        if key not in {"event", "level", "timestamp"}
    )
    return printable(f"{line.get('level')}: {line.get('event')} {rest}")


def watch(lines: Iterable[str], console: Console, *, title: str, expected: int) -> None:
    """Draw until the lines end.

    Args:
        lines: of the daemon's log.
        console: a terminal.
        title: who it is.
        expected: how many updates a round waits for; 0 for a hospital.
    """
    scene = Scene()
    with Live(picture(scene, title, expected), console=console, refresh_per_second=8) as live:
        for text in lines:
            line = parse_line(text)
            if line is None:
                live.console.print(Text(printable(text.rstrip("\n"))))
                continue
            scene = seen(scene, line)
            live.update(picture(scene, title, expected))


def picture(scene: Scene, title: str, expected: int) -> Group:
    """The scene as it is drawn."""
    head = Table.grid(padding=(0, 2))
    head.add_row(Text(title, style="bold"), Text(_round_told(scene)), Text(scene.doing))
    parts: list[Any] = [head]
    if expected:
        admitted = sum(each == "admitted" for each in scene.uploads.values())
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            "updates",
            ProgressBar(total=expected, completed=min(admitted, expected), width=_BAR_WIDTH),
            f"{admitted} of {expected}",
        )
        parts.append(bar)
    uploads = Table.grid(padding=(0, 2))
    for node, state in sorted(scene.uploads.items()):
        uploads.add_row(Text(printable(node)), Text(state))
    parts.append(uploads)
    parts += [Text(each, style="yellow", overflow="ellipsis") for each in scene.trouble]
    return Group(*parts)


def _round_told(scene: Scene) -> str:
    number = f"round {scene.round}" if scene.round else "before round 1"
    released = f", {scene.released} released" if scene.released else ""
    accuracy = f", accuracy {scene.accuracy:.1%}" if scene.accuracy is not None else ""
    return f"{number}{released}{accuracy}"
