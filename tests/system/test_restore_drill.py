"""The drill of docs/runbooks/restore-drill.md: everything of a coordinator is lost and restored."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
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
from tests.system.story import Story, charges, finish, of, start_hospitals, tell

pytestmark = [pytest.mark.system, pytest.mark.crash]
VICTIM = NodeId("hospital_c")


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
    hospitals = start_hospitals(federation, running)
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
