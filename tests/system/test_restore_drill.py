"""The drill of docs/runbooks/restore-drill.md: everything of a coordinator is lost and restored."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from matl_common.ids import NodeId
from matl_participant.core.account import AttemptState
from tests.postgres import fresh_database
from tests.store.roles import WRITER, prepare, url_of
from tests.system.conftest import STUDY_ROUNDS
from tests.system.federation import (
    Federation,
    Material,
    found_federation,
    logged_events,
    logged_root,
)
from tests.system.processes import PATIENCE_SECONDS, ROOT, Daemon, until
from tests.system.story import (
    Story,
    charges,
    finish,
    of,
    start_hospitals,
    tell,
    wait_for_the_end,
)

pytestmark = [pytest.mark.system, pytest.mark.crash]
VICTIM = NodeId("hospital_c")
HALTED = 3
OLDER = "MATL_DRILL_OLDER"
"""Set to have the drill of a backup that is older than what was signed."""


def run_matl(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from matl.cli import app; app()", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def matl(*arguments: object) -> dict[str, object]:
    """What a command prints as JSON."""
    done = run_matl(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def run_into_round_2(
    federation: Federation, running: ExitStack
) -> tuple[Daemon, dict[NodeId, Daemon]]:
    """Round 1 is published; round 2 waits for one hospital, the others are admitted."""
    coordinator = running.enter_context(federation.start_coordinator())
    coordinator.wait_for("coordinator_ready")
    # By two names, which it tries in turn: with one, it waits for as long again as a restore took.
    both = f"{federation.address},localhost:{federation.port}"
    hospitals = start_hospitals(federation, running, address=both)
    with federation.operator() as operator:
        coordinator.wait_for(
            "round_phase", round=1, phase="collecting", seconds=3 * PATIENCE_SECONDS
        )
        operator.pause("so that the next round waits")
        coordinator.wait_for("model_published", round=1)
        federation.control(VICTIM).write_text("wait")
        operator.resume("it may wait for the victim now")

        def two_are_admitted() -> bool:
            rnd = operator.status().current_round
            assert rnd is not None
            admitted = [each for each in rnd.contributions if each.status == "admitted"]
            return rnd.round_id == 2 and len(admitted) == 2

        until(two_are_admitted, what="the others are admitted to round 2")
    until(lambda: federation.trainings(VICTIM) == [1, 2], what="the victim trains")
    return coordinator, hospitals


def lose_everything(federation: Federation) -> None:
    """All but the key that is kept apart."""
    key = federation.coordinator_state / "log-encryption.key"
    kept = key.read_bytes()
    shutil.rmtree(federation.coordinator_state)
    federation.coordinator_state.mkdir()
    key.write_bytes(kept)
    key.chmod(0o600)


def checkpoints(federation: Federation) -> Iterator[object]:
    for node in federation.hospitals:
        yield from ("--checkpoint", federation.folder / node / "log-checkpoint.txt")


def drill(
    before: Federation, after: Federation, running: ExitStack, *, backup: Path
) -> tuple[Story, dict[str, object]]:
    """Back up in the middle of round 2, lose the coordinator, restore it, and finish the study."""
    coordinator, hospitals = run_into_round_2(before, running)
    config = before.coordinator_config
    made = matl("backup", backup, "-c", config)
    assert (made["round"], made["phase"]) == (2, "collecting")
    coordinator.kill()
    lose_everything(before)
    after.write_coordinator_config()
    restored = matl("restore", backup, "-c", config, *checkpoints(after))
    assert restored["log_root"] == made["log_root"]
    assert logged_root(after, size=int(str(made["log_size"]))) == made["log_root"]
    coordinator = running.enter_context(after.start_coordinator())
    assert coordinator.wait_for("coordinator_ready")["phase"] == "collecting"
    after.control(VICTIM).unlink()
    finish(after, coordinator, hospitals)
    return tell(after), restored


def check_nothing_was_charged_twice(federation: Federation) -> None:
    rounds = list(range(1, STUDY_ROUNDS + 1))
    for node in federation.hospitals:
        assert charges(federation, node) == [
            (number, AttemptState.ACKNOWLEDGED) for number in rounds
        ]
        assert federation.trainings(node) == rounds


@pytest.mark.timeout(300)
def test_a_coordinator_restored_in_the_middle_of_a_round_ends_with_the_same_model(
    tmp_path: Path, material: Material, undisturbed: Story, running: ExitStack
) -> None:
    founded = found_federation(tmp_path, material, study={"rounds": STUDY_ROUNDS})
    # Whoever is done waits for the others, who may have to find the coordinator again.
    federation = replace(founded, drain_seconds=60.0)
    story, restored = drill(federation, federation, running, backup=tmp_path / "backup")
    assert story.final_model == undisturbed.final_model
    check_nothing_was_charged_twice(federation)
    told = of(logged_events(federation), "backup_restored")
    assert [(each["root"], each["behind"]) for each in told] == [(restored["log_root"], 0)]
    # Published before and after.
    released = sorted(path.name for path in (federation.coordinator_state / "released").iterdir())
    assert released == [f"{number:04d}" for number in range(1, STUDY_ROUNDS + 1)]
    for folder in (federation.coordinator_state / "released").iterdir():
        assert len(list(folder.glob("*.safetensors"))) == 1


@pytest.mark.postgres
@pytest.mark.timeout(300)
def test_a_coordinator_on_postgresql_with_roles_is_restored_into_another_database(  # noqa: PLR0917 - fixtures
    tmp_path: Path,
    material: Material,
    undisturbed: Story,
    running: ExitStack,
    postgres_url: str,
    postgres_database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(postgres_database)
    study = {"rounds": STUDY_ROUNDS}
    writer = url_of(postgres_database, WRITER)
    before = found_federation(tmp_path, material, database=writer, study=study)
    with fresh_database(postgres_url) as empty:
        prepare(empty)
        monkeypatch.setenv("MATL_OWNER_DATABASE", empty)
        after = replace(before, database=url_of(empty, WRITER))
        story, _ = drill(before, after, running, backup=tmp_path / "backup")
        assert story.final_model == undisturbed.final_model
        check_nothing_was_charged_twice(after)


@pytest.mark.skipif(OLDER not in os.environ, reason=f"takes two minutes; wants {OLDER}=1")
@pytest.mark.timeout(600)
def test_an_older_backup_costs_the_rounds_after_it_and_no_budget_comes_back(
    tmp_path: Path, material: Material, running: ExitStack
) -> None:
    rounds = 4
    founded = found_federation(tmp_path, material, study={"rounds": rounds})
    federation = replace(founded, drain_seconds=60.0)
    coordinator = running.enter_context(federation.start_coordinator())
    hospitals = start_hospitals(federation, running)
    config, backup = federation.coordinator_config, tmp_path / "backup"
    coordinator.wait_for("round_phase", round=1, phase="collecting", seconds=3 * PATIENCE_SECONDS)
    with federation.operator() as operator:
        operator.pause("to back up between two rounds")
        coordinator.wait_for("model_published", round=1)
        matl("backup", backup, "-c", config)
        operator.resume("without another backup")
        coordinator.wait_for("round_phase", round=2, phase="released")
        operator.pause("so that the study does not end")
        coordinator.wait_for("model_published", round=2)
    coordinator.kill()
    for each in hospitals.values():
        each.kill()
    spent = {node: charges(federation, node) for node in federation.hospitals}
    last = max(number for each in spent.values() for number, _ in each)
    lose_everything(federation)
    refused = run_matl("restore", backup, "-c", config, *checkpoints(federation))
    assert refused.returncode == 1
    assert "refuse a log that went back" in refused.stderr
    restored = matl("restore", backup, "-c", config, "--older", *checkpoints(federation))
    assert int(str(restored["behind"])) > 0

    # As the runbook says: shorter rounds, and no hospital follows a log that went back by itself.
    federation = replace(federation, rounds={"collect_seconds": 20.0})
    coordinator = running.enter_context(federation.start_coordinator())
    coordinator.wait_for("coordinator_ready")
    for each in start_hospitals(federation, running).values():
        assert each.wait() == HALTED
    for node in federation.hospitals:
        agree(federation.folder / node, rounds=range(2, last + 1))
    hospitals = start_hospitals(federation, running)
    with federation.operator() as operator:
        operator.resume("all hospitals have agreed")
    coordinator.wait_for("round_phase", round=2, phase="aborted", seconds=2 * PATIENCE_SECONDS)
    wait_for_the_end(federation, seconds=3 * PATIENCE_SECONDS)
    finish(federation, coordinator, hospitals)

    events = logged_events(federation)
    released = [int(str(each["round"])) for each in of(events, "model_released")]
    assert len(released) == rounds
    assert released[0] == 1
    assert min(released[1:]) > 2
    folders = (federation.coordinator_state / "released").iterdir()
    assert sorted(path.name for path in folders) == [f"{number:04d}" for number in released]
    for node in federation.hospitals:
        now = charges(federation, node)
        # What was charged is still charged, and every round once.
        assert [number for number, _ in now[: len(spent[node])]] == [n for n, _ in spent[node]]
        assert len({number for number, _ in now}) == len(now)
        assert last <= max(number for number, _ in now)


def agree(state: Path, *, rounds: Iterable[int]) -> None:
    """What a hospital types that has agreed to follow the restored log."""
    evidence, settled = state / "log-evidence", state / "log-evidence/settled"
    settled.mkdir(exist_ok=True)
    for file in evidence.glob("*.json"):
        file.rename(settled / file.name)
    (state / "log-checkpoint.txt").rename(state / "log-checkpoint-before-restore.txt")
    for study in (state / "studies").iterdir():
        for number in rounds:
            (settled / f"agreed-{study.name}-round-{number:06d}.json").touch()
