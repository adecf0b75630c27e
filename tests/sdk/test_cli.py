"""The ``matl`` command against a real coordinator, and every installed command's help."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner, Result

from matl.cli import app
from matl_common.identity.tls import server_credentials
from matl_common.wire import operations_pb2 as pb
from matl_common.wire.operations_pb2_grpc import (
    OperationsServiceServicer,
    add_OperationsServiceServicer_to_server,
)
from tests.postgres import free_port
from tests.system.federation import (
    COORDINATOR,
    COORDINATOR_NAME,
    HOSPITALS,
    OPERATOR,
    STUDY,
    Federation,
    Material,
    found_federation,
    toml_text,
    write_images,
)
from tests.system.processes import ROOT

pytestmark = pytest.mark.certificates
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@dataclass(frozen=True)
class Shell:
    """An operator's shell, with an ``operator.toml`` at hand."""

    federation: Federation

    @property
    def table(self) -> dict[str, str]:
        mine = self.federation.keys[OPERATOR].tls
        return {
            "address": self.federation.address,
            "coordinator": str(COORDINATOR_NAME),
            "key": str(mine.private_key),
            "certificate": str(mine.certificate_chain),
            "authority": str(mine.trusted_authority),
        }

    def run(self, *arguments: str) -> Result:
        config = self.federation.folder / "operator.toml"
        config.write_text(toml_text({"operator": self.table}))
        return run("-c", str(config), *arguments)

    def ask(self, *arguments: str) -> Any:
        """The JSON that a command prints."""
        result = self.run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(app, arguments)


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Return a federation whose coordinator may start; no hospital ever does."""
    images = tmp_path_factory.mktemp("images")
    write_images(images / "holdout", per_class=16, seed=0)
    folder = tmp_path_factory.mktemp("federation")
    return found_federation(folder, Material(images, images / "none"))


@pytest.fixture(scope="module")
def shell(founded: Federation) -> Iterator[Shell]:
    """Yield a shell beside a real coordinator."""
    with founded.start_coordinator() as daemon:
        daemon.wait_for("coordinator_ready")
        yield Shell(founded)


@contextmanager
def telling(federation: Federation, **answers: Callable[..., Any]) -> Iterator[Shell]:
    """Yield a shell whose coordinator has this to tell, for what takes a study to come about."""
    servicer = type("Servicer", (OperationsServiceServicer,), answers)()
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    add_OperationsServiceServicer_to_server(servicer, server)
    tls = federation.keys[COORDINATOR].tls
    port = server.add_secure_port("127.0.0.1:0", server_credentials(tls))
    server.start()
    try:
        yield Shell(replace(federation, port=port))
    finally:
        server.stop(None).wait()


def newest_entry(shell: Shell) -> dict[str, Any]:
    """The newest of the log."""
    entries = shell.run("audit", "tail", "-n", "1", "--json").stdout.splitlines()
    assert len(entries) == 1
    entry: dict[str, Any] = json.loads(entries[0])
    return entry


def test_the_status_names_the_study_and_what_it_waits_for(shell: Shell) -> None:
    told = shell.ask("status")
    assert (told["study_id"], told["rounds_planned"], told["study_complete"]) == (STUDY, 2, False)
    shown = shell.run("status").stdout
    assert f"{STUDY} in dr-study" in shown
    assert told["log_root"] in shown


def test_the_status_tells_what_the_coordinator_withstands_and_given_what(shell: Shell) -> None:
    told = shell.ask("status")
    assert told["mode"] == "mode1"
    assert (
        "given a clean root set of at least 500 images and authenticated members" in told["claim"]
    )
    shown = shell.run("status").stdout
    assert told["claim"] in shown
    assert told["rule"] in shown
    assert told["warnings"] == []


def test_an_appeal_is_shown_until_it_is_denied_and_both_reach_the_log(shell: Shell) -> None:
    node = HOSPITALS[1]
    assert shell.run("appeal", node, "--text", "our labels are right").exit_code == 0
    entry = newest_entry(shell)
    assert (entry["event"], entry["node"], entry["operator"]) == ("appeal_filed", node, OPERATOR)
    assert "appeal open (our labels are right)" in shell.run("participants").stdout
    shell.ask("deny", node, "--reason", "second reading disagrees")
    assert newest_entry(shell)["event"] == "appeal_denied"
    (told,) = [each["appeal"] for each in shell.ask("participants") if each["node_id"] == node]
    assert (told["state"], told["answer"]) == ("denied", "second reading disagrees")
    refused = shell.run("deny", node, "--reason", "again")
    assert refused.exit_code == 1
    assert "no appeal" in refused.stderr


def test_participants_lists_every_enrolled_hospital(shell: Shell) -> None:
    told = shell.ask("participants")
    assert [each["node_id"] for each in told] == list(HOSPITALS)
    # No limit has no number in JSON.
    assert {each["epsilon_budget"] for each in told} == {None}
    shown = shell.run("participants").stdout
    assert all(node in shown for node in HOSPITALS)
    assert "never" in shown


def test_participants_tells_the_budget_as_a_ledger_does(founded: Federation) -> None:
    first = pb.ParticipantSummary(
        node_id="hospital_a",
        epsilon_spent=0.41506,
        epsilon_budget=1.0,
        budget_fraction=0.2,
        rounds_left=4,
        neighbouring_relation="add-or-remove-one patient",
        target_delta=1e-5,
    )
    # Of the full recipe the coordinator knows the steps, and not their ε.
    second = pb.ParticipantSummary()
    second.CopyFrom(first)
    second.ClearField("epsilon_spent")
    second.budget_fraction = 0.6
    told = pb.ListParticipantsResponse(participants=[first, second])
    with telling(founded, ListParticipants=lambda *_: told) as shell:
        shown = shell.run("participants").stdout
    assert "0.4151 of 1" in shown
    assert "20.0%" in shown
    assert "60.0%, half is spent" in shown
    assert "its ledger knows of 1" in shown
    assert "ε at δ = 1e-05 (add-or-remove-one patient)." in shown


def test_pause_and_resume_reach_the_study_and_the_log(shell: Shell) -> None:
    assert shell.run("pause", "--reason", "maintenance").exit_code == 0
    assert shell.ask("status")["paused"] is True
    entry = newest_entry(shell)
    assert (entry["event"], entry["operator"]) == ("study_paused", OPERATOR)
    assert entry["reason"] == "maintenance"
    assert shell.ask("resume", "--reason", "done") == {"order": "resume"}
    assert shell.ask("status")["paused"] is False
    assert newest_entry(shell)["event"] == "study_resumed"


def test_the_log_is_verified_shown_and_proved_over_the_wire(shell: Shell, tmp_path: Path) -> None:
    key = str(shell.federation.keys[OPERATOR].log_verifier_key)
    report = shell.ask("audit", "verify", "--log-key", key)
    assert report["tally"]["size"] > 0
    assert report["tally"]["checkpoints"] == 1
    shown = shell.ask("audit", "show", "0")
    assert shown["entry"]["event"] == "study_founded"
    unkeyed = shell.run("audit", "prove", "0", "-o", str(tmp_path))
    assert (unkeyed.exit_code, "--log-key" in unkeyed.stderr) == (2, True)
    proved = shell.run("audit", "prove", "0", "-o", str(tmp_path), "--log-key", key)
    assert proved.exit_code == 0, proved.output
    assert json.loads((tmp_path / "0.entry.json").read_text())["leaf"]
    assert (tmp_path / "0.tlog-proof").read_text().startswith("c2sp.org/tlog-proof@v1")


def test_start_round_tells_the_number_of_the_round(shell: Shell) -> None:
    number = shell.ask("start-round", "--reason", "all are there")["round_id"]
    assert number == 1
    lines = shell.run("audit", "tail", "--json").stdout.splitlines()
    requested = [each for each in map(json.loads, lines) if each["event"] == "round_requested"]
    assert [(each["round"], each["reason"]) for each in requested] == [(1, "all are there")]


def test_quarantine_and_release_change_a_hospitals_standing(shell: Shell) -> None:
    def state() -> str:
        told = {each["node_id"]: each["state"] for each in shell.ask("participants")}
        return str(told[HOSPITALS[2]])

    before = state()
    shell.ask("quarantine", HOSPITALS[2], "--reason", "labels under inquiry")
    assert state() == "quarantined" != before
    assert "labels under inquiry" in shell.run("audit", "tail", "-n", "1").stdout
    shell.ask("release", HOSPITALS[2], "--reason", "labels corrected")
    assert state() != "quarantined"


def test_an_order_that_is_refused_says_why_and_fails(shell: Shell) -> None:
    result = shell.run("release", HOSPITALS[0], "--reason", "to see")
    assert result.exit_code == 1
    assert "not quarantined" in result.stderr
    assert result.stdout == ""


def test_a_hospitals_certificate_gives_no_orders(shell: Shell) -> None:
    hospital = shell.federation.keys[HOSPITALS[0]].tls
    mine = ("--key", str(hospital.private_key), "--certificate", str(hospital.certificate_chain))
    result = shell.run(*mine, "pause", "--reason", "mine now")
    assert result.exit_code == 1
    assert "participant may not call" in result.stderr


def test_the_environment_alone_is_enough_and_a_flag_wins_over_it(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    variables = {f"MATL_OPERATOR_{key.upper()}": value for key, value in shell.table.items()}
    assert run("status", **variables).exit_code == 0
    elsewhere = run("--address", f"127.0.0.1:{free_port()}", "status", **variables)
    assert elsewhere.exit_code == 1
    assert "cannot be reached" in elsewhere.stderr


def test_another_coordinators_name_is_not_accepted(shell: Shell) -> None:
    other = str(COORDINATOR_NAME).replace("/coordinator/coordinator", "/coordinator/other")
    assert shell.run("--coordinator", other, "status").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--coordinator", "spiffe://dr-study/operator/operator", "status"), "no coordinator"),
        (("--address", "nowhere", "status"), "host:port"),
        (("--key", "/nonexistent", "status"), "/nonexistent"),
        (("pause",), "--reason"),
        (("quarantine", "Not A Node", "--reason", "x"), "NODE"),
        (("audit", "tail", "-n", "501"), "-n"),
    ],
)
def test_wrong_use_is_told_apart_from_a_refusal(
    founded: Federation, arguments: tuple[str, ...], said: str
) -> None:
    result = Shell(founded).run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_without_any_configuration_the_error_lists_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("--address", "127.0.0.1:1", "status")
    assert result.exit_code == 2
    assert "--coordinator, --key, --certificate, --authority;" in result.stderr


def test_rounds_shows_how_good_each_model_is(founded: Federation) -> None:
    scores = pb.Evaluation(accuracy=0.8125, per_class_recall=[0.5, float("nan")], images=500)
    part = pb.Contribution(node_id="hospital_a", status="admitted")
    late = pb.Contribution(node_id="hospital_b", status="late")
    past = {
        number: pb.RoundSummary(
            round_id=number, phase="released", evaluation=scores, contributions=[part, late]
        )
        for number in (1, 2)
    }

    def page(_: Any, request: Any, __: Any) -> Any:
        later = [each for number, each in past.items() if number > request.after_round]
        return pb.ListRoundsResponse(rounds=later)

    with telling(founded, ListRounds=page) as shell:
        told = shell.ask("rounds", "--after", "1")
        shown = shell.run("rounds").stdout.splitlines()
    assert [each["round_id"] for each in told] == [2]
    assert told[0]["evaluation"]["recall"] == [0.5, None]
    assert len(shown) == 3
    assert shown[1].split()[:6] == ["1", "released", "1", "of", "2", "0.812"]


def test_rounds_and_status_tell_what_was_averaged(founded: Federation) -> None:
    own = pb.RoundSummary(round_id=3, phase="released", released_model="ab" * 32)
    mean = pb.RoundSummary(
        round_id=4, phase="released", released_model="cd" * 32, round_model="ef" * 32, averaged=2
    )
    answers: dict[str, Callable[..., Any]] = {
        "ListRounds": lambda _, request, __: pb.ListRoundsResponse(
            rounds=[each for each in (own, mean) if each.round_id > request.after_round]
        ),
        "GetStatus": lambda *_: pb.GetStatusResponse(latest_model="cd" * 32, average_from=3),
    }
    with telling(founded, **answers) as shell:
        told = shell.ask("rounds")
        lines = shell.run("rounds").stdout.splitlines()
        status = shell.run("status").stdout
    assert [(each["round_model"], each["averaged"]) for each in told] == [("", 0), ("ef" * 32, 2)]
    assert "cdcdcdcdcdcd, mean of 2" in lines[2]
    assert "mean" not in lines[1]
    assert "from release 3 on, the mean of the rounds' own models since" in status


def test_rounds_and_status_tell_what_hospitals_say_of_the_model(founded: Federation) -> None:
    said = pb.HospitalEvaluation(correct=801.5, stddev=30.0, patients=1000)
    also = pb.HospitalEvaluation(correct=-2.25, stddev=40.0, patients=500)
    absurd = pb.HospitalEvaluation(stddev=30.0, patients=300, doubt="the count is no number")
    parts = [
        pb.Contribution(node_id=f"hospital_{name}", status="admitted", evaluation=each)
        for name, each in zip("abcd", (said, also, absurd, None), strict=True)
    ]
    rnd = pb.RoundSummary(round_id=1, phase="released", contributions=parts)
    answers: dict[str, Callable[..., Any]] = {
        "ListRounds": lambda _, request, __: pb.ListRoundsResponse(
            rounds=[rnd] if request.after_round < 1 else []
        ),
        "GetStatus": lambda *_: pb.GetStatusResponse(current_round=rnd),
    }
    with telling(founded, **answers) as shell:
        told = shell.ask("rounds")[0]["contributions"]
        line = shell.run("rounds").stdout.splitlines()[1]
        status = " ".join(shell.run("status").stdout.split())
    assert [each["evaluation"] and each["evaluation"]["correct"] for each in told] == [
        801.5,
        -2.25,
        None,
        None,
    ]
    assert told[2]["evaluation"]["doubt"] == "the count is no number"
    assert told[3]["evaluation"] is None
    # Together, without the one that cannot be.
    assert "0.533 ± 0.033" in line
    assert "says 802 ± 30 of 1000 right before this round" in status
    assert "its evaluation is not believed: the count is no number" in status


def test_what_others_wrote_does_not_steer_the_terminal(founded: Federation) -> None:
    told = pb.ListParticipantsResponse(
        participants=[pb.ParticipantSummary(node_id="hospital_a", reason="\x1b[2J[red]gone")]
    )
    with telling(founded, ListParticipants=lambda *_: told) as shell:
        shown = shell.run("participants").stdout
    assert "\x1b" not in shown
    assert "[red]gone" in shown


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_installed_command_loads_and_explains_itself(name: str) -> None:
    module, _, function = SCRIPTS[name].partition(":")
    code = f"import sys; sys.argv[0] = {name!r}; from {module} import {function} as f; f()"
    command = (sys.executable, "-c", code, "--help")
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"Usage: {name}" in result.stdout
