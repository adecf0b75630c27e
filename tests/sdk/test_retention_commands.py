"""An administrator puts months of the log away, with a coordinator's own files."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from matl.cli import app
from matl.commands.retention import retention_app
from matl.terminal import EXIT_FAILED, EXIT_WRONG_USE
from matl_common.durable import owned_folder
from matl_common.identity.key_places import create_wrapping_key, load_wrapping_key
from matl_common.identity.keys import load_ed25519_private_key
from matl_common.identity.wrapping import create_key_file
from matl_common.ids import Digest
from matl_common.tlog.checkpoint import verify_checkpoint
from matl_common.tlog.cosignature import cosign
from matl_common.tlog.leaf import parse_leaf
from matl_common.tlog.merkle import leaf_hash
from matl_common.tlog.names import log_origin
from matl_common.tlog.sealing import RANDOM_BYTES, data_key, seal
from matl_coordinator.ports import LoggedEntry
from matl_coordinator.store.database import create_database_engine
from matl_coordinator.store.log import insert_sealed
from matl_coordinator.store.sql import SqlStore
from matl_coordinator.store.turns import taking_turns
from tests.coordinator.harness import Site, make_site
from tests.logs import an_entry

OLD = "2015-03"


@dataclass
class Office:
    """Where the command runs: a coordinator's folder, and its log."""

    site: Site
    store: SqlStore
    config: Path

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(retention_app, [*arguments, "--config", str(self.config)])

    def cosign(self) -> None:
        async def gather() -> None:
            checkpoints = self.site.checkpoints(self.store)
            given = (await checkpoints.to_cosign(old_size=0)).witnessed
            checkpoint = verify_checkpoint(given.note, checkpoints.policy.logs).checkpoint
            for node in self.site.hospitals:
                key = self.site.allowed(node).witness_key
                assert key is not None
                signer = load_ed25519_private_key(self.site.nodes[node].witness_key)
                line = cosign(checkpoint, key, signer, unix_seconds=1_790_000_000).encode()
                await checkpoints.cosign(node, size=given.size, line=line)

        asyncio.run(gather())

    def events(self) -> list[str]:
        return [parse_leaf(each.leaf).event for each in self.store.log_entries(start=0, limit=99)]


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    site = make_site(tmp_path)
    create_wrapping_key(site.config.log_encryption_key)
    identity, federation = site.config.identity, site.config.federation
    config = tmp_path / "coordinator.toml"
    config.write_text(
        f"""
state_dir = "{site.config.state_dir}"
study = {{ public_images = "{tmp_path}" }}
holdout = {{ images = "{tmp_path}" }}
rounds = {{ quorum = 2 }}
[federation]
id = "{federation.id}"
study = "{federation.study}"
node_id = "{federation.node_id}"
allowlist = "{federation.allowlist}"
[identity]
tls_key = "{identity.tls_key}"
tls_certificate = "{identity.tls_certificate}"
participant_authority = "{identity.participant_authority}"
signing_key = "{identity.signing_key}"
log_key = "{identity.log_key}"
"""
    )
    store = SqlStore.connect(
        site.config.database_url,
        log_origin=log_origin(site.allowlist.federation),
        log_key=load_wrapping_key(site.config.log_encryption_key),
    )
    with closing(store):
        store.load()
        store.commit([], [an_entry("a", at=f"{OLD}-07T08:00:00.000Z"), an_entry("b")])
        yield Office(site, store, config)


def test_a_month_is_listed_and_dropped_under_the_hospitals_signatures(office: Office) -> None:
    shown = json.loads(office.run("months", "--json").stdout)
    assert [(each["month"], each["is_expired"]) for each in shown] == [
        (OLD, True),
        ("2026-11", False),
    ]
    refused = office.run("drop", OLD, "--reason", "over")
    assert refused.exit_code == EXIT_FAILED
    assert "quorum" in refused.stderr
    office.cosign()
    dropped = office.run("drop", OLD, "--reason", "over")
    assert (dropped.exit_code, dropped.stdout) == (
        0,
        f"{OLD} is dropped; entry 2 of the log says so.\n",
    )
    assert office.events() == ["b", "month_dropped"]
    assert OLD not in office.run("months").stdout


def test_a_key_is_erased(office: Office) -> None:
    assert office.run("erase", OLD, "--reason", "over").exit_code == 0
    assert office.store.log_entries(start=0, limit=1)[0].data is None
    assert "key erased" in office.run("months").stdout


def test_what_was_put_away_by_order_is_sound_and_what_is_missing_beside_it_is_not(
    office: Office,
) -> None:
    def verify(*arguments: str) -> Result:
        config = ("--coordinator-config", str(office.config))
        return CliRunner().invoke(app, ["audit", "verify", *config, *arguments])

    office.cosign()
    assert office.run("drop", OLD, "--reason", "over").exit_code == 0
    sound = verify("--json")
    assert sound.exit_code == 0, sound.output
    assert json.loads(sound.stdout)["tally"]["dropped"] == 1
    engine = create_database_engine(office.site.config.database_url)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM log_entries WHERE leaf_index = 1"))
    engine.dispose()
    found = verify()
    assert found.exit_code == 1, found.output
    assert "entry 1 is gone" in found.stderr
    # Which month was dropped, only the entry itself says.
    unread = verify("--sealed")
    assert (unread.exit_code, "--allow-unread-orders" in unread.stderr) == (2, True)
    allowed = verify("--sealed", "--allow-unread-orders")
    assert allowed.exit_code == 0
    assert "after" not in allowed.stdout
    assert "the orders to drop their months were not read" in " ".join(allowed.stdout.split())


@pytest.mark.hostile
@pytest.mark.parametrize("event", ["month_dropped", "month_key_erased"])
def test_a_leaf_that_is_called_an_order_and_opens_with_no_key_excuses_nothing(
    office: Office, event: str
) -> None:
    """What who has the writer's password appends, and a superuser then takes away."""
    engine = create_database_engine(office.site.config.database_url)
    origin = log_origin(office.site.allowlist.federation)
    with taking_turns(engine) as connection:
        for number, month in enumerate((OLD, "2026-11"), start=2):
            forged = seal(
                an_entry(event, at=f"{month}-28T08:00:00.000Z"),
                origin=origin,
                index=number,
                key=data_key(f"{month}.77", bytes(32)),
                random=bytes(RANDOM_BYTES),
            )
            logged = LoggedEntry(
                number,
                forged.leaf,
                forged.payload,
                None,
                forged.salt,
                Digest(leaf_hash(forged.leaf).hex()),
            )
            insert_sealed(connection, [an_entry(event, at=f"{month}-28T08:00:00.000Z")], [logged])

    def verify(*arguments: str) -> Result:
        config = ("--coordinator-config", str(office.config))
        return CliRunner().invoke(app, ["audit", "verify", *config, *arguments])

    found = verify()
    assert found.exit_code == 1, found.output
    assert f"entry 2 cannot be read: data key {OLD}.77" in found.stderr
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM log_entries WHERE leaf_index = 0"))
    engine.dispose()
    found = verify()
    assert found.exit_code == 1, found.output
    assert "entry 0 is gone" in found.stderr
    assert verify("--sealed").exit_code == 2


def test_a_month_that_was_put_away_after_fewer_years_than_hipaas_is_warned_of_ever_after(
    office: Office,
) -> None:
    whole = office.config.read_text()
    office.config.write_text(f'{whole}[log]\nretention_years = 1\ncompliance = "none"\n')
    assert office.run("erase", OLD, "--reason", "over").exit_code == 0
    office.config.write_text(whole)
    found = CliRunner().invoke(
        app, ["audit", "verify", "--coordinator-config", str(office.config), "--json"]
    )
    assert found.exit_code == 0, found.output
    told = f"put {OLD} away after 1 years, under compliance 'none': HIPAA asks for 6"
    assert any(told in each for each in json.loads(found.stdout)["warnings"])


def test_a_log_whose_key_was_erased_by_order_is_sound(office: Office) -> None:
    assert office.run("erase", OLD, "--reason", "over").exit_code == 0
    found = CliRunner().invoke(
        app, ["audit", "verify", "--coordinator-config", str(office.config), "--json"]
    )
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["opened"] == 2


def test_the_key_that_wraps_the_others_is_replaced(office: Office, tmp_path: Path) -> None:
    path = tmp_path / "new.key"
    create_key_file(path)
    done = office.run("rewrap", "--new-key", str(path), "--reason", "custodian left")
    assert done.exit_code == 0
    assert str(path) in done.stdout.replace("\n", "")
    assert office.run("months").exit_code == EXIT_WRONG_USE


def test_the_key_is_not_replaced_under_a_coordinator_that_is_running(
    office: Office, tmp_path: Path
) -> None:
    path = tmp_path / "new.key"
    create_key_file(path)
    before = office.events()
    with owned_folder(office.site.config.state_dir):
        refused = office.run("rewrap", "--new-key", str(path), "--reason", "custodian left")
    assert refused.exit_code == EXIT_WRONG_USE
    assert "is running; stop it first" in refused.stderr
    assert office.run("months").exit_code == 0
    assert office.events() == before


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["drop", "2026-13"], EXIT_WRONG_USE),
        (["drop", "2026-11"], EXIT_FAILED),
        (["erase", "2016-01"], EXIT_FAILED),
    ],
)
def test_what_may_not_be_put_away_is_refused_in_one_line(
    office: Office, arguments: list[str], status: int
) -> None:
    refused = office.run(*arguments, "--reason", "why not")
    assert refused.exit_code == status
    assert refused.stderr.startswith("matl: ")
    assert refused.stderr.count("\n") == 1
    assert office.events() == ["a", "b"]
