"""A study in which processes die, or their disk fails, at one fault point after the other.

A march is one study. Wherever its victims come to a point at which they have not died yet, they
die, are started again, and come a step further, until nothing is left to die at. In the end it
has to be the study that it is without faults: what came of it is compared with an undisturbed
run, and with itself.
"""

import re
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from matl_common.ids import NodeId, RoundId
from matl_participant.core.account import AttemptState
from tests.faults.points import SETTLED, Mode, Plan, visited
from tests.system.federation import (
    COORDINATOR,
    Federation,
    Material,
    found_federation,
    logged_events,
)
from tests.system.processes import Daemon, until
from tests.system.story import Story, of, tell, wait_for_the_end

ROUNDS = 2
SPARE_ROUNDS = 60
"""The budget has to pay for every training that a kill costs."""
PATIENCE_SECONDS = 1800.0
TURNED_AWAY = ("access_denied", "handshake_refused")
"""Logged of whoever comes without a valid certificate, as often as it comes."""
ATTEMPTS_PER_ROUND = 10
"""As many trainings as a hospital may allow: most kills in one cost another."""
LEDGER = re.compile(r"\.ledger\.jsonl")
ELSEWHERE = re.compile(r"\.db(-wal|-shm)?$|/log-encryption\.key$")
"""Files without which the log cannot be read, and which need not be here; SQLite's come and go."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What came of a study, and what is left of it."""

    story: Story
    files: frozenset[str]
    """Every file of every state folder, without what differs from run to run."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with a study that had faults; without faults in it, every count is 0."""

    different_digest: int
    log_lost_or_doubled: int
    epsilon_misspent: int
    left_over: int
    findings: tuple[str, ...]
    """What the counts count."""


@dataclass(frozen=True, slots=True)
class March:
    """A study with faults, beside one without."""

    victim: str
    mode: Mode
    points: tuple[str, ...]
    """Where faults struck, in order."""
    lives: int
    """Of the victim."""
    by_hand: int
    """How often a failing disk made it end with status 2, after which systemd starts it no more."""
    seconds: float
    verdict: Verdict


def undisturbed(folder: Path, material: Material) -> Ending:
    """The study that every march has to come to."""
    federation = found(folder, material)
    with ExitStack() as running:
        finish(federation, start_all(federation, running))
    return Ending(tell(federation), _files(federation))


def march(
    folder: Path,
    material: Material,
    expected: Ending,
    *,
    victim: NodeId,
    mode: Mode,
    limit: int = 1,
    only: str = "",
    python: str = "",
) -> March:
    """Run a study whose ``victim`` meets faults wherever it writes; see ``Plan``."""
    began = time.monotonic()
    federation = found(folder, material)
    plan = Plan(
        root=str(federation.folder / victim),
        mode=mode,
        visited=str(federation.folder / f"{victim}.visited"),
        limit=limit,
        only=only,
        python=python,
    )
    with ExitStack() as running:
        daemons = start_all(federation, running, {victim: plan})
        finish(federation, daemons)
    return March(
        victim=victim,
        mode=mode,
        points=tuple(visited(plan)),
        lives=len(daemons[victim].events("supervised.ended")),
        by_hand=len(daemons[victim].events("supervised.ended", status=2)),
        seconds=round(time.monotonic() - began, 1),
        verdict=judge(federation, expected, struck={victim: visited(plan)}),
    )


def judge(
    federation: Federation, expected: Ending, *, struck: Mapping[NodeId, list[str]]
) -> Verdict:
    """Compare a study that has ended with the undisturbed one, and its ledgers with its log."""
    story = tell(federation)
    entries, undisturbed_entries = story.entries, expected.story.entries
    log = [
        f"log: {key} {entries[key]} times instead of {undisturbed_entries[key]}"
        for key in entries.keys() | undisturbed_entries.keys()
        if entries[key] != undisturbed_entries[key] and key[0] not in TURNED_AWAY
    ]
    is_other = story.final_model != expected.story.final_model
    digests = [f"model: {story.final_model}"] if is_other else []
    epsilon = [
        found
        for node in federation.hospitals
        for found in _misspent(federation, node, struck.get(node, []))
    ]
    left = [f"file: {each}" for each in _files(federation) ^ expected.files]
    return Verdict(
        different_digest=len(digests),
        log_lost_or_doubled=len(log),
        epsilon_misspent=len(epsilon),
        left_over=len(left),
        findings=(*digests, *sorted(log), *epsilon, *sorted(left)),
    )


def found(folder: Path, material: Material) -> Federation:
    """The federation of every march; nothing runs yet."""
    study = {"rounds": ROUNDS, "spare_rounds": SPARE_ROUNDS}
    # As by default: while a coordinator dies again and again, taking leave needs time.
    return replace(found_federation(folder, material, study=study), drain_seconds=60.0)


def start_all(
    federation: Federation, running: ExitStack, plans: Mapping[NodeId, Plan] | None = None
) -> dict[NodeId, Daemon]:
    """Start the coordinator, and the hospitals once it is ready for them."""
    daemons = {}
    for node in (COORDINATOR, *federation.hospitals):
        daemons[node] = running.enter_context(start(federation, node, (plans or {}).get(node)))
        if node == COORDINATOR:
            daemons[node].wait_for("coordinator_ready", seconds=PATIENCE_SECONDS)
    return daemons


def start(federation: Federation, node: NodeId, plan: Plan | None = None) -> Daemon:
    """Start a daemon; under a plan, one that is started again whenever it dies."""
    if plan is None:
        if node == COORDINATOR:
            return federation.start_coordinator()
        return federation.start_scripted(node, attempts_per_round=ATTEMPTS_PER_ROUND)
    file = federation.folder / f"{node}.plan.json"
    file.write_text(plan.encode())
    program = ("-m", "tests.faults.supervised", str(file))
    if node == COORDINATOR:
        return Daemon(*program, "coordinator", str(federation.write_coordinator_config()))
    config = federation.participant_config(
        node, address="", changes={"attempts_per_round": ATTEMPTS_PER_ROUND}
    )
    scripted = (str(federation.control(node)), str(federation.direction))
    return Daemon(*program, "hospital", str(config), *scripted)


def finish(federation: Federation, daemons: Mapping[NodeId, Daemon]) -> None:
    """Wait for the study's end, and for everybody to leave in order."""
    wait_for_the_end(federation, seconds=PATIENCE_SECONDS)
    for node in federation.hospitals:
        assert daemons[node].wait() == 0, daemons[node].output[-3000:]
    published = federation.coordinator_state / "released" / f"{ROUNDS:04d}"
    until(published.exists, what="the last model is published")
    assert daemons[COORDINATOR].drain() == 0, daemons[COORDINATOR].output[-3000:]


def _misspent(federation: Federation, node: NodeId, struck: list[str]) -> list[str]:
    """Charges and trainings that do not belong together, and updates logged but not charged.

    A charge is made before its training begins, so a kill between the two costs it.
    """
    account = federation.account(node)
    events = of(logged_events(federation), "update_admitted", node=node)
    charged = Counter(each.round_id for each in account.attempts)
    trained = Counter(map(RoundId, federation.trainings(node)))
    between = sum(map(is_between_charge_and_training, struck))
    receipts = {
        each.round_id: each.update_digest
        for each in account.attempts
        if each.state is AttemptState.ACKNOWLEDGED
    }
    wrong = []
    if any(trained[number] > charged[number] for number in trained):
        wrong.append(f"trained {dict(trained)}, charged {dict(charged)}")
    if charged.total() - trained.total() > between:
        wrong.append(f"{charged.total()} charges, {trained.total()} trainings, {between} kills")
    if receipts != {each["round"]: each["update"] for each in events}:
        wrong.append("the log's updates are not those of its ledger")
    if account.steps_spent != charged.total():
        wrong.append(f"{account.steps_spent} steps spent in {charged.total()} attempts")
    return [f"ε of {node}: {each}" for each in wrong]


def is_between_charge_and_training(point: str) -> bool:
    """Whether a kill here may leave a charge whose training never began."""
    return LEDGER.search(point) is not None and ("(RESERVE)" in point or point.startswith("sync"))


def _files(federation: Federation) -> frozenset[str]:
    found = set()
    for node in (COORDINATOR, *federation.hospitals):
        for path in (federation.folder / node).rglob("*"):
            if path.is_file() and not ELSEWHERE.search(str(path)):
                text = str(path.relative_to(federation.folder))
                found.add(SETTLED.sub(lambda match: f"<{match.lastgroup}>", text))
    return frozenset(found)
