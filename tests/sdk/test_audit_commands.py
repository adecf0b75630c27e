"""``matl audit``: a log is gone over whole, and whoever changed it is found out."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import Connection, text
from typer.testing import CliRunner, Result

from matl.cli import app
from matl.log.verification import opened_entries
from matl_common.durable import owned_folder
from matl_common.identity.keys import load_ed25519_private_key
from matl_common.identity.wrapping import create_key_file, load_key_file
from matl_common.ids import Digest, NodeId
from matl_common.tlog.checkpoint import verify_checkpoint
from matl_common.tlog.cosignature import cosign
from matl_common.tlog.disclosure import parse_disclosure
from matl_common.tlog.leaf import encode_leaf, parse_leaf
from matl_common.tlog.merkle import grow, Frontier, leaf_hash
from matl_common.tlog.names import log_origin
from matl_common.tlog.policy import encode_policy
from matl_common.tlog.proof import encode_proof, parse_proof
from matl_common.tlog.sealing import RANDOM_BYTES, data_key, seal
from matl_common.tlog.submission import Shown, encode_shown
from matl_coordinator.os_account import current_account
from matl_coordinator.ports import EntryDamage, LoggedEntry, Store
from matl_coordinator.store.database import create_database_engine
from matl_coordinator.store.log import insert_sealed, read_size
from matl_coordinator.store.reader import LogReader
from matl_coordinator.store.sql import SqlStore
from matl_coordinator.store.turns import taking_turns
from tests.coordinator.harness import OPERATOR, Site, make_site
from tests.logs import LOG, an_entry
from tests.postgres import free_port
from tests.system.federation import toml_text

HOSPITALS = {f"hospital_{letter}": 1000 for letter in "abcde"}
ENTRIES = 300
CHECKPOINTS = (100, 257, 290)


@dataclass
class Place:
    """A coordinator's machine whose log has some history."""

    site: Site
    config: Path
    url: str

    @property
    def anchor(self) -> Path:
        """Where the coordinator keeps the last checkpoint that it signed."""
        return self.site.config.state_dir / "log-checkpoint.txt"

    def restore(self) -> None:
        """Put back what was there before anything was done to it."""
        for path in (self.database, self.anchor):
            shutil.copyfile(path.with_suffix(".sound"), path)

    @property
    def database(self) -> Path:
        return Path(self.url.removeprefix("sqlite:///"))

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["audit", *arguments])

    def verify(self, *arguments: str) -> Result:
        return self.run("verify", "--coordinator-config", str(self.config), *arguments)

    def intrude(self, change: Callable[[Connection], None]) -> None:
        """Do something to the database that only its superuser can."""
        engine = sqlalchemy.create_engine(self.url)
        with engine.begin() as connection:
            change(connection)
        engine.dispose()


def config_file(site: Site) -> Path:
    """The site's configuration as a TOML file, with the log's key where its stores take it."""
    table = json.loads(site.config.model_dump_json(exclude_none=True, exclude_defaults=True))
    table["study"].pop("epsilon", None)
    path = site.folder / "coordinator.toml"
    path.write_text(toml_text(table))
    return path


async def make_history(site: Site, store: Store) -> None:
    store.load()
    checkpoints = site.checkpoints(store)
    for number in range(ENTRIES):
        store.commit([], [an_entry("happened", node="hospital_a", round=number, number=number)])
        if number + 1 in CHECKPOINTS:
            given = await checkpoints.newest()
            log_keys = checkpoints.policy.logs
            checkpoint = verify_checkpoint(given.note, log_keys).checkpoint
            for node in sorted(HOSPITALS)[:4]:
                key = site.allowed(NodeId(node)).witness_key
                assert key is not None
                signer = load_ed25519_private_key(site.nodes[NodeId(node)].witness_key)
                line = cosign(checkpoint, key, signer, unix_seconds=1_800_000_000).encode()
                await checkpoints.cosign(NodeId(node), size=number + 1, line=line)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Place:
    site = make_site(tmp_path_factory.mktemp("site"), sizes=HOSPITALS, byzantine=1)
    store = site.connect_store()
    asyncio.run(make_history(site, store))
    store.close()
    place = Place(site, config_file(site), site.config.database_url)
    for path in (place.database, place.anchor):
        shutil.copyfile(path, path.with_suffix(".sound"))
    return place


@pytest.fixture
def place(history: Place) -> Place:
    """A coordinator's machine before anything was done to it."""
    history.restore()
    (history.site.config.state_dir / "log-encryption.key").write_bytes(LOG_KEY_FILE)
    return history


# The key of tests.logs as a file holds it.
LOG_KEY_FILE = b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"


def test_a_sound_log_is_called_sound_and_says_what_nobody_vouches_for(place: Place) -> None:
    found = place.verify("--json")
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert report["tally"]["size"] == ENTRIES
    assert report["tally"]["checkpoints"] == len(CHECKPOINTS)
    assert (report["signed_size"], report["witnessed_size"]) == (290, 290)
    assert report["opened"] == ENTRIES
    assert any("entries 290 to 299" in each for each in report["warnings"])


def remade(connection: Connection) -> None:
    """Make the tree anew over the leaves as they are now, as a careful forger would."""
    rows = connection.execute(text("SELECT leaf FROM log_entries ORDER BY leaf_index")).all()
    _, runs = grow(Frontier(), [leaf_hash(row.leaf) for row in rows])
    connection.execute(text("DELETE FROM log_nodes"))
    for run in runs:
        for index, value in enumerate(run.hashes, start=run.first):
            connection.execute(
                text("INSERT INTO log_nodes (level, node_index, hash) VALUES (:l, :i, :h)"),
                {"l": run.level, "i": index, "h": value},
            )


def forged_leaf(connection: Connection, index: int) -> None:
    row = connection.execute(
        text("SELECT leaf FROM log_entries WHERE leaf_index = :i"), {"i": index}
    ).one()
    leaf = parse_leaf(row.leaf)
    changed = encode_leaf(
        type(leaf)(
            leaf.origin,
            leaf.index,
            leaf.at,
            "never_happened",
            leaf.node,
            leaf.round,
            leaf.plaintext,
            leaf.ciphertext,
            leaf.key,
        )
    )
    connection.execute(
        text("UPDATE log_entries SET leaf = :l WHERE leaf_index = :i"), {"l": changed, "i": index}
    )


def sql(statement: str) -> Callable[[Connection], None]:
    return lambda connection: connection.execute(text(statement))  # type: ignore[return-value]


def both(*changes: Callable[[Connection], None]) -> Callable[[Connection], None]:
    def change(connection: Connection) -> None:
        for each in changes:
            each(connection)

    return change


SWAP = (
    "UPDATE log_entries SET leaf_index = 1000 WHERE leaf_index = 12",
    "UPDATE log_entries SET leaf_index = 12 WHERE leaf_index = 34",
    "UPDATE log_entries SET leaf_index = 34 WHERE leaf_index = 1000",
)
CRIMES: dict[str, tuple[Callable[[Connection], None], str]] = {
    "a leaf is changed": (lambda c: forged_leaf(c, 123), "entry 123 was changed"),
    "a leaf's hash is changed": (
        sql("UPDATE log_nodes SET hash = zeroblob(32) WHERE level = 0 AND node_index = 45"),
        "entry 45 was changed",
    ),
    "an inner hash is changed": (
        sql("UPDATE log_nodes SET hash = zeroblob(32) WHERE level = 2 AND node_index = 3"),
        "over entries 12 to 15",
    ),
    "an inner hash is deleted": (
        sql("DELETE FROM log_nodes WHERE level = 3 AND node_index = 1"),
        "over entries 8 to 15",
    ),
    "a payload is changed": (
        sql("UPDATE log_entries SET payload = zeroblob(90) WHERE leaf_index = 7"),
        "payload of entry 7",
    ),
    "an entry's hash is deleted": (
        sql("DELETE FROM log_nodes WHERE level = 0 AND node_index = 5"),
        "that the tree does not know",
    ),
    "an entry is deleted with its hash": (
        both(
            sql("DELETE FROM log_entries WHERE leaf_index = 5"),
            sql("DELETE FROM log_nodes WHERE level = 0 AND node_index = 5"),
        ),
        "entry 5 is missing",
    ),
    "two entries change places": (both(*map(sql, SWAP)), "entry 12 was changed"),
    "an entry is deleted and its hash is left": (
        sql("DELETE FROM log_entries WHERE leaf_index = 5"),
        "entry 5 is gone",
    ),
    "an entry is filed under another month": (
        sql("UPDATE log_entries SET month = '2019-01' WHERE leaf_index = 9"),
        "entry 9 is filed under 2019-01",
    ),
    "a checkpoint is filed under another size": (
        sql("UPDATE log_checkpoints SET size = 258 WHERE size = 257"),
        "a checkpoint of 257 entries is filed under 258",
    ),
    "a month's data key is gone": (
        sql("UPDATE log_keys SET wrapped = NULL"),
        "entry 0 cannot be read",
    ),
    "a month's data key has another name": (
        sql("UPDATE log_keys SET name = name || '0'"),
        "entry 0 cannot be read",
    ),
    "an entry is put in beside another": (
        sql(
            "INSERT INTO log_entries SELECT leaf_index, '2099-01', leaf, payload "
            "FROM log_entries WHERE leaf_index = 9"
        ),
        "missing",
    ),
    "an entry is put in behind the last": (
        sql(
            "INSERT INTO log_entries SELECT 5000, month, leaf, payload "
            "FROM log_entries WHERE leaf_index = 9"
        ),
        "that the tree does not know",
    ),
    "a leaf is changed, and the whole tree made anew": (
        both(lambda c: forged_leaf(c, 123), remade),
        "entries 100 to 256",
    ),
    "two entries change places, and the whole tree is made anew": (
        both(*map(sql, SWAP), remade),
        "entry 12 is entry 34",
    ),
    "the end is cut off": (
        both(
            sql("DELETE FROM log_entries WHERE leaf_index >= 200"),
            remade,
        ),
        "its end was cut off",
    ),
    "a checkpoint is of another size": (
        sql(
            "UPDATE log_checkpoints SET note = CAST(replace(note, '257', '258') AS BLOB) "
            "WHERE size = 257"
        ),
        "does not verify",
    ),
    "a checkpoint is text": (
        sql("UPDATE log_checkpoints SET note = 'none' WHERE size = 257"),
        "text where bytes belong",
    ),
    "a leaf is text, and one before it is changed": (
        both(
            sql("UPDATE log_entries SET leaf = CAST(leaf AS TEXT) WHERE leaf_index = 50"),
            lambda c: forged_leaf(c, 45),
        ),
        "entry 45 was changed",
    ),
    "a payload is text": (
        sql("UPDATE log_entries SET payload = 'none' WHERE leaf_index = 50"),
        "entry 50 was changed: a table holds text",
    ),
    "a leaf's hash is text": (
        sql("UPDATE log_nodes SET hash = printf('%032d', 0) WHERE level = 0 AND node_index = 50"),
        "entry 50 was changed: a table holds text",
    ),
    "an inner hash is text": (
        sql("UPDATE log_nodes SET hash = printf('%032d', 0) WHERE level = 2 AND node_index = 3"),
        "over entries 12 to 15 was changed: a table holds text",
    ),
    "a month's data key is another month's": (
        sql("UPDATE log_keys SET wrapped = zeroblob(40)"),
        "does not unwrap",
    ),
}


@pytest.mark.hostile
@pytest.mark.parametrize("name", CRIMES)
def test_a_superusers_crime_is_detected_and_its_place_named(place: Place, name: str) -> None:
    crime, told = CRIMES[name]
    place.intrude(crime)
    found = place.verify()
    assert found.exit_code == 1, found.output
    assert told in found.stderr


@pytest.mark.hostile
def test_a_log_whose_checkpoints_were_deleted_as_well_is_caught_by_a_hospitals(
    place: Place, tmp_path: Path
) -> None:
    kept = tmp_path / "checkpoint-of-hospital-b"

    def forge(connection: Connection) -> None:
        note = connection.execute(
            text("SELECT note FROM log_checkpoints WHERE size = 257")
        ).scalar_one()
        kept.write_bytes(note)
        forged_leaf(connection, 123)
        remade(connection)
        connection.execute(text("DELETE FROM log_cosignatures"))
        connection.execute(text("DELETE FROM log_checkpoints"))

    place.intrude(forge)
    caught = place.verify("--sealed")
    assert (caught.exit_code, "entries 0 to 289" in caught.stderr) == (1, True)
    place.anchor.unlink()
    # Without the key that entries are encrypted under, which would give the forger away.
    alone = place.verify("--sealed", "--json")
    assert alone.exit_code == 0, alone.output
    assert any("entries 0 to 299" in each for each in json.loads(alone.stdout)["warnings"])
    caught = place.verify("--sealed", "--checkpoint", str(kept))
    assert caught.exit_code == 1
    assert "entries 0 to 256" in caught.stderr


def rolled_back(place: Place) -> int:
    """Sign a checkpoint over one more entry, and put the backup back; returns its size."""
    store = place.site.connect_store()
    store.load()
    store.commit([], [an_entry("today")])
    signed = asyncio.run(place.site.checkpoints(store).newest()).size
    store.close()
    shutil.copyfile(place.database.with_suffix(".sound"), place.database)
    return signed


@pytest.mark.hostile
def test_a_log_that_was_rolled_back_is_caught_by_its_coordinators_own_and_not_written_to(
    place: Place, tmp_path: Path
) -> None:
    signed = rolled_back(place)
    policy = tmp_path / "policy"
    store = place.site.connect_store()
    policy.write_bytes(encode_policy(place.site.checkpoints(store).policy))
    store.close()
    for options in ((), ("--policy", str(policy))):
        found = place.verify(*options)
        assert found.exit_code == 1, found.output
        assert f"it has signed a checkpoint of {signed}: its end was cut off" in found.stderr
        assert "On record: no, this run could not be logged" in found.stderr
    config = ("--coordinator-config", str(place.config))
    read = place.run("decrypt", "--from", "0", "--to", "0", "--reason", "court", *config)
    assert (read.exit_code, read.stdout) == (1, "")
    assert "the database is older than that" in read.stderr
    dropped = ("drop", "2019-01", "--reason", "over", "--config", str(place.config))
    assert "the database is older than that" in place.run("retention", *dropped).stderr
    assert json.loads(place.run("tail", "-n", "1", *config, "--json").stdout)["round"] == 299


@pytest.mark.hostile
def test_a_log_that_was_rolled_back_and_grew_again_is_not_written_to(place: Place) -> None:
    signed = rolled_back(place)
    store = place.site.connect_store()
    store.load()
    store.commit([], [an_entry("another today"), an_entry("and more")])
    store.close()
    found = place.verify()
    assert (found.exit_code, f"entries 290 to {signed - 1}" in found.stderr) == (1, True)
    assert "the log was rewritten" in found.stderr


def test_a_bundle_is_verified_elsewhere_with_nothing_but_public_keys(
    place: Place, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    config = ("--coordinator-config", str(place.config))
    assert place.run("export", str(bundle), *config).exit_code == 0
    found = place.run(
        "verify", "--bundle", str(bundle), "--policy", str(bundle / "matl/policy"), "--json"
    )
    assert found.exit_code == 0, found.output
    (line,) = found.stdout.splitlines()
    report = json.loads(line)
    assert (report["tally"]["size"], report["witnessed_size"], report["opened"]) == (290, 290, None)
    # A log that says itself who may sign it proves nothing.
    assert place.run("verify", "--bundle", str(bundle)).exit_code == 2
    # Exported again, it is the same to the byte, and no file is written.
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    written = {path: path.stat().st_ino for path in before}
    assert place.run("export", str(bundle), *config).exit_code == 0
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    assert {path: path.stat().st_ino for path in before} == written
    leaves = bundle / "tile/entries/000"
    leaves.write_bytes(leaves.read_bytes().replace(b"happened", b"hapqened", 1))
    caught = place.run("verify", "--bundle", str(bundle), "--policy", str(bundle / "matl/policy"))
    assert caught.exit_code == 1
    assert "entry 0 was changed" in caught.stderr


def test_a_bundle_without_some_of_its_entries_says_so(place: Place, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    config = ("--coordinator-config", str(place.config))
    assert place.run("export", str(bundle), *config).exit_code == 0
    (bundle / "tile/entries/000").unlink()
    policy = ("--policy", str(bundle / "matl/policy"))
    unread = place.run("verify", "--bundle", str(bundle), *policy)
    assert (unread.exit_code, "--allow-unread-orders" in unread.stderr) == (2, True)
    allowed = ("--allow-unread-orders", "--json")
    found = place.run("verify", "--bundle", str(bundle), *policy, *allowed)
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert report["tally"]["dropped"] == 256
    assert any("256 entries are not here, entry 0 first" in each for each in report["warnings"])


@pytest.mark.hostile
@pytest.mark.parametrize("content", [None, b"", bytes(32), b"\xff\xfe"])
def test_a_bundle_with_a_tile_that_its_leaves_do_not_give_is_damaged(
    place: Place, tmp_path: Path, content: bytes | None
) -> None:
    bundle = tmp_path / "bundle"
    config = ("--coordinator-config", str(place.config))
    assert place.run("export", str(bundle), *config).exit_code == 0
    tile = bundle / "tile/1/000.p/1"
    if content is None:
        tile.unlink()
    else:
        tile.write_bytes(content)
    found = place.run("verify", "--bundle", str(bundle), "--policy", str(bundle / "matl/policy"))
    assert (found.exit_code, found.stderr.count("\n")) == (1, 1), found.output


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b"[" * 100_000, b'{"leaf": "\\ud800"}']
)
def test_an_entry_that_is_none_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    entry = tmp_path / "0.entry.json"
    entry.write_bytes(content)
    found = CliRunner().invoke(app, ["audit", "check", str(entry), "x", "--policy", "x"])
    assert (found.exit_code, found.stderr.count("\n")) == (1, 1), found.output
    assert "is not an entry that" in found.stderr


def test_an_entry_is_proved_to_somebody_who_has_neither_log_nor_key(
    place: Place, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    config = ("--coordinator-config", str(place.config))
    assert place.run("export", str(bundle), *config).exit_code == 0
    unasked = place.run("prove", "42", "-o", str(tmp_path), *config)
    assert (unasked.exit_code, "say why" in unasked.stderr) == (2, True)
    proved = place.run("prove", "42", "-o", str(tmp_path), *config, "--reason", "a court")
    assert proved.exit_code == 0, proved.output
    entry, proof = tmp_path / "42.entry.json", tmp_path / "42.tlog-proof"
    policy = ("--policy", str(bundle / "matl/policy"))
    found = place.run("check", str(entry), str(proof), *policy, "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert (told["index"], told["entry"]["number"], told["quorum"]) == (42, 42, True)
    entry.write_text(entry.read_text().replace('number\\":42', 'number\\":43'))
    refused = place.run("check", str(entry), str(proof), *policy)
    assert refused.exit_code == 1
    assert "does not commit" in refused.stderr
    # After the hospitals left.
    store = place.site.connect_store()
    store.load()
    asyncio.run(place.site.checkpoints(store).newest())
    store.close()
    again = place.run("prove", "43", "-o", str(tmp_path), *config, "--reason", "a court")
    assert "a quorum of its witnesses has cosigned its checkpoint of 290" in again.stdout
    files = (str(tmp_path / "43.entry.json"), str(tmp_path / "43.tlog-proof"))
    assert place.run("check", *files, *policy).exit_code == 0
    alone = place.run("prove", "299", "-o", str(tmp_path), *config, "--reason", "a court")
    assert (alone.exit_code, "cosigned by nobody" in alone.stdout) == (0, True)
    insisting = place.run("prove", "298", "-o", str(tmp_path), *config, *policy, "--reason", "x")
    assert insisting.exit_code == 1
    assert not (tmp_path / "298.entry.json").exists()


def test_an_entry_is_not_proved_before_a_checkpoint(place: Place, tmp_path: Path) -> None:
    config = ("--coordinator-config", str(place.config))
    late = place.run("prove", "299", "-o", str(tmp_path), *config, "--reason", "x")
    assert late.exit_code == 2
    assert "not under it yet" in late.stderr


def test_from_the_database_only_leaves_are_shown_although_the_key_is_at_hand(place: Place) -> None:
    config = ("--coordinator-config", str(place.config))
    shown = json.loads(place.run("show", "3", *config, "--json").stdout)
    assert shown["entry"]["sealed"] is True
    assert (shown["leaf"]["node"], shown["leaf"]["round"]) == ("hospital_a", 3)
    assert "number" not in shown["entry"]
    tail = place.run("tail", "-n", "2", *config).stdout
    assert "round=299" in tail
    assert "round=297" not in tail
    assert "number" not in tail
    only = place.run("tail", *config, "--event", "nothing", "--json")
    assert only.stdout == ""
    assert place.run("show", "300", *config).exit_code == 2


@pytest.fixture
def unlocked(place: Place) -> Place:
    """A place whose key-encryption key is gone."""
    (place.site.config.state_dir / "log-encryption.key").unlink()
    return place


def test_without_the_key_everything_but_what_was_said_is_verified(unlocked: Place) -> None:
    found = unlocked.verify("--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["opened"] is None
    tail = unlocked.run("tail", "-n", "1", "--coordinator-config", str(unlocked.config), "--json")
    told = json.loads(tail.stdout)
    assert told["sealed"] is True
    assert "number" not in told


def junk(place: Place) -> int:
    """Put in, as whoever has the writer's password can, an entry under a data key's name."""
    engine = create_database_engine(place.url)
    with taking_turns(engine) as connection:
        index = read_size(connection)
        leaf = connection.execute(text("SELECT leaf FROM log_entries LIMIT 1")).scalar_one()
        written = an_entry("happened", number=index)
        sealed = seal(
            written,
            origin=parse_leaf(leaf).origin,
            index=index,
            key=data_key(parse_leaf(leaf).key, bytes(32)),
            random=bytes(RANDOM_BYTES),
        )
        hashed = Digest(leaf_hash(sealed.leaf).hex())
        logged = LoggedEntry(index, sealed.leaf, sealed.payload, None, None, hashed)
        insert_sealed(connection, [written], [logged])
    engine.dispose()
    return index


@pytest.mark.hostile
def test_an_entry_that_does_not_open_ends_neither_reading_nor_verifying(place: Place) -> None:
    index = junk(place)
    store = place.site.connect_store()
    store.load()
    store.commit([], [an_entry("later", number=number) for number in range(3)])
    store.close()
    window = ("--from", str(index - 2), "--to", str(index + 2))
    found = place.run(
        "decrypt", *window, "--reason", "outage", "--coordinator-config", str(place.config)
    )
    assert found.exit_code == 1
    shown = [json.loads(line) for line in found.stdout.splitlines()]
    assert [each.get("event") for each in shown] == ["happened", "happened", None, "later", "later"]
    assert shown[2] == {"index": index, "damaged": EntryDamage.CLOSED.value}
    assert f"entry {index} is damaged" in found.stderr
    alone = place.verify()
    assert alone.exit_code == 1
    assert f"leaf {index} does not open" in alone.stderr
    # What is wrong further on does not hide behind it.
    last = f"UPDATE log_entries SET payload = x'00' WHERE leaf_index = {index + 2}"
    place.intrude(sql(last))
    both = place.verify()
    assert both.exit_code == 1
    assert f"leaf {index} does not open" in both.stderr
    assert f"the payload of entry {index + 2} is not" in both.stderr
    tail = place.run("tail", "-n", "9", "--json", "--coordinator-config", str(place.config))
    assert tail.exit_code == 1
    damaged = [
        facts for line in tail.stdout.splitlines() if "damaged" in (facts := json.loads(line))
    ]
    assert [each["index"] for each in damaged] == [index + 2]


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("UPDATE log_nodes SET node_index = 'x' WHERE level = 0 AND node_index = 9", "node_index"),
        ("UPDATE log_nodes SET node_index = x'00' WHERE level = 1 AND node_index = 9", "node"),
        ("UPDATE log_keys SET name = x'00'", "column name of log_keys"),
        ("UPDATE log_keys SET wrapped = 1.5", "column wrapped of log_keys"),
        (
            "UPDATE log_entries SET month = CAST(x'ff' AS TEXT) WHERE leaf_index = 9",
            "text that is not UTF-8",
        ),
    ],
)
def test_a_column_that_holds_what_it_cannot_is_named(place: Place, change: str, told: str) -> None:
    place.intrude(sql(change))
    found = place.verify()
    assert found.exit_code == 1, found.output
    assert isinstance(found.exception, SystemExit)
    assert told in found.stderr


@pytest.mark.hostile
def test_entries_that_are_none_are_passed_over_for_a_replay(place: Place) -> None:
    index, told = junk(place), list[str]()
    place.intrude(sql("UPDATE log_entries SET leaf = x'00' WHERE leaf_index = 7"))
    engine = create_database_engine(place.url)
    reader = LogReader(engine)
    keys = reader.data_keys(load_key_file(place.site.config.state_dir / "log-encryption.key"))
    found = list(opened_entries(reader.pages(), keys, on_damage=told.append))
    engine.dispose()
    numbers = [each["number"] for each in found if each["event"] == "happened"]
    assert numbers == [*range(7), *range(8, ENTRIES)]
    assert [each.partition(":")[0] for each in told] == ["entry 7", f"entry {index}"]


def test_breaking_the_glass_shows_entries_and_is_logged_first(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which anybody may set.
    monkeypatch.setenv("LOGNAME", "somebody_else")
    config = ("--coordinator-config", str(place.config))
    found = place.run("decrypt", "--from", "3", "--to", "5", "--reason", "an inquiry", *config)
    assert found.exit_code == 0, found.output
    assert [json.loads(line)["number"] for line in found.stdout.splitlines()] == [3, 4, 5]
    again = ("--from", str(ENTRIES), "--to", str(ENTRIES), "--reason", "to see it logged")
    newest = json.loads(place.run("decrypt", *again, *config).stdout)
    assert (newest["event"], newest["reason"]) == ("entries_decrypted", "an inquiry")
    assert (newest["first"], newest["last"]) == (3, 5)
    assert newest["account"] == current_account()
    assert place.verify().exit_code == 0
    for wrong in (
        ("--from", "3", "--to", "9999", "--reason", "x"),
        ("--from", "5", "--to", "3", "--reason", "x"),
        ("--from", "3", "--to", "5", "--reason", " "),
    ):
        assert place.run("decrypt", *wrong, *config).exit_code == 2


def test_the_glass_is_not_broken_beside_a_running_coordinator(place: Place) -> None:
    with owned_folder(place.site.config.state_dir):
        found = place.run(
            *("decrypt", "--from", "3", "--to", "5", "--reason", "an inquiry"),
            *("--coordinator-config", str(place.config)),
        )
    assert found.exit_code == 2
    assert "in use by another daemon" in found.stderr
    assert found.stdout == ""


def test_a_run_of_verify_is_logged_with_its_account_and_result(place: Place) -> None:
    report = json.loads(place.verify("--json").stdout)
    assert report["recorded"] == ENTRIES
    place.intrude(lambda connection: forged_leaf(connection, 123))
    damaged = place.verify()
    assert (damaged.exit_code, f"entry {ENTRIES + 1} of the log" in damaged.stderr) == (1, True)
    config = ("--coordinator-config", str(place.config))
    span = ("--from", str(ENTRIES), "--to", str(ENTRIES + 1), "--reason", "to see")
    lines = place.run("decrypt", *span, *config).stdout.splitlines()
    sound, bad = map(json.loads, lines)
    assert (sound["event"], sound["account"], sound["result"], sound["entries"], sound["root"]) == (
        "log_verified",
        current_account(),
        "sound",
        ENTRIES,
        report["tally"]["root"],
    )
    assert (bad["event"], bad["result"]) == ("log_found_damaged", "damaged")
    assert (bad["first"], bad["last"]) == (123, 123)
    assert "root" not in bad
    # No path, and nothing of the error's text.
    assert set(bad) == {
        "v",
        "index",
        "at",
        "event",
        "account",
        "entries",
        "result",
        "first",
        "last",
    }


def test_a_run_that_cannot_be_logged_says_so_and_is_no_worse_for_it(unlocked: Place) -> None:
    report = json.loads(unlocked.verify("--json").stdout)
    assert report["recorded"] is None
    assert "could not be logged" in report["record"]
    assert "On record" in unlocked.verify().stdout


def test_a_database_that_may_only_be_read_is_verified_and_not_written_to(place: Place) -> None:
    # As a reader's role: nothing may be inserted.
    place.intrude(
        sql(
            "CREATE TRIGGER reader BEFORE INSERT ON log_nodes "
            "BEGIN SELECT RAISE(ABORT, 'permission denied'); END"
        )
    )
    found = place.verify("--json")
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert (report["recorded"], "could not be logged" in report["record"]) == (None, True)


def test_a_coordinator_that_runs_goes_on_after_somebody_verified_its_database(place: Place) -> None:
    key = LOG["log_key"]
    origin = log_origin(place.site.allowlist.federation)
    store = SqlStore.connect(place.url, log_origin=origin, log_key=key)
    store.load()
    assert place.verify().exit_code == 0
    (logged,) = store.commit([], [an_entry("goes_on")])
    assert logged.index == ENTRIES + 1
    store.close()
    assert place.verify().exit_code == 0


def drop(place: Place, first: int, last: int) -> None:
    place.intrude(sql(f"DELETE FROM log_entries WHERE leaf_index BETWEEN {first} AND {last}"))


def test_one_dropped_leaf_takes_no_other_out_of_a_bundle(place: Place, tmp_path: Path) -> None:
    drop(place, 5, 5)
    bundle = tmp_path / "bundle"
    config = ("--coordinator-config", str(place.config))
    assert place.run("export", str(bundle), *config).exit_code == 0
    policy = ("--policy", str(bundle / "matl/policy"))
    found = place.run("verify", "--bundle", str(bundle), *policy, "--allow-unread-orders", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["tally"]["dropped"] == 1
    shown = json.loads(place.run("show", "4", "--bundle", str(bundle), "--json").stdout)
    assert shown["leaf"]["round"] == 4
    leaves = bundle / "matl/leaves/0"
    sound = leaves.read_bytes()
    for damaged, told in (
        (sound.replace(b"happened", b"hapqened", 1), "entry 0 was changed"),
        (sound[:-1], "cut short"),
        (sound + bytes(4), "holds 257 parts"),
    ):
        leaves.write_bytes(damaged)
        caught = place.run("verify", "--bundle", str(bundle), *policy)
        assert (caught.exit_code, told in caught.stderr) == (1, True), caught.output
    leaves.write_bytes(sound)
    (bundle / "matl/payloads/0").unlink()
    caught = place.run("verify", "--bundle", str(bundle), *policy)
    assert (caught.exit_code, "lacks the payload of entry 0" in caught.stderr) == (1, True)


def test_what_was_dropped_since_the_last_export_leaves_the_folder_at_the_next(
    place: Place, tmp_path: Path
) -> None:
    bundle, alone = tmp_path / "bundle", tmp_path / "alone"
    config = ("--coordinator-config", str(place.config))
    assert place.run("export", str(bundle), *config).exit_code == 0
    # As an export of the log left it when it was shorter.
    smaller = bundle / "tile/entries/000.p/100"
    smaller.parent.mkdir()
    smaller.write_bytes((bundle / "tile/entries/000").read_bytes()[:1000])
    for first, last in ((0, 9), (10, 255), (256, 270), (271, 289)):
        drop(place, first, last)
        assert place.run("export", str(bundle), *config).exit_code == 0
        shutil.rmtree(alone, ignore_errors=True)
        assert place.run("export", str(alone), *config).exit_code == 0
        assert files_under(bundle) == files_under(alone)
    assert not any("entries" in name or "payloads" in name for name in files_under(bundle))


def files_under(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def hospitals_proof(place: Place, folder: Path, *, index: int = 42) -> Path:
    """A proof with its entry inside, as a hospital keeps it."""
    config = ("--coordinator-config", str(place.config))
    assert place.run("export", str(folder / "bundle"), *config).exit_code == 0
    proved = place.run("prove", str(index), "-o", str(folder), *config, "--reason", "a court")
    assert proved.exit_code == 0, proved.output
    entry = parse_disclosure((folder / f"{index}.entry.json").read_bytes())
    proof = parse_proof((folder / f"{index}.tlog-proof").read_bytes())
    shown = Shown(entry.leaf, proof.path, entry.salt, entry.entry)
    path = folder / "round-000001.tlog-proof"
    path.write_bytes(encode_proof(replace(proof, extra=encode_shown(shown))))
    return path


def test_a_hospitals_proof_is_checked_alone(place: Place, tmp_path: Path) -> None:
    path = hospitals_proof(place, tmp_path)
    policy = ("--policy", str(tmp_path / "bundle/matl/policy"))
    found = place.run("check", str(path), *policy, "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert (told["index"], told["entry"]["number"], told["quorum"]) == (42, 42, True)
    bare = place.run("check", str(tmp_path / "42.tlog-proof"), *policy)
    assert (bare.exit_code, "give the .entry.json file as well" in bare.stderr) == (1, True)
    moved = replace(parse_proof(path.read_bytes()), index=43)
    path.write_bytes(encode_proof(moved))
    assert place.run("check", str(path), *policy).exit_code == 1


STATUSES: list[tuple[int, str]] = [
    (0, "tail --coordinator-config {config}"),
    (2, "tail --coordinator-config {none}"),
    (0, "show 3 --coordinator-config {config}"),
    (2, "show 9999 --coordinator-config {config}"),
    (0, "show 3 --bundle {bundle}"),
    (2, "show 3 --bundle {none}"),
    (1, "show 3 --bundle {broken}"),
    (0, "verify --coordinator-config {config}"),
    (2, "verify --coordinator-config {config} --bundle {bundle}"),
    (2, "verify --coordinator-config {config} --checkpoint {none}"),
    (2, "verify --coordinator-config {config} --checkpoint {config}"),
    (0, "verify --bundle {bundle} --policy {policy}"),
    (1, "verify --bundle {broken} --policy {policy}"),
    (2, "verify --bundle {bundle}"),
    (2, "verify --bundle {bundle} --policy {none}"),
    (2, "verify --bundle {bundle} --policy {config}"),
    (2, "verify --bundle {bundle} --log-key {config}"),
    (2, "prove 3 --coordinator-config {config} -o {out}"),
    (2, "prove 299 --coordinator-config {config} -o {out} --reason x"),
    (2, "prove 3 --coordinator-config {config} -o {none} --reason x"),
    (0, "prove 3 --coordinator-config {config} -o {out} --reason x"),
    (0, "check {proof} --policy {policy}"),
    (1, "check {config} --policy {policy}"),
    (2, "check {none} --policy {policy}"),
    (2, "check {proof} --policy {none}"),
    (2, "check {proof} --policy {config}"),
    (2, "check {proof}"),
    (0, "export {out} --coordinator-config {config}"),
    (2, "export {file} --coordinator-config {config}"),
    (2, "export {out} --coordinator-config {none}"),
    (2, "replay 1 --coordinator-config {none}"),
    (2, "replay 9 --coordinator-config {config}"),
    (0, "decrypt --from 3 --to 5 --reason x --coordinator-config {config}"),
    (2, "decrypt --from 3 --to 5 --reason= --coordinator-config {config}"),
    (2, "decrypt --from 3 --to 9999 --reason x --coordinator-config {config}"),
    (0, "retention months -c {config}"),
    (1, "retention drop 2026-11 --reason x -c {config}"),
    (2, "retention drop 2026-11 --reason= -c {config}"),
    (2, "retention erase 2015-01 --reason= -c {config}"),
    (2, "retention rewrap --new-key {key} --reason= -c {config}"),
    (2, "evidence {none} --log-key {none}"),
]
REMOTE_STATUSES = ["tail", "show 3", "verify --log-key {key}", "prove 3 --log-key {key}"]


@pytest.fixture(scope="module")
def files(history: Place, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    history.restore()
    (history.site.config.state_dir / "log-encryption.key").write_bytes(LOG_KEY_FILE)
    proof = hospitals_proof(history, folder)
    broken = folder / "broken"
    shutil.copytree(folder / "bundle", broken)
    (broken / "tile/entries/000").write_bytes(b"\xff")
    (folder / "file").write_bytes(b"")
    create_key_file(folder / "new.key")
    return {
        "config": history.config,
        "bundle": folder / "bundle",
        "policy": folder / "bundle/matl/policy",
        "broken": broken,
        "proof": proof,
        "none": folder / "none" / "none",
        "file": folder / "file",
        "key": folder / "new.key",
    }


@pytest.mark.parametrize(("status", "command"), STATUSES)
def test_every_command_ends_with_the_status_that_its_help_promises(
    place: Place, files: dict[str, Path], tmp_path: Path, status: int, command: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    found = place.run(*command.format(**files, out=out).split())
    assert found.exit_code == status, found.output


@pytest.mark.parametrize("command", REMOTE_STATUSES)
def test_a_coordinator_that_is_not_there_is_no_verdict_on_its_log(
    place: Place, tmp_path: Path, command: str
) -> None:
    mine = place.site.nodes[OPERATOR]
    connection = {
        "address": f"127.0.0.1:{free_port()}",
        "coordinator": f"spiffe://{place.site.allowlist.federation}/coordinator/coordinator",
        "key": str(mine.tls.private_key),
        "certificate": str(mine.tls.certificate_chain),
        "authority": str(mine.tls.trusted_authority),
    }
    config = tmp_path / "operator.toml"
    config.write_text(toml_text({"operator": connection}))
    arguments = command.format(key=mine.log_verifier_key).split()
    found = CliRunner().invoke(app, ["-c", str(config), "audit", *arguments])
    assert found.exit_code == 2, found.output
    assert "cannot be reached" in found.stderr


@pytest.mark.parametrize(
    "command",
    ["tail", "show", "verify", "prove", "check", "export", "replay", "decrypt", "evidence"],
)
def test_every_command_says_what_its_exit_status_means(command: str) -> None:
    told = CliRunner().invoke(app, ["audit", command, "--help"]).stdout
    assert "Exit status" in told
    assert "0" in told.split("Exit status")[1]
