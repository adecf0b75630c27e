"""A study whose coordinator has to do without what it leans on for a minute of a round."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from matl_common.identity.pkcs11.wrapping import create_token_key
from tests.faults.marches import PATIENCE_SECONDS, Ending, finish, found, judge, start_all
from tests.faults.scenes import OTHERS, VICTIM, Facts, Played, kept_alive
from tests.postgres import Server, own_server
from tests.softhsm import token_folder
from tests.system.federation import COORDINATOR, Federation, Material
from tests.system.processes import until
from tests.system.tokens import move_into_token

Away = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Absence:
    """It is away while all have trained and one has yet to send, and is there in the end."""

    name: str
    what: str
    lean: Callable[[Federation, ExitStack], tuple[Federation, Away]]
    """Sets it up, and says how to take it away."""
    seconds: float = 60.0

    def play(self, folder: Path, material: Material, expected: Ending) -> Played:
        """Run the study and judge it, which reads the log from where it is."""
        began = time.monotonic()
        with ExitStack() as around:
            federation, away = self.lean(found(folder, material), around)
            with ExitStack() as running:
                facts = self._disturb(federation, away, running)
            verdict = judge(federation, expected, struck={})
        return Played(facts, verdict, round(time.monotonic() - began, 1))

    def _disturb(self, federation: Federation, away: Away, running: ExitStack) -> Facts:
        federation.control(VICTIM).write_text("wait")
        plan = kept_alive(federation, COORDINATOR)
        daemons = start_all(federation, running, {COORDINATOR: plan})
        until(lambda: federation.trainings(VICTIM) == [1], what="the victim trains")
        for node in OTHERS:
            daemons[node].wait_for("participant.update_admitted", round=1)
        with away():
            federation.control(VICTIM).unlink()
            daemons[VICTIM].wait_for("participant.retrying")
            time.sleep(self.seconds)
            tries = len(daemons[VICTIM].events("participant.retrying"))
            assert not daemons[VICTIM].events("participant.update_admitted")
        began = time.monotonic()
        daemons[VICTIM].wait_for("participant.update_admitted", round=1, seconds=PATIENCE_SECONDS)
        admitted = time.monotonic() - began
        finish(federation, daemons)
        charged = {node: len(federation.account(node).attempts) for node in federation.hospitals}
        assert set(charged.values()) == {2}, f"attempts charged: {charged}"
        return {
            "seconds": self.seconds,
            "tries meanwhile": tries,
            "lives of the coordinator": len(daemons[COORDINATOR].events("supervised.ended")),
            "admitted after": f"{admitted:.0f} s",
            "charges of 2 rounds": 2,
        }


def database(federation: Federation, around: ExitStack) -> tuple[Federation, Away]:
    """PostgreSQL, which stops as in a crash."""
    server = around.enter_context(own_server())
    return replace(federation, database=server.url), lambda: _stopped(server)


@contextmanager
def _stopped(server: Server) -> Iterator[None]:
    server.stop(signal.SIGQUIT)
    yield
    server.start()


def token(federation: Federation, around: ExitStack) -> tuple[Federation, Away]:
    """A PKCS#11 token with all the coordinator's keys, that of the log's entries included."""
    patch = around.enter_context(pytest.MonkeyPatch.context())
    tokens = around.enter_context(token_folder(federation.folder / "softhsm", patch))
    tokens.add("hsm")
    create_token_key(tokens.uri("hsm"))
    federation = replace(federation, log={"encryption_key": tokens.uri_text("hsm")})
    move_into_token(federation, tokens)
    return federation, tokens.taken_away


ABSENCES: tuple[Absence, ...] = (
    Absence("database", "PostgreSQL is away for a minute of a round", database),
    Absence("token", "the token with all the coordinator's keys is away", token),
)
