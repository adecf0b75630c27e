"""What the person at the terminal sees while the federation works.

Asks the coordinator as its operator, reads the last line of each daemon's log, and draws.
On a terminal the picture is redrawn in place; elsewhere only what happened is printed, a
line each. Changes nothing.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from matl.calls import CoordinatorUnavailableError
from matl.demo.federation import Layout
from matl.demo.run import Death
from matl.demo.study import IMAGES_NOTE, SUSPECT, Attack, Settings, display_name
from matl.operations import (
    Contribution,
    OperationsClient,
    Participant,
    Round,
    Status,
)
from matl_common.errors import MatlError
from matl_common.ids import NodeId
from matl_coordinator.core.trust_record import DEFAULT_POLICY

_TAIL_BYTES: Final = 4000
_BAR_WIDTH: Final = 10
_LONGEST_REASON: Final = 48

_ACTIVITIES: Final[Mapping[str, str]] = {
    "participant.connected": "reading its images",
    "participant.data_checked": "ready",
    "participant.budget": "ready",
    "participant.round_offered": "ready to train",
    "participant.model_pulled": "has the model",
    "participant.training": "training",
    "participant.update_sealed": "signing its update",
    "participant.update_admitted": "update admitted",
    "participant.retrying": "waiting for the coordinator",
    "participant.draining": "stopping",
    "participant.stopped": "stopped",
    "update_forged": "forging an update",
    "update_refused": "update refused",
    "update_admitted": "update admitted",
}
_PHASES: Final[Mapping[str, str]] = {
    "scheduled": "waiting for the hospitals",
    "collecting": "collecting updates",
    "scoring": "scoring updates on the holdout images",
    "aggregating": "aggregating",
    "evaluating": "evaluating the new model",
    "released": "model released",
    "aborted": "aborted",
}


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything the picture shows, at one moment."""

    settings: Settings
    status: Status | None = None
    """``None`` while the coordinator does not answer."""
    participants: tuple[Participant, ...] = ()
    rounds: tuple[Round, ...] = ()
    activities: Mapping[NodeId, str] = field(default_factory=dict)
    """What each daemon's log says it does."""


class NoResultError(MatlError):
    """The study released nothing to report about."""


@dataclass(frozen=True, slots=True)
class Findings:
    """The study as the coordinator tells it, once it is complete."""

    status: Status
    rounds: tuple[Round, ...]
    """Those that released a model, in order."""
    participants: tuple[Participant, ...]
    log_entries: tuple[bytes, ...]


def gather(client: OperationsClient) -> Findings:
    """Ask the coordinator for everything, at the end.

    Raises:
        OperationsError: it does not answer.
        NoResultError: no round released a model.
    """
    rounds = tuple(rnd for rnd in client.rounds() if rnd.evaluation is not None)
    if not rounds:
        raise NoResultError("no round released a model; the daemons' logs say why")
    return Findings(client.status(), rounds, client.participants(), client.newest_log_entries())


@dataclass(slots=True)
class Watcher:
    """Looks at the federation, and remembers what it has seen."""

    layout: Layout
    settings: Settings
    client: OperationsClient
    _last: Scene | None = field(default=None, init=False)

    def look(self) -> Scene:
        """The present scene; the last known one, without status, if nobody answers."""
        activities = {
            spec.node_id: last_activity(self.layout.log(spec.node_id))
            for spec in self.settings.hospitals
        }
        last = self._last or Scene(self.settings)
        try:
            self._last = Scene(
                self.settings,
                self.client.status(),
                self.client.participants(),
                self.client.rounds(),
                activities,
            )
            return self._last
        except CoordinatorUnavailableError:
            return Scene(self.settings, None, last.participants, last.rounds, activities)


def last_activity(log: Path) -> str:
    """What a participant's log says it does now."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return "starting"
    for line in reversed(lines):
        with suppress(ValueError, AttributeError):
            event = json.loads(line).get("event", "")
            if event in _ACTIVITIES:
                return _ACTIVITIES[event]
    return "starting"


@dataclass(slots=True)
class Reporter:
    """Shows scenes: a picture on a terminal, and a line for everything that happened."""

    console: Console
    settings: Settings
    _live: Live | None = field(default=None, init=False)
    _reported: set[int] = field(default_factory=set, init=False)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            first = picture(Scene(self.settings))
            self._live = Live(first, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, scene: Scene) -> None:
        """Draw a scene, and say which rounds have ended since the last one."""
        for rnd in scene.rounds:
            if rnd.phase in {"released", "aborted"} and rnd.round_id not in self._reported:
                self._reported.add(rnd.round_id)
                self.console.print(round_line(rnd), soft_wrap=True)
        if self._live is not None:
            self._live.update(picture(scene))

    def tell_of(self, death: Death) -> None:
        """Say that a daemon died and is being started again."""
        self.console.print(f"[yellow]{death}[/yellow]")


def round_line(rnd: Round) -> Text:
    """One round that has ended, in one line."""
    if rnd.evaluation is None:
        return Text(f"round {rnd.round_id}  aborted: {rnd.reason}", style="red")
    line = Text(f"round {rnd.round_id}  ")
    line.append(f"{100 * rnd.evaluation.accuracy:5.1f} %", style="bold")
    line.append(" on the holdout images   trust ")
    for each in rnd.contributions:
        line.append(f" {_letter(each.node_id)} ", style="dim")
        line.append(f"{each.trust:.2f}", style=trust_style(each.trust))
    refused = [each for each in rnd.contributions if each.status == "refused"]
    for each in refused:
        line.append(f"\n         {each.node_id} {each.reason}", style="yellow")
    return line


def picture(scene: Scene) -> Group:
    """The whole scene, for a terminal."""
    return Group(_headline(scene), _hospitals(scene), _footnote(scene.settings))


def trust_style(trust: float) -> str:
    """The colour of a trust score, by the bounds that the demonstration runs with."""
    if trust >= DEFAULT_POLICY.trusted_from:
        return "green"
    return "dark_orange" if trust >= DEFAULT_POLICY.excluded_below else "red"


def _headline(scene: Scene) -> Text:
    status = scene.status
    if status is None:
        return Text("The coordinator is starting …", style="bold")
    rnd = status.current_round
    line = Text()
    if rnd is None:
        line.append("Before the first round", style="bold")
    else:
        line.append(f"Round {rnd.round_id}", style="bold")
        line.append(f", {status.rounds_released} of {status.rounds_planned} models released: ")
        line.append(_PHASES.get(rnd.phase, rnd.phase), style="cyan")
        if rnd.reason and rnd.phase in {"scheduled", "collecting"}:
            line.append(f" ({rnd.reason[:_LONGEST_REASON]})", style="dim")
    accuracies = [r.evaluation.accuracy for r in scene.rounds if r.evaluation is not None]
    if accuracies:
        shown = " → ".join(f"{100 * value:.1f}" for value in accuracies[-8:])
        line.append(f"\nAccuracy on the holdout images, %: {shown}")
    return line


def _hospitals(scene: Scene) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    # Fits 80 columns: only what a hospital does is cut short.
    for column, width in (
        ("Hospital", 10),
        ("Doing", 16),
        ("Upload", 6),
        ("Trust", _BAR_WIDTH),
        ("", 16),
        ("ε", 4),
    ):
        table.add_column(
            column,
            justify="right" if column == "ε" else "left",
            header_style="dim",
            min_width=width,
            max_width=26 if column == "Doing" else None,
            no_wrap=True,
            overflow="ellipsis",
        )
    contributions = _contributions(scene)
    by_node = {each.node_id: each for each in scene.participants}
    for spec in scene.settings.hospitals:
        node = spec.node_id
        contribution, participant = contributions.get(node), by_node.get(node)
        trust = participant.trust if participant else 0.0
        table.add_row(
            display_name(node),
            _doing(node, contribution, scene.activities),
            _upload(contribution),
            _trust_bar(trust),
            _trust_words(participant),
            f"{participant.epsilon_spent or 0.0:.2f}" if participant else "",
        )
    return table


def _contributions(scene: Scene) -> Mapping[str, Contribution]:
    if scene.status is None or scene.status.current_round is None:
        return {}
    return {each.node_id: each for each in scene.status.current_round.contributions}


def _doing(node: NodeId, contribution: Contribution | None, said: Mapping[NodeId, str]) -> Text:
    own = said.get(node, "starting")
    match contribution:
        case Contribution(status="refused", reason=reason):
            return Text(reason[:_LONGEST_REASON], style="yellow")
        case Contribution(status="late"):
            return Text("late", style="yellow")
        case Contribution(status="uploading"):
            return Text("uploading", style="cyan")
        case Contribution(status="admitted"):
            return Text("update admitted", style="green")
    return Text(own, style="cyan" if own == "training" else "")


def _upload(contribution: Contribution | None) -> ProgressBar:
    done = contribution.upload_fraction if contribution else 0.0
    return ProgressBar(total=1.0, completed=done, width=6)


def _trust_bar(trust: float) -> ProgressBar:
    style = trust_style(trust)
    return ProgressBar(
        total=1.0, completed=trust, width=_BAR_WIDTH, complete_style=style, finished_style=style
    )


def _trust_words(participant: Participant | None) -> Text:
    if participant is None:
        return Text("")
    return Text(
        f"{participant.trust:.2f} {participant.state}", style=trust_style(participant.trust)
    )


def _footnote(settings: Settings) -> Text:
    fault = (
        "labels are all wrong"
        if settings.attack is Attack.NONE
        else f"updates are forged: {settings.attack.value}"
    )
    return Text(f"{IMAGES_NOTE}; {display_name(SUSPECT)}'s {fault}", style="dim")


def _letter(node_id: str) -> str:
    return node_id.rpartition("_")[2].upper()
