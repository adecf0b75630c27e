"""The tutorial's files and commands are what the programs understand, and its certificates work.

The daemons themselves are not started here: that takes as long as the tutorial does.
"""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from matl import cli
from matl.connection import Flags, read_connection
from matl.doctor.examination import examine
from matl.doctor.participant import participant_links
from matl_coordinator import config as coordinator
from matl_participant import config as participant
from tests.deploy.command_lines import parse
from tests.deploy.test_containers import PROGRAMS

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial" / "first-study.md").read_text("utf-8")
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]
COORDINATOR, HOSPITAL, OPERATOR = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


def test_every_command_is_one_that_a_program_understands() -> None:
    programs = {**PROGRAMS, "matl": cli.app}
    ours = [words for words in map(shlex.split, COMMANDS) if words[0] in programs]
    assert len(ours) > 20
    for words in ours:
        parse(programs, words)


def test_the_certificates_fit_the_files_that_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in map(shlex.split, COMMANDS):
        if words[:2] == ["matl", "pki"]:
            done = CliRunner().invoke(cli.app, words[1:])
            assert done.exit_code == 0, done.output
    places = {
        "federation/coordinator/coordinator.toml": COORDINATOR,
        "hospital_b/participant.toml": HOSPITAL,
        "hospital_c/participant.toml": re.sub("1000$", "600", HOSPITAL, flags=re.MULTILINE).replace(
            "hospital_b", "hospital_c"
        ),
        "operator_a/operator.toml": OPERATOR,
    }
    for path, text in places.items():
        Path(path).write_text(text, "utf-8")
    ours = coordinator.load_config(Path("federation/coordinator/coordinator.toml"), environment={})
    assert ours.identity.tls_key == tmp_path / "federation" / "coordinator" / "tls.key"
    operator = read_connection(Path("operator_a/operator.toml"), Flags(*[None] * 5))
    assert operator.authority == tmp_path / "operator_a" / "trusted-ca.crt"
    for name in ("hospital_b", "hospital_c"):
        theirs = participant.load_config(Path(name) / "participant.toml", environment={})
        assert theirs.privacy.max_epsilon >= ours.study.epsilon
        found = {each.link: each.status for each in examine(participant_links(theirs))}
        # All that does not need the coordinator's daemon.
        for link in ("TLS key", "certificate", "name", "signing key"):
            assert found[link] == "ok", found
