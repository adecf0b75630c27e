"""``matl ledger`` on the files that a real ledger wrote."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from matl.cli import app
from matl_common.ids import RoundId
from matl_common.protocol import PrivacyTerms
from matl_participant.ledger import ledger_path, open_ledger
from tests.participant.test_config import MINIMAL
from tests.participant.test_ledger import BASE, NOW, PLANNED, STEPS, TERMS

pytestmark = pytest.mark.privacy


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ("ledger", *arguments))


def ask(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def charge(state: Path, study: str, rounds: int, *, terms: PrivacyTerms = TERMS) -> Path:
    """A ledger as a daemon writes it, with a round every six hours."""
    folder = state / "ledger"
    with open_ledger(folder, dataset="retina", study_id=study) as ledger:
        ledger.plan(replace(PLANNED, study_id=study, privacy=terms))
        for number in range(1, rounds + 1):
            at = NOW + timedelta(hours=6 * number)
            ledger.reserve(at=at, round_id=RoundId(number), steps=STEPS, base_model=BASE)
            ledger.abandon(at=at, round_id=RoundId(number), reason="lost")
    return ledger_path(folder, dataset="retina", study_id=study)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    charge(tmp_path / "state", "study-1", 2)
    return tmp_path / "state"


def test_show_names_the_relation_the_share_the_rounds_and_the_end(state: Path) -> None:
    shown = run("show", "--state-dir", str(state))
    assert shown.exit_code == 0, shown.output
    row = shown.stdout.splitlines()[1]
    assert "ε 0.6057 of 1 spent at δ = 1e-05 (add-or-remove-one patient)" in row
    assert "40.0% of the budget, 3 rounds left" in row
    assert "half of the budget" not in row
    assert "Together: ε 0.6057 spent" in shown.stdout
    assert " gaussian " in row
    (told,) = ask("show", "--state-dir", str(state))
    assert told["noise"] == "gaussian"
    assert (told["epsilon_spent"], told["rounds_left"]) == (0.6057, 3)
    assert told["adjacency"] == "add-or-remove-one"
    # The study's rounds lie in the past: the next is expected now, the others after it.
    assert told["projected_end"] > NOW.isoformat()
    assert told["statement"] in row


def test_show_warns_at_half_of_the_budget_and_not_of_epsilon(state: Path) -> None:
    charge(state, "study-2", 3)
    first, second = run("show", "--state-dir", str(state)).stdout.splitlines()[1:3]
    if "study-1" not in first:
        first, second = second, first
    assert "half of the budget is spent" not in first
    assert "half of the budget is spent" in second
    told = {each["study_id"]: each for each in ask("show", "--state-dir", str(state))}
    assert told["study-1"]["dataset_epsilon_spent"] == told["study-2"]["dataset_epsilon_spent"]
    assert not told["study-1"]["is_half_spent"]
    assert told["study-2"]["is_half_spent"]


def test_show_knows_the_data_sets_limit_from_the_configuration(state: Path) -> None:
    config = state.parent / "participant.toml"
    config.write_text(f"{MINIMAL}\n[privacy]\ndataset_epsilon = 0.7\n")
    (told,) = ask("show", "--config", str(config))
    assert told["dataset_epsilon_limit"] == 0.7
    assert told["rounds_left"] == 0
    assert told["dataset_budget_fraction"] > 0.5
    assert "ε 0.6057 of 0.7 spent" in run("show", "-c", str(config)).stdout


def test_show_tells_the_limit_that_holds_where_none_was_set(state: Path) -> None:
    charge(state, "study-2", 3)
    config = state.parent / "participant.toml"
    config.write_text(MINIMAL)
    told = ask("show", "--config", str(config))
    assert [each["dataset_epsilon_limit"] for each in told] == [1.0, 1.0]
    assert [each["rounds_left"] for each in told] == [0, 0]
    shown = run("show", "-c", str(config)).stdout
    assert "of 1 spent at δ = 1e-05 (add-or-remove-one patient) by 2 studies" in shown
    config.write_text(f"{MINIMAL}\n[privacy]\ndataset_epsilon = inf\n")
    told = ask("show", "--config", str(config))
    assert [each["dataset_epsilon_limit"] for each in told] == [None, None]
    assert sorted(each["rounds_left"] for each in told) == [2, 3]


def test_show_answers_beside_a_ledger_whose_plan_no_accountant_could_be_asked_about(
    state: Path,
) -> None:
    absurd = replace(TERMS, noise_multiplier=1.0, sample_rate=0.5, max_steps=10_000_000)
    charge(state, "absurd", 1, terms=absurd)
    config = state.parent / "participant.toml"
    config.write_text(f"{MINIMAL}\n[privacy]\ndataset_epsilon = 2.0\n")
    told = {each["study_id"]: each for each in ask("show", "--config", str(config))}
    # What was spent so far is still told; the whole plan does not fit beside anything.
    assert 1.0 < told["absurd"]["epsilon_spent"] < 100.0
    assert [each["rounds_left"] for each in told.values()] == [0, 0]


def test_sound_ledgers_verify_and_an_incomplete_last_line_is_only_noted(state: Path) -> None:
    path = charge(state, "study-2", 1)
    assert [each["is_sound"] for each in ask("verify", "--state-dir", str(state))] == [True, True]
    path.write_bytes(path.read_bytes()[:-40])
    before = path.read_bytes()
    told = {each["study_id"]: each for each in ask("verify", "--state-dir", str(state))}
    assert told["study-2"]["is_sound"]
    assert "incomplete" in told["study-2"]["note"]
    assert told["study-1"]["note"] == ""
    assert path.read_bytes() == before


def test_verify_prints_the_first_broken_line_and_what_to_do(state: Path) -> None:
    path = charge(state, "study-2", 3)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"reason":"lost"', b'"reason":"none"')
    path.write_bytes(b"".join(lines))
    result = run("verify", "--state-dir", str(state))
    assert result.exit_code == 1
    assert "line 3" in result.stdout
    assert "do not delete the file; restore it from the newest backup" in result.stdout
    told = json.loads(run("verify", "--state-dir", str(state), "--json").stdout)
    (broken,) = [each for each in told if not each["is_sound"]]
    assert (broken["line"], broken["entries"], broken["study_id"]) == (3, 2, "study-2")
    # The sums of the others are no longer certain either.
    shown = run("show", "--state-dir", str(state))
    assert shown.exit_code == 1
    assert path.name in shown.stderr
    assert "line 3" in shown.stderr


def test_verify_notices_an_older_copy_by_what_lies_beside_it(state: Path) -> None:
    (study,) = {path.name.split("-")[1][:16] for path in (state / "ledger").iterdir()}
    receipts = state / "studies" / study / "receipts"
    receipts.mkdir(parents=True)
    (receipts / "round-000002.json").write_text("{}")
    assert ask("verify", "--state-dir", str(state))[0]["is_sound"]
    (receipts / "round-000003.json").write_text("{}")
    result = run("verify", "--state-dir", str(state))
    assert result.exit_code == 1
    assert "NOT SOUND" in result.stdout
    assert "rounds [3]" in result.stdout


def test_a_place_without_ledgers_is_told_apart_from_a_wrong_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("show", "verify"):
        result = run(command, "--state-dir", str(tmp_path))
        assert (result.exit_code, result.stdout) == (0, "No study has a privacy ledger here.\n")
        assert ask(command, "--state-dir", str(tmp_path)) == []
        missing = run(command, "--state-dir", str(tmp_path / "nowhere"))
        assert missing.exit_code == 2
        assert "--state-dir" in missing.stderr
        assert "give --state-dir or --config" in run(command).stderr
        assert run(command, "--config", "absent.toml").exit_code == 2


def test_the_ledger_commands_explain_themselves() -> None:
    assert "verify" in run("--help").stdout
    assert "--state-dir" in run("show", "--help").stdout
