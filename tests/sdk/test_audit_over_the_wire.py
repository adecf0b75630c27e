"""``matl audit`` through a coordinator: an honest one with a dropped month, and ones that lie."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy

from matl_common.identity.keys import load_ed25519_private_key
from matl_common.tlog.checkpoint import verify_checkpoint
from matl_common.tlog.cosignature import cosign
from matl_common.tlog.leaf import parse_leaf
from matl_common.tlog.policy import encode_policy
from matl_common.wire import audit_pb2 as pb
from matl_coordinator.ports import LoggedEntry, Store
from matl_coordinator.upkeep import opened_retention
from tests.coordinator.harness import OPERATOR, Site, make_site
from tests.logs import an_entry
from tests.sdk.serving import Desk, ScriptedLog, scripted, serving
from tests.sdk.test_audit_commands import LOG_KEY_FILE, config_file

pytestmark = pytest.mark.certificates
OLD = "2015-03"


async def cosigned(site: Site, store: Store) -> bytes:
    """A checkpoint of the log as it is, with every hospital's cosignature."""
    checkpoints = site.checkpoints(store)
    given = await checkpoints.newest()
    checkpoint = verify_checkpoint(given.note, checkpoints.policy.logs).checkpoint
    for node in site.hospitals:
        key = site.allowed(node).witness_key
        assert key is not None
        signer = load_ed25519_private_key(site.nodes[node].witness_key)
        line = cosign(checkpoint, key, signer, unix_seconds=1_790_000_000).encode()
        given = await checkpoints.cosign(node, size=given.size, line=line)
    return given.note.encode()


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site of whose log the first months' leaves, in two bundles of 256, were dropped."""
    site = make_site(tmp_path_factory.mktemp("site"))
    (site.config.state_dir / "log-encryption.key").write_bytes(LOG_KEY_FILE)
    store = site.connect_store()
    store.load()
    store.commit([], [an_entry("old", at=f"{OLD}-07T08:00:00.000Z") for _ in range(300)])
    store.commit([], [an_entry("new", number=number) for number in range(300)])
    asyncio.run(cosigned(site, store))
    store.close()
    with opened_retention(site.config) as retention:
        retention.drop_month(OLD, reason="over")
    return site


@pytest.fixture
def desk(pruned: Site) -> Iterator[Desk]:
    with serving(pruned, pruned.connect_store()) as found:
        yield found


def test_a_log_of_which_a_month_was_dropped_is_verified_over_the_wire_and_that_is_logged(
    desk: Desk,
) -> None:
    unread = desk.run("verify", *desk.log_key, "--sealed")
    assert (unread.exit_code, "--allow-unread-orders" in unread.stderr) == (2, True)
    found = desk.run("verify", *desk.log_key, "--json")
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert (report["tally"]["dropped"], report["tally"]["first_gone"]) == (300, 0)
    shown = json.loads(desk.run("show", str(report["recorded"]), "--json").stdout)["entry"]
    assert (shown["event"], shown["operator"], shown["result"]) == (
        "log_verified",
        OPERATOR,
        "sound",
    )
    assert (shown["entries"], shown["root"]) == (report["tally"]["size"], report["tally"]["root"])
    dropped = json.loads(desk.run("show", "7", "--json").stdout)
    assert dropped["entry"] == {"index": 7, "dropped": True}
    assert len(dropped["leaf_hash"]) == 64
    # 600 entries in three answers are one entry of the log, and the rest one more at the end.
    tail = desk.run("tail", "--event", "log_read", "--json").stdout.splitlines()
    assert len(tail) == 1


def test_what_an_operator_read_is_summed_up_when_the_coordinator_stops(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    with serving(site, site.connect_store()) as desk:
        for index in ("0", "2", "1"):
            assert desk.run("show", index).exit_code == 0
        newest = desk.run("tail", "-n", "1", "--json")
        assert json.loads(newest.stdout)["event"] == "log_read"


def test_an_entry_beyond_the_end_is_no_verdict_on_the_log(desk: Desk) -> None:
    found = desk.run("show", "99999")
    assert found.exit_code == 2
    assert "there is no entry 99999" in found.stderr


def test_an_entry_that_was_dropped_is_not_proved(desk: Desk, tmp_path: Path) -> None:
    found = desk.run("prove", "7", "-o", str(tmp_path), *desk.log_key)
    assert found.exit_code == 2
    assert "does not have entry 7 any more" in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_same_log_is_verified_from_a_bundle_that_holds_what_is_left_of_a_dropped_month(
    pruned: Site, desk: Desk, tmp_path: Path
) -> None:
    config = config_file(pruned)
    bundle = tmp_path / "bundle"
    exported = desk.run("export", str(bundle), "--coordinator-config", str(config))
    assert exported.exit_code == 0, exported.output
    policy = ("--policy", str(bundle / "matl/policy"))
    unread = desk.run("verify", "--bundle", str(bundle), *policy)
    assert (unread.exit_code, "--allow-unread-orders" in unread.stderr) == (2, True)
    allowed = ("--allow-unread-orders", "--json")
    found = desk.run("verify", "--bundle", str(bundle), *policy, *allowed)
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert report["tally"]["dropped"] == 300
    assert report["recorded"] is None
    assert "a bundle cannot be written to" in report["record"]
    # The first 256 are gone. Of the next 256, 44 are; a C2SP bundle cannot have gaps.
    held = sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file())
    assert not any(name.startswith(("tile/entries/000", "tile/entries/001")) for name in held)
    assert "matl/leaves/0" not in held
    assert "matl/payloads/0" not in held
    shown = json.loads(desk.run("show", "300", "--bundle", str(bundle), "--json").stdout)
    assert shown["entry"]["event"] == "new"
    gone = json.loads(desk.run("show", "299", "--bundle", str(bundle), "--json").stdout)
    assert gone["entry"]["dropped"] is True


def blank(column: str, table: str = "log_entries", where: str = "leaf_index = 5") -> str:
    return f"UPDATE {table} SET {column} = zeroblob(32) WHERE {where}"


TAMPERING = {
    "a changed payload": (blank("payload"), "payload of entry 5 is not what its leaf commits to"),
    "a changed leaf": (blank("leaf"), "entry 5 was changed"),
    "a deleted row": ("DELETE FROM log_entries WHERE leaf_index = 5", "entry 5 is gone"),
    "a changed hash": (
        blank("hash", "log_nodes", "level = 0 AND node_index = 5"),
        "entry 5 was changed",
    ),
}


def changed_study(folder: Path, *statements: str) -> tuple[Site, Store]:
    """A site and store of 300 entries, its checkpoint signed, in whose database was written."""
    folder.mkdir(exist_ok=True)
    site = make_site(folder)
    (site.config.state_dir / "log-encryption.key").write_bytes(LOG_KEY_FILE)
    store = site.connect_store()
    store.load()
    store.commit([], [an_entry("happened", node="hospital_a", number=each) for each in range(20)])
    asyncio.run(cosigned(site, store))
    engine = sqlalchemy.create_engine(site.config.database_url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sqlalchemy.text(statement))
    engine.dispose()
    return site, store


@pytest.mark.hostile
@pytest.mark.parametrize("how", TAMPERING)
def test_a_database_that_was_changed_is_found_out_over_the_wire(how: str, tmp_path: Path) -> None:
    statement, told = TAMPERING[how]
    with serving(*changed_study(tmp_path, statement)) as desk:
        found = desk.run("verify", *desk.log_key)
        assert found.exit_code == 1, found.output
        assert told in found.stderr
        tail = desk.run("tail", "-n", "500", "--json")
        (shown,) = [
            facts for line in tail.stdout.splitlines() if (facts := json.loads(line))["index"] == 5
        ]
        # The others are shown all the same.
        assert json.loads(tail.stdout.splitlines()[6])["event"] == "happened"
        assert json.loads(tail.stdout.splitlines()[6])["number"] == 6
        proved = desk.run("prove", "5", "-o", str(tmp_path / "out"), *desk.log_key)
    if how == "a deleted row":
        # Whether it was dropped by order, only the whole log tells.
        assert (tail.exit_code, shown) == (0, {"index": 5, "dropped": True})
        assert proved.exit_code == 2
    else:
        assert tail.exit_code == 1
        assert "entry 5 is damaged" in tail.stderr
        assert "damaged" in shown
        assert proved.exit_code == 1, proved.output


@pytest.mark.hostile
def test_the_keys_of_entries_cannot_be_taken_away_unnoticed(tmp_path: Path) -> None:
    """Without an order that erased them."""
    study = changed_study(tmp_path, "UPDATE log_keys SET wrapped = NULL")
    with serving(*study) as desk:
        found = desk.run("verify", *desk.log_key)
        assert found.exit_code == 1, found.output
        assert "entry 0 cannot be read" in found.stderr
        # Leaves and tree are as they were.
        assert desk.run("verify", *desk.log_key, "--sealed").exit_code == 0


def test_after_the_hospitals_left_the_last_checkpoint_that_they_cosigned_is_what_counts(
    tmp_path: Path,
) -> None:
    site, store = changed_study(tmp_path / "site")
    policy = tmp_path / "policy"
    policy.write_bytes(encode_policy(site.checkpoints(store).policy))
    witnessed = store.log_head().size
    store.commit([], [an_entry("later")])
    with serving(site, store) as desk:
        insisting = ("--policy", str(policy))
        found = desk.run("verify", *insisting, "--json")
        assert found.exit_code == 0, found.output
        report = json.loads(found.stdout)
        assert report["witnessed_size"] == witnessed < report["signed_size"]
        for trust in (insisting, desk.log_key):
            proved = desk.run("prove", "3", "-o", str(tmp_path), *trust)
            assert proved.exit_code == 0, proved.output
            files = (str(tmp_path / "3.entry.json"), str(tmp_path / "3.tlog-proof"))
            assert desk.run("check", *files, *insisting).exit_code == 0
        late = str(witnessed)
        refused = desk.run("prove", late, "-o", str(tmp_path), *insisting)
        assert refused.exit_code == 1
        assert "lacks the quorum" in refused.stderr
        assert not (tmp_path / f"{late}.tlog-proof").exists()
        alone = desk.run("prove", late, "-o", str(tmp_path), *desk.log_key)
        assert alone.exit_code == 0, alone.output
        assert "cosigned by nobody" in alone.stdout


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Callable[..., ScriptedLog]]:
    """A site with a log of 300 entries, and who serves it: a class of ``ScriptedLog``."""
    site = make_site(tmp_path_factory.mktemp("site"))
    store = site.connect_store()
    store.load()
    entries = [an_entry("happened", node="hospital_a", number=each) for each in range(300)]
    store.commit([], entries)
    note = asyncio.run(cosigned(site, store))
    logged = store.log_entries(start=0, limit=300)

    def make(liar: type[ScriptedLog] = ScriptedLog) -> ScriptedLog:
        return liar(logged, note, store.log_node)

    return site, make


Honest = tuple[Site, Callable[..., ScriptedLog]]


def lying(method: str, lie: Callable[..., object]) -> type[ScriptedLog]:
    return type("Liar", (ScriptedLog,), {method: lie})


def page_of(lie: Callable[[ScriptedLog, int, int], list[pb.LogEntry]]) -> type[ScriptedLog]:
    return lying("page", lie)


def changed(index: int, **fields: object) -> type[ScriptedLog]:
    def lie(self: ScriptedLog, at: int) -> pb.LogEntry:
        found = ScriptedLog.entry(self, at)
        if at == index:
            for name, value in fields.items():
                setattr(found, name, value)
        return found

    return lying("entry", lie)


def exchanged(self: ScriptedLog, index: int) -> pb.LogEntry:
    """Another entry with its own leaf, under the number that was asked for."""
    found = ScriptedLog.entry(self, index - 1 if index == 299 else index)
    found.index = index
    return found


VERIFY, TAIL, SHOW = ("verify",), ("tail", "-n", "300"), ("show", "299")
READ_LIES: dict[str, tuple[type[ScriptedLog], str, tuple[tuple[str, ...], ...]]] = {
    "repeats one entry for ever": (
        page_of(lambda self, start, limit: [self.entry(5)] * limit),
        "sent entry 5 where",
        (VERIFY, TAIL, SHOW),
    ),
    "answers out of order": (
        page_of(lambda self, start, limit: ScriptedLog.page(self, start, limit)[::-1]),
        "where it was asked for entry 0",
        (VERIFY, TAIL),
    ),
    "sends fewer": (
        page_of(lambda self, start, limit: ScriptedLog.page(self, start, limit)[:-1]),
        "does not show its log",
        (VERIFY, TAIL, SHOW),
    ),
    "sends more": (
        page_of(lambda self, start, limit: [*ScriptedLog.page(self, start, limit), self.entry(0)]),
        "does not show its log",
        (VERIFY, TAIL, SHOW),
    ),
    "sends nothing": (
        page_of(lambda self, start, limit: []),
        "does not show its log",
        (VERIFY, TAIL, SHOW),
    ),
    "shows another entry": (
        lying("entry", exchanged),
        "entry 29",
        (VERIFY, TAIL, SHOW),
    ),
    "says something else than the leaf": (
        changed(299, entry=b'{"at":"2026-11-28T12:00:00.000Z","event":"never"}'),
        "says something else than its leaf",
        (TAIL, SHOW),
    ),
    "says something else than the leaf commits to": (
        changed(299, entry=b'{"at":"2026-11-28T12:00:00.000Z","event":"never"}'),
        "does not commit to this entry",
        (VERIFY,),
    ),
    "calls a sound entry damaged": (
        changed(299, damaged="its payload is not what its leaf commits to"),
        "entry 299 is damaged: its payload",
        (VERIFY, TAIL, SHOW),
    ),
    "discloses an entry of which it has no key": (
        changed(250, entry=b"", salt=b""),
        "entry 250 cannot be read",
        (VERIFY,),
    ),
    "tells no entry": (changed(299, entry=b"\xff"), "not JSON", (TAIL, SHOW)),
    "sends no leaf": (changed(299, leaf=b"nothing"), "leaf", (VERIFY, TAIL, SHOW)),
    "sends another hash": (
        changed(299, leaf_hash=bytes(32)),
        "not give the",
        (VERIFY, TAIL, SHOW),
    ),
    "sends an entry without its leaf": (
        changed(299, leaf=b""),
        "entry 299",
        (VERIFY, TAIL, SHOW),
    ),
    "calls an entry dropped with another hash": (
        changed(200, leaf_hash=bytes(32), leaf=b"", payload=b"", entry=b""),
        "entries 0 to 299 are not those",
        (VERIFY,),
    ),
    "calls an entry dropped with half a hash": (
        changed(299, leaf_hash=bytes(16), leaf=b"", payload=b"", entry=b""),
        "without its hash",
        (VERIFY, TAIL, SHOW),
    ),
    "exchanges a payload": (changed(299, payload=b"other"), "payload of entry 299", (VERIFY,)),
}


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("lie", "command"),
    [(lie, command) for lie, (_, _, commands) in READ_LIES.items() for command in commands],
)
def test_a_coordinator_that_lies_about_its_log_is_found_out(
    honest: Honest, lie: str, command: tuple[str, ...]
) -> None:
    site, make = honest
    liar, told, _ = READ_LIES[lie]
    servicer = make(liar)
    with scripted(site, servicer) as desk:
        found = desk.run(*command, *(desk.log_key if command == VERIFY else ()))
    assert found.exit_code == 1, found.output
    assert told in found.output
    # What was found is told to the coordinator for its log, without a word of the error.
    if command == VERIFY:
        assert [each.WhichOneof("result") for each in servicer.recorded] == ["damage"]


def proving(**fields: object) -> type[ScriptedLog]:
    def lie(self: ScriptedLog, index: int, size: int) -> pb.ProveInclusionResponse:
        found = ScriptedLog.inclusion(self, index, size)
        other = ScriptedLog.inclusion(self, index + 1, size)
        for name, value in fields.items():
            if name == "path":
                del found.path[:]
                found.path.extend(other.path)
            else:
                setattr(found, name, getattr(other, name) if value is None else value)
        return found

    return lying("inclusion", lie)


def unsigned(self: ScriptedLog, request: object, context: object) -> pb.GetCheckpointResponse:
    """A note of another size under the signature of this one."""
    return pb.GetCheckpointResponse(note=self.note.replace(b"\n300\n", b"\n299\n"))


PROOF_LIES: dict[str, tuple[type[ScriptedLog], str]] = {
    "another entry's path": (proving(path=None), "does not show leaf 42"),
    "another entry's leaf": (proving(leaf=None), "does not show leaf 42"),
    "another entry, proved": (
        lying("inclusion", lambda self, i, size: ScriptedLog.inclusion(self, i + 1, size)),
        "does not show leaf 42",
    ),
    "another salt": (proving(salt=None), "does not commit"),
    "another entry": (proving(entry=None), "does not commit"),
    "no leaf": (proving(leaf=b"nothing"), "leaf"),
    "a note that the log did not sign": (lying("GetCheckpoint", unsigned), "signature"),
    "no note": (
        lying("GetCheckpoint", lambda *_: pb.GetCheckpointResponse(note=b"nothing")),
        "note",
    ),
}


@pytest.mark.hostile
@pytest.mark.parametrize("lie", PROOF_LIES)
def test_a_proof_that_proves_nothing_is_not_written(
    honest: Honest, lie: str, tmp_path: Path
) -> None:
    site, make = honest
    liar, told = PROOF_LIES[lie]
    with scripted(site, make(liar)) as desk:
        found = desk.run("prove", "42", "-o", str(tmp_path), *desk.log_key)
    assert found.exit_code == 1, found.output
    assert told in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_proof_with_a_policy_waits_for_its_quorum(honest: Honest, tmp_path: Path) -> None:
    site, make = honest
    policy = tmp_path / "policy"
    store = site.connect_store()
    policy.write_bytes(encode_policy(site.checkpoints(store).policy))
    store.close()
    servicer = make()
    arguments = ("prove", "42", "-o", str(tmp_path / "out"), "--policy", str(policy))
    (tmp_path / "out").mkdir()
    with scripted(site, servicer) as desk:
        assert desk.run(*arguments).exit_code == 0
        entry, proof = tmp_path / "out/42.entry.json", tmp_path / "out/42.tlog-proof"
        assert desk.run("check", str(entry), str(proof), "--policy", str(policy)).exit_code == 0
        entry.unlink()
        # The log's own signature alone.
        text, _, lines = servicer.note.partition(b"\n\n")
        servicer.note = text + b"\n\n" + lines.splitlines(keepends=True)[0]
        early = desk.run(*arguments)
    assert early.exit_code == 1
    assert "lacks the quorum" in early.stderr
    assert not entry.exists()


def test_the_last_entries_that_fit_are_found_however_far_back_they_lie(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path)
    store = site.connect_store()
    store.load()
    store.commit([], [an_entry("rare", node=f"hospital_{each}") for each in "abca"])
    store.commit([], [an_entry("common", number=number) for number in range(1200)])
    logged: tuple[LoggedEntry, ...] = store.log_entries(start=0, limit=2000)
    served = ScriptedLog(logged, b"", store.log_node)
    with scripted(site, served) as desk:

        def tail(*arguments: str) -> list[int]:
            found = desk.run("tail", *arguments, "--json")
            assert found.exit_code == 0, found.output
            return [json.loads(line)["index"] for line in found.stdout.splitlines()]

        assert tail("-n", "3", "--event", "rare") == [1, 2, 3]
        assert tail("-n", "3", "--event", "rare", "--node", "hospital_a") == [0, 3]
        assert tail("-n", "2") == [1202, 1203]
        assert tail("--event", "never") == []
    assert parse_leaf(logged[0].leaf).event == "rare"
    store.close()
