"""Rules that ask for extra rows, and a coordinator without a holdout set, killed for real."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

import pytest

from tests.system.federation import (
    Federation,
    Material,
    Scalar,
    Table,
    found_federation,
    logged_events,
)
from tests.system.processes import Daemon
from tests.system.story import Story, finish, of, run_to_the_end, start_hospitals, tell

pytestmark = pytest.mark.system
PHASES = ("scoring", "aggregating", "evaluating")
ROUNDS = len(PHASES)


class PeerFederation(Federation):
    """One whose coordinator has no holdout set."""

    def _coordinator_table(self) -> Table:
        return {key: each for key, each in super()._coordinator_table().items() if key != "holdout"}


def without_holdout(federation: Federation) -> PeerFederation:
    return PeerFederation(
        **{each.name: getattr(federation, each.name) for each in fields(federation)}
    )


def killed_in_every_phase(federation: Federation, running: ExitStack) -> Story:
    """Run a study whose coordinator is killed in a later phase of every round."""
    coordinator: Daemon = running.enter_context(federation.start_coordinator())
    coordinator.wait_for("coordinator_ready")
    hospitals = start_hospitals(federation, running)
    for round_id, phase in enumerate(PHASES, start=1):
        coordinator.wait_for("round_phase", round=round_id, phase=phase)
        coordinator.kill()
        coordinator = running.enter_context(federation.start_coordinator())
        coordinator.wait_for("coordinator_ready")
    finish(federation, coordinator, hospitals)
    return tell(federation)


def study(folder: Path, material: Material, rounds: Mapping[str, Scalar]) -> Federation:
    folder.mkdir()
    # Small steps: scripted hospitals go on in one direction, which soon leads uphill.
    terms = {"rounds": ROUNDS, "learning_rate": 0.02, "max_grad_norm": 10.0}
    return found_federation(folder, material, study=terms, rounds=rounds)


@pytest.mark.crash
@pytest.mark.timeout(300)
def test_a_rule_with_rows_of_its_own_gives_the_same_model_after_kills(
    tmp_path: Path, material: Material, running: ExitStack
) -> None:
    rounds: Mapping[str, Scalar] = {"rule": "centered_clipping"}
    plain = study(tmp_path / "plain", material, rounds)
    with ExitStack() as undisturbed:
        expected = run_to_the_end(plain, undisturbed)
    found = killed_in_every_phase(study(tmp_path / "killed", material, rounds), running)
    assert found == expected


@pytest.mark.crash
@pytest.mark.timeout(300)
def test_without_a_holdout_set_a_killed_coordinator_ends_with_the_same_model(
    tmp_path: Path, material: Material, running: ExitStack
) -> None:
    rounds: Mapping[str, Scalar] = {"rule": "geometric_median"}
    plain = without_holdout(study(tmp_path / "plain", material, rounds))
    with ExitStack() as undisturbed:
        expected = run_to_the_end(plain, undisturbed)
    killed = without_holdout(study(tmp_path / "killed", material, rounds))
    assert killed_in_every_phase(killed, running) == expected
    (started, *_) = of(logged_events(killed), "coordinator_started")
    assert started["mode"] == "mode0"
    assert "without a holdout set up to 0 of 3 hospitals" in str(started["claim"])
    assert of(logged_events(killed), "model_released")[0].get("accuracy") is None


def test_a_rule_that_no_round_could_fill_ends_the_start_with_the_figure(
    tmp_path: Path, material: Material, running: ExitStack
) -> None:
    federation = study(tmp_path / "study", material, {"rule": "bulyan"})
    coordinator = running.enter_context(federation.start_coordinator())
    said = coordinator.wait_for("configuration_does_not_work")
    assert "bulyan(f=1) needs 7 updates, and a round has at most 3" in str(said["reason"])
    assert coordinator.wait() == 2
