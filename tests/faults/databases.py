"""A study whose database is away: a server of its own, stopped in mid-round."""

import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tests.faults.marches import PATIENCE_SECONDS, Ending, finish, found, judge, start_all
from tests.faults.scenes import OTHERS, VICTIM, Facts, Played, kept_alive
from tests.postgres import Server, own_server
from tests.system.federation import COORDINATOR, Federation, Material
from tests.system.processes import until


@dataclass(frozen=True, slots=True)
class DatabaseAway:
    """PostgreSQL stops as in a crash, and comes back; the log is read from it in the end."""

    name: str
    what: str
    seconds: float

    def play(self, folder: Path, material: Material, expected: Ending) -> Played:
        """Run the study and judge it."""
        began = time.monotonic()
        with own_server() as server:
            federation = replace(found(folder, material), database=server.url)
            with ExitStack() as running:
                facts = self._disturb(federation, server, running)
            verdict = judge(federation, expected, struck={})
        return Played(facts, verdict, round(time.monotonic() - began, 1))

    def _disturb(self, federation: Federation, server: Server, running: ExitStack) -> Facts:
        federation.control(VICTIM).write_text("wait")
        plan = kept_alive(federation, COORDINATOR)
        daemons = start_all(federation, running, {COORDINATOR: plan})
        until(lambda: federation.trainings(VICTIM) == [1], what="the victim trains")
        for node in OTHERS:
            daemons[node].wait_for("participant.update_admitted", round=1)
        server.stop(signal.SIGQUIT)
        federation.control(VICTIM).unlink()
        daemons[VICTIM].wait_for("participant.retrying")
        time.sleep(self.seconds)
        assert not daemons[VICTIM].events("participant.update_admitted")
        server.start()
        began = time.monotonic()
        daemons[VICTIM].wait_for("participant.update_admitted", round=1, seconds=PATIENCE_SECONDS)
        admitted = time.monotonic() - began
        finish(federation, daemons)
        charged = {node: len(federation.account(node).attempts) for node in federation.hospitals}
        assert set(charged.values()) == {2}, f"attempts charged: {charged}"
        return {
            "seconds": self.seconds,
            "lives of the coordinator": len(daemons[COORDINATOR].events("supervised.ended")),
            "admitted after": f"{admitted:.0f} s",
            "charges of 2 rounds": 2,
        }


DATABASES: tuple[DatabaseAway, ...] = (
    DatabaseAway("database", "PostgreSQL is away for a minute in mid-round", 60.0),
)
