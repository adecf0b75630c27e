"""Faults of the line between hospitals and coordinator, packet by packet.

Every hospital is in one network namespace, whose only way out is a ``PacketLink``.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from matl_common.ids import NodeId
from matl_participant.core.account import AttemptState
from tests.faults.elsewhere import Surroundings, start_elsewhere
from tests.faults.marches import PATIENCE_SECONDS, Ending, Verdict, finish
from tests.faults.packet_link import DOWN, GOOD, Conditions, PacketLink, packet_link
from tests.faults.scenes import Facts, Played, Scene
from tests.system.federation import (
    COORDINATOR,
    HOSPITALS,
    Federation,
    Material,
    found_federation,
    logged_events,
)
from tests.system.processes import Daemon, until
from tests.system.story import of

VICTIM = HOSPITALS[0]
MIB = 1 << 20
LARGE_UPDATE_BYTES = 93_956_180
"""Of ``resnet50_gn``: 90 chunks."""

Daemons = dict[NodeId, Daemon]


def linked(
    federation: Federation, running: ExitStack, *, number: int, conditions: Conditions = GOOD
) -> tuple[Federation, PacketLink, Daemons]:
    """Start everybody, the hospitals behind a link of this number."""
    link = running.enter_context(packet_link(number))
    link.conditions = conditions
    listening = {
        "address": f"0.0.0.0:{federation.port}",
        "metrics": f"127.0.0.1:{federation.metrics_port}",
    }
    federation = replace(federation, sections={**federation.sections, "listen": listening})
    daemons = {COORDINATOR: running.enter_context(federation.start_coordinator())}
    daemons[COORDINATOR].wait_for("coordinator_ready", seconds=PATIENCE_SECONDS)
    there = Surroundings(namespace=link.namespace)
    address = f"{link.coordinator_address}:{federation.port}"
    for node in federation.hospitals:
        daemons[node] = running.enter_context(
            start_elsewhere(federation, node, there, address=address)
        )
    return federation, link, daemons


def bad_line(number: int, conditions: Conditions) -> Callable[[Federation, ExitStack], Facts]:
    """A whole study over a line that is bad throughout."""

    def disturb(federation: Federation, running: ExitStack) -> Facts:
        _, link, daemons = linked(federation, running, number=number, conditions=conditions)
        began = time.monotonic()
        finish(federation, daemons)
        return {"study took": f"{time.monotonic() - began:.0f} s", "bytes up": link.sent_bytes}

    return disturb


def half_open(federation: Federation, running: ExitStack) -> Facts:
    """The coordinator dies and comes back while the line is down: no hospital is told."""
    federation.control(VICTIM).write_text("wait")
    federation, link, daemons = linked(federation, running, number=4)
    until(lambda: federation.trainings(VICTIM) == [1], what="the victim trains")
    for node in HOSPITALS[1:]:
        daemons[node].wait_for("participant.update_admitted", round=1)
    link.conditions = DOWN
    daemons[COORDINATOR].kill()
    daemons[COORDINATOR] = running.enter_context(federation.start_coordinator())
    daemons[COORDINATOR].wait_for("coordinator_ready")
    federation.control(VICTIM).unlink()
    time.sleep(10.0)
    link.conditions = GOOD
    began = time.monotonic()
    daemons[VICTIM].wait_for("participant.update_admitted", round=1, seconds=PATIENCE_SECONDS)
    admitted = time.monotonic() - began
    for node in HOSPITALS[1:]:
        daemons[node].wait_for("participant.round_offered", round=2, seconds=PATIENCE_SECONDS)
    followed = time.monotonic() - began
    finish(federation, daemons)
    return {"admitted after": f"{admitted:.0f} s", "all back after": f"{followed:.0f} s"}


def partition(
    number: int, conditions: Conditions, seconds: float
) -> Callable[[Federation, ExitStack], Facts]:
    """The line fails in mid-round, in one direction or in both, and comes back."""

    def disturb(federation: Federation, running: ExitStack) -> Facts:
        federation.control(VICTIM).write_text("wait")
        _, link, daemons = linked(federation, running, number=number)
        until(lambda: federation.trainings(VICTIM) == [1], what="the victim trains")
        link.conditions = conditions
        federation.control(VICTIM).unlink()
        time.sleep(seconds)
        link.conditions = GOOD
        began = time.monotonic()
        daemons[VICTIM].wait_for("participant.update_admitted", round=1, seconds=PATIENCE_SECONDS)
        admitted = time.monotonic() - began
        finish(federation, daemons)
        return {"seconds": seconds, "admitted after": f"{admitted:.0f} s"}

    return disturb


@dataclass(frozen=True, slots=True)
class LargeUpload:
    """94 MB on their way when the line fails: what has to be sent again."""

    name: str
    what: str
    number: int
    during: Conditions
    outage_seconds: float

    def play(self, folder: Path, material: Material, expected: Ending) -> Played:
        """Run until the update is admitted; there is no second study to compare it with."""
        del expected
        began = time.monotonic()
        federation = found_federation(
            folder,
            replace(material, direction=folder / "none"),
            hospitals=(VICTIM,),
            study={"backbone": "resnet50_gn", "learning_rate": 1.0},
            rounds={"byzantine": 0},
        )
        with ExitStack() as running:
            facts = self._disturb(federation, running)
        return Played(facts, _judge(federation), round(time.monotonic() - began, 1))

    def _disturb(self, federation: Federation, running: ExitStack) -> Facts:
        paced = Conditions(bits_per_second=60e6)
        federation, link, daemons = linked(
            federation, running, number=self.number, conditions=paced
        )
        until(
            lambda: link.sent_bytes > 40 * MIB,
            what="a part of the update is on its way",
            seconds=PATIENCE_SECONDS,
        )
        link.conditions = self.during
        time.sleep(self.outage_seconds)
        link.conditions = paced
        began = time.monotonic()
        daemons[VICTIM].wait_for("participant.update_admitted", seconds=PATIENCE_SECONDS)
        admitted = time.monotonic() - began
        for each in daemons.values():
            each.kill()
        again = link.sent_bytes - LARGE_UPDATE_BYTES
        return {
            "seconds": self.outage_seconds,
            "admitted after": f"{admitted:.0f} s",
            "MB sent beyond the update's": round(again / 1e6, 1),
        }


def _judge(federation: Federation) -> Verdict:
    events = logged_events(federation)
    (attempt,) = federation.account(VICTIM).attempts
    declared = of(events, "update_declared", node=VICTIM)
    admitted = of(events, "update_admitted", node=VICTIM)
    is_one = len(declared) == len(admitted) == 1
    is_same = is_one and admitted[0]["update"] == attempt.update_digest
    is_paid = attempt.state is AttemptState.ACKNOWLEDGED and federation.trainings(VICTIM) == [1]
    findings = [
        text
        for text, is_so in (
            ("model: another update was admitted", is_same),
            (f"log: declared {len(declared)}, admitted {len(admitted)} times", is_one),
            (f"ε: {attempt.state} after {federation.trainings(VICTIM)}", is_paid),
        )
        if not is_so
    ]
    return Verdict(int(not is_same), int(not is_one), int(not is_paid), 0, tuple(findings))


ROUND_TRIP = 0.2
LINKS: tuple[Scene | LargeUpload, ...] = (
    Scene("link-slow", "1 Mbit/s in each direction", bad_line(1, Conditions(bits_per_second=1e6))),
    Scene(
        "link-far",
        "200 ms round trip, 2 % of packets lost",
        bad_line(2, Conditions(delay_seconds=ROUND_TRIP / 2, loss=0.02)),
    ),
    Scene("link-half-open", "the coordinator restarts behind a dead line", half_open),
    Scene("link-down", "no packet passes for 6 min", partition(5, DOWN, 360.0)),
    Scene(
        "link-no-upstream",
        "only packets to the hospitals pass for 45 s",
        partition(6, Conditions(upstream=False), 45.0),
    ),
    Scene(
        "link-no-downstream",
        "only packets to the coordinator pass for 45 s",
        partition(7, Conditions(downstream=False), 45.0),
    ),
    LargeUpload("upload-drop", "the line drops in a 94 MB upload", 8, DOWN, 10.0),
    LargeUpload(
        "upload-deaf",
        "acknowledgements stop in a 94 MB upload",
        9,
        Conditions(downstream=False),
        10.0,
    ),
)
