"""The log's key in a token, from making it to reading the log with it in an emergency."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import json
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from matl.cli import app
from matl.terminal import EXIT_FAILED, EXIT_WRONG_USE
from matl_common.identity.key_places import load_wrapping_key
from matl_common.identity.pkcs11.uri import PIN_VARIABLE
from matl_common.tlog.names import log_origin
from matl_coordinator.config import load_config
from matl_coordinator.store.sql import SqlStore
from tests.coordinator.harness import make_site
from tests.logs import an_entry
from tests.softhsm import PIN, TokenFolder
from tests.system.federation import toml_text

pytestmark = pytest.mark.hsm

DRILL = ("--from", "0", "--to", "0", "--reason", "drill")


class Machine:
    """A coordinator's machine, whose log has one entry under the first key."""

    def __init__(self, folder: Path) -> None:
        self._site = make_site(folder)
        self._config = folder / "coordinator.toml"

    def configure(self, key: str) -> None:
        table = json.loads(
            self._site.config.model_dump_json(exclude_none=True, exclude_defaults=True)
        )
        table["study"].pop("epsilon", None)
        self._config.write_text(toml_text({**table, "log": {"encryption_key": key}}))

    def begin(self, key: str) -> None:
        """Make a key, and the log's first entry under it."""
        made = CliRunner().invoke(app, ["audit", "retention", "make-key", key])
        assert made.exit_code == 0, made.output
        self.configure(key)
        config = load_config(self._config, environment={})
        store = SqlStore.connect(
            config.database_url,
            log_origin=log_origin(self._site.allowlist.federation),
            log_key=load_wrapping_key(config.log_encryption_key),
        )
        with closing(store):
            store.load()
            store.commit([], [an_entry("a_canary")])

    def audit(self, *arguments: str) -> Result:
        config = "--config" if arguments[0] == "retention" else "--coordinator-config"
        return CliRunner().invoke(app, ["audit", *arguments, config, str(self._config)])

    def rewrap(self, key: str) -> Result:
        made = CliRunner().invoke(app, ["audit", "retention", "make-key", key])
        assert made.exit_code == 0, made.output
        return self.audit("retention", "rewrap", "--new-key", key, "--reason", "a token was bought")

    def read(self) -> str:
        """Break the glass: what the log's first entry tells of."""
        found = self.audit("decrypt", *DRILL)
        assert found.exit_code == 0, found.output
        return str(json.loads(found.stdout)["event"])

    def is_sound(self) -> bool:
        found = self.audit("verify", "--json")
        assert found.exit_code == 0, found.output
        report = json.loads(found.stdout)
        return bool(report["opened"] == report["tally"]["size"] > 0)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_file_is_replaced_by_a_token_and_that_by_another(
    machine: Machine, tokens: TokenFolder, tmp_path: Path
) -> None:
    first, second = tokens.uri_text("hsm"), tokens.uri_text("other")
    tokens.add("other")
    machine.begin(str(tmp_path / "log-encryption.key"))
    assert "software-held" in machine.audit("retention", "key").stdout
    for key, holder in ((first, "token 'hsm'"), (second, "token 'other'")):
        assert machine.is_sound()
        done = machine.rewrap(key)
        assert done.exit_code == 0, done.output
        assert holder in done.stdout
        assert key in done.stdout
        assert machine.audit("retention", "months").exit_code == EXIT_WRONG_USE
        machine.configure(key)
        assert holder in machine.audit("retention", "key").stdout
        assert machine.read() == "a_canary"
    assert machine.is_sound()


def test_two_keys_of_one_token_follow_each_other(machine: Machine, tokens: TokenFolder) -> None:
    machine.begin(tokens.uri_text("hsm", "log-2026"))
    assert machine.rewrap(tokens.uri_text("hsm", "log-2027")).exit_code == 0
    machine.configure(tokens.uri_text("hsm", "log-2027"))
    assert machine.read() == "a_canary"


def test_a_token_in_software_is_told_wherever_its_key_is_shown(
    machine: Machine, tokens: TokenFolder
) -> None:
    machine.begin(tokens.uri_text("hsm"))
    shown = machine.audit("retention", "key")
    assert "PKCS#11 token 'hsm' (SoftHSM v2" in shown.stdout
    assert "CKF_HW_SLOT" in shown.stderr


@pytest.mark.parametrize(
    ("command", "status_when_gone"),
    [
        # Of a command that reads the log, 1 says that the log is bad.
        ("verify", EXIT_WRONG_USE),
        ("decrypt", EXIT_WRONG_USE),
        ("retention", EXIT_FAILED),
    ],
)
def test_a_wrong_pin_and_a_missing_token_end_a_command_with_one_line(
    machine: Machine,
    tokens: TokenFolder,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    status_when_gone: int,
) -> None:
    machine.begin(tokens.uri_text("hsm"))
    arguments = {"verify": (), "decrypt": DRILL, "retention": ("months",)}[command]
    tokens.restart()
    monkeypatch.setenv(PIN_VARIABLE, f"not-{PIN}")
    wrong = machine.audit(command, *arguments)
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (EXIT_WRONG_USE, 1)
    assert "refuses the PIN" in wrong.stderr
    assert PIN not in wrong.output
    monkeypatch.setenv(PIN_VARIABLE, PIN)
    with tokens.taken_away():
        gone = machine.audit(command, *arguments)
    assert (gone.exit_code, gone.stderr.count("\n")) == (status_when_gone, 1)
    assert "is not there" in gone.stderr
    assert machine.audit(command, *arguments).exit_code == 0


def test_a_log_is_verified_and_its_leaves_are_read_without_its_token(
    machine: Machine, tokens: TokenFolder
) -> None:
    machine.begin(tokens.uri_text("hsm"))
    with tokens.taken_away():
        assert machine.audit("verify", "--sealed").exit_code == 0
        assert "a_canary" in machine.audit("tail").stdout


def test_the_pin_is_in_no_configuration_that_is_printed(
    machine: Machine, tokens: TokenFolder, tmp_path: Path
) -> None:
    pin = tmp_path / "pin"
    pin.write_text(PIN)
    key = tokens.uri_text("hsm", query=f"&pin-source={pin}")
    machine.begin(key)
    config = load_config(tmp_path / "coordinator.toml", environment={})
    printed = json.dumps(config.printable())
    assert key in printed
    assert PIN not in printed + repr(config)


def test_a_pin_in_the_configuration_is_refused_and_not_repeated(
    machine: Machine, tokens: TokenFolder
) -> None:
    machine.configure(tokens.uri_text("hsm", query=f"&pin-value={PIN}"))
    refused = machine.audit("retention", "key")
    assert refused.exit_code == EXIT_WRONG_USE
    assert "pin-source" in refused.stderr
    assert PIN not in refused.output
