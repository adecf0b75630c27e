"""``matl backup`` and ``matl restore``, with a coordinator's own files, on both databases."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import asyncio
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from matl.cli import app
from matl.terminal import EXIT_FAILED, EXIT_WRONG_USE
from matl_common.durable import owned_folder
from matl_common.errors import ConfigurationError
from matl_common.identity.held_keys import load_p256_key
from matl_common.ids import Digest, NodeId, digest_of
from matl_coordinator.anchor_check import check_anchored
from matl_coordinator.backup_manifest import (
    MANIFEST,
    SUMS,
    encode_sums,
    open_manifest,
    parse_sums,
    sign_manifest,
)
from matl_coordinator.core.rounds import Phase
from matl_coordinator.last_backup import last_completed
from matl_coordinator.ports import State
from matl_coordinator.restore import refuse_unfinished
from tests.coordinator.harness import (
    NODES,
    Site,
    events_of,
    final_model,
    honest_update,
    make_site,
    next_round,
    play,
    running,
    seal,
    send,
    take_part,
    together,
)
from tests.postgres import fresh_database
from tests.sdk.test_audit_commands import LOG_KEY_FILE, config_file

ROOT = Path(__file__).parents[2]
LATE = NODES[2]


@dataclass(frozen=True)
class Machine:
    """A coordinator's machine, and a backup made while it ran, in the middle of round 2."""

    site: Site
    config: Path
    backup: Path

    @property
    def state(self) -> Path:
        return self.site.config.state_dir

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--config", str(self.config)])

    def restore(self, *arguments: str) -> Result:
        return self.run("restore", str(self.backup), *arguments)

    def lose_everything(self) -> None:
        """All that the coordinator has written, but for the key that is in no backup."""
        shutil.rmtree(self.state)
        self.state.mkdir()
        (self.state / "log-encryption.key").write_bytes(LOG_KEY_FILE)

    def content(self) -> dict[str, Digest]:
        """What is in the state folder, to see that nothing was written."""
        files = [path for path in sorted(self.state.rglob("*")) if path.is_file()]
        return {str(path): digest_of(path.read_bytes()) for path in files if path.name != "lock"}

    def elsewhere(self, folder: Path) -> "Machine":
        """The same with a copy of the backup, to be changed."""
        shutil.copytree(self.backup, folder)
        return replace(self, backup=folder)


async def half_a_study(site: Site, back_up: Callable[[], Result]) -> Result:
    """Round 1 whole, round 2 without one hospital, and a backup while it is open."""
    async with running(site) as coordinator:

        async def two_rounds(node: NodeId) -> None:
            for number in (0, 1):
                start = await next_round(coordinator, node, have_round=number)
                assert start is not None
                sealed = seal(site, node, start, coordinator.plan, honest_update(node, start))
                # One of them only begins to send its second update.
                chunks = 1 if (node, number) == (LATE, 1) else None
                await send(coordinator, node, sealed, chunks=chunks)

        await together(*map(two_rounds, NODES))
        return await asyncio.to_thread(back_up)


async def rest_of_the_study(site: Site) -> Digest:
    async with running(site) as coordinator:
        await play(coordinator)
        return await final_model(coordinator)


def a_site(folder: Path, url: str | None = None) -> Site:
    folder.mkdir(exist_ok=True)
    site = make_site(folder, study={"rounds": 3}, collect_seconds=3600.0)
    (site.config.state_dir / "log-encryption.key").write_bytes(LOG_KEY_FILE)
    if url is None:
        return site
    return replace(site, config=site.config.model_copy(update={"database": url}))


def made_machine(site: Site) -> Machine:
    machine = Machine(site, config_file(site), site.folder / "backup")
    made = asyncio.run(half_a_study(site, lambda: machine.run("backup", str(machine.backup))))
    assert made.exit_code == 0, made.output
    assert "entry" in made.stdout
    assert "key-encryption key" in made.stdout
    assert last_completed(machine.state) is not None
    assert events(site)[-1]["event"] == "backup_begun"
    return machine


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return made_machine(a_site(tmp_path_factory.mktemp("machine") / "site"))


@pytest.fixture
def machine(history: Machine) -> Iterator[Machine]:
    """The machine after everything on it was lost."""
    history.lose_everything()
    yield history
    history.lose_everything()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Digest:
    return asyncio.run(rest_of_the_study(a_site(tmp_path_factory.mktemp("whole") / "site")))


def events(site: Site) -> list[dict[str, object]]:
    store = site.connect_store()
    try:
        return events_of(store)
    finally:
        store.close()


def test_a_restored_study_ends_in_the_model_it_would_have_ended_in(
    machine: Machine, undisturbed: Digest
) -> None:
    done = machine.restore("--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["round"], told["phase"], told["behind"]) == (2, "collecting", 0)
    verified = CliRunner().invoke(
        app, ["audit", "verify", "--coordinator-config", str(machine.config), "--json"]
    )
    assert verified.exit_code == 0, verified.output
    assert json.loads(verified.stdout)["tally"]["size"] == told["log_size_now"]
    written = events(machine.site)
    assert [each["event"] for each in written[-3:]] == [
        "backup_begun",
        "backup_restored",
        "log_verified",
    ]
    assert written[-2]["root"] == told["log_root"]
    assert asyncio.run(rest_of_the_study(machine.site)) == undisturbed


def test_the_backup_holds_no_key_and_ordinary_tools_check_it(machine: Machine) -> None:
    names = {path.name for path in machine.backup.rglob("*")}
    assert not {name for name in names if name.endswith((".key", ".pem", ".crt"))}
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=machine.backup, check=False
    )
    assert checked.returncode == 0
    sums = parse_sums((machine.backup / SUMS).read_bytes())
    spooled = sorted(name for name in sums if name.startswith("spool/"))
    assert spooled == [f"spool/2/{node}.update" for node in NODES[:2]]


def test_a_dry_run_verifies_the_backup_and_writes_nothing(machine: Machine) -> None:
    before = machine.content()
    done = machine.restore("--dry-run")
    assert done.exit_code == 0, done.output
    assert "nothing was written" in done.stdout
    assert machine.content() == before


def cut(machine: Machine) -> None:
    path = max(machine.backup.glob("models/*"))
    path.write_bytes(path.read_bytes()[:-1])


def flip(machine: Machine) -> None:
    path = machine.backup / "database.sqlite"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose_a_part(machine: Machine) -> None:
    max(machine.backup.glob("spool/2/*")).unlink()


def add_a_part(machine: Machine) -> None:
    (machine.backup / "models" / "extra").write_bytes(b"x")


def lose_the_manifest(machine: Machine) -> None:
    (machine.backup / MANIFEST).unlink()


def change_the_list(machine: Machine) -> None:
    path = machine.backup / SUMS
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])


def sign_anew(machine: Machine, *, key: object = None, **changes: object) -> None:
    """As whoever holds the key could."""
    signer = load_p256_key(machine.site.config.identity.signing_key)
    path = machine.backup / MANIFEST
    manifest = open_manifest(path.read_bytes(), signer.public_key)
    changed = replace(manifest, **changes)  # type: ignore[arg-type] # tests replace any field
    path.write_bytes(sign_manifest(changed, key or signer))  # type: ignore[arg-type] # or a signer


def sign_with_another_key(machine: Machine) -> None:
    other = machine.site.signer(NODES[0])
    sign_anew(machine, key=other)


def be_of_another_study(machine: Machine) -> None:
    sign_anew(machine, study="dr-1999")


def be_newer(machine: Machine) -> None:
    sign_anew(machine, schema="9999", version="7.0.0")


def be_of_a_newer_format(machine: Machine) -> None:
    sign_anew(machine, format=2)


def be_under_another_key(machine: Machine) -> None:
    sign_anew(machine, encryption_key="0123456789abcdef")


def claim_another_root(machine: Machine) -> None:
    sign_anew(machine, log_root=digest_of(b"another"))


def change_the_log_and_sign_that(machine: Machine) -> None:
    """What somebody with the signing key and not the log's would do."""
    path = machine.backup / "database.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE log_entries SET leaf = X'78' WHERE leaf_index = 3")
        connection.commit()
    sums = parse_sums((machine.backup / SUMS).read_bytes())
    listed = encode_sums({**sums, "database.sqlite": digest_of(path.read_bytes())})
    (machine.backup / SUMS).write_bytes(listed)
    sign_anew(machine, sums=digest_of(listed))


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        (cut, EXIT_FAILED, "is not what was backed up"),
        (flip, EXIT_FAILED, "database.sqlite is not what was backed up"),
        (lose_a_part, EXIT_FAILED, "lacks spool/2/"),
        (add_a_part, EXIT_FAILED, "models/extra, which is no part"),
        (lose_the_manifest, EXIT_WRONG_USE, "is no backup: it has no manifest.json"),
        (change_the_list, EXIT_FAILED, "is not the list that the manifest was signed over"),
        (sign_with_another_key, EXIT_FAILED, "does not verify with key"),
        (be_of_another_study, EXIT_WRONG_USE, "dr-1999"),
        (be_newer, EXIT_WRONG_USE, "MATL 7.0.0 wrote this backup"),
        (be_of_a_newer_format, EXIT_FAILED, "the backup has format 2"),
        (be_under_another_key, EXIT_WRONG_USE, "key-encryption key 0123456789abcdef"),
        (claim_another_root, EXIT_FAILED, "its manifest says"),
        (change_the_log_and_sign_that, EXIT_FAILED, "entry 3"),
    ],
)
def test_a_backup_that_is_not_sound_is_refused_and_nothing_is_written(
    machine: Machine, tmp_path: Path, change: Callable[[Machine], None], status: int, says: str
) -> None:
    changed = machine.elsewhere(tmp_path / "copy")
    change(changed)
    before = machine.content()
    done = changed.restore()
    assert done.exit_code == status, done.output
    assert says in done.stderr
    assert machine.content() == before


def test_a_log_that_was_damaged_when_it_was_backed_up_is_restored_on_demand(
    machine: Machine, tmp_path: Path
) -> None:
    changed = machine.elsewhere(tmp_path / "copy")
    change_the_log_and_sign_that(changed)
    done = changed.restore("--damaged")
    assert done.exit_code == 0, done.output
    assert "damaged as it was backed up: " in done.stdout
    assert "entry 3" in done.stdout


def test_without_the_key_of_the_log_nothing_is_restored(machine: Machine) -> None:
    (machine.state / "log-encryption.key").unlink()
    done = machine.restore()
    assert done.exit_code == EXIT_WRONG_USE
    assert "which is in no backup; put it at" in done.stderr
    assert machine.content() == {}


def test_what_is_there_is_not_overwritten_and_put_aside_on_demand(machine: Machine) -> None:
    assert machine.restore().exit_code == 0
    before = machine.content()
    refused = machine.restore()
    assert refused.exit_code == EXIT_WRONG_USE
    assert "is there already" in refused.stderr
    assert machine.content() == before
    done = machine.restore("--replace", "--older")
    assert done.exit_code == 0, done.output
    (aside,) = machine.state.glob("replaced-*")
    kept = {path.name: digest_of(path.read_bytes()) for path in aside.glob("*.db")}
    assert set(kept.values()) <= set(before.values())
    assert kept
    assert (aside / "models").is_dir()


def test_a_coordinator_that_runs_is_not_restored_over(machine: Machine) -> None:
    with owned_folder(machine.state):
        done = machine.restore()
    assert done.exit_code == EXIT_WRONG_USE
    assert "is running; stop it first" in done.stderr


def later_checkpoint(machine: Machine, folder: Path) -> Path:
    """One that the coordinator signed after the backup, before everything else was lost.

    As hospitals keep it, and what may be left of the coordinator's own folder.
    """
    assert machine.restore().exit_code == 0

    async def sign_a_later_one() -> None:
        async with running(machine.site) as coordinator:
            await machine.site.checkpoints(coordinator.store).newest()

    asyncio.run(sign_a_later_one())
    later = folder / "log-checkpoint.txt"
    shutil.copy(machine.state / "log-checkpoint.txt", later)
    machine.lose_everything()
    return later


def test_a_backup_behind_a_signed_checkpoint_is_refused_unless_told_otherwise(
    machine: Machine, tmp_path: Path
) -> None:
    later = later_checkpoint(machine, tmp_path)
    refused = machine.restore("--checkpoint", str(later))
    assert refused.exit_code == EXIT_FAILED
    assert "hospitals that cosigned it will refuse a log that went back" in refused.stderr
    assert "--older" in refused.stderr
    shutil.copy(later, machine.state / "log-checkpoint.txt")
    before = machine.content()
    assert machine.restore().exit_code == EXIT_FAILED
    with owned_folder(machine.state):
        tried = machine.restore("--dry-run")
    assert tried.exit_code == 0, tried.output
    assert "entries that were signed are not in it" in tried.stdout
    assert machine.content() == before
    done = machine.restore("--older")
    assert done.exit_code == 0, done.output
    assert "entries that were signed are lost" in done.stdout
    assert events(machine.site)[-1]["behind"] > 0  # type: ignore[operator] # a number


def test_what_is_no_checkpoint_is_not_compared_with(machine: Machine) -> None:
    before = machine.content()
    done = machine.restore("--checkpoint", str(machine.config))
    assert done.exit_code == EXIT_WRONG_USE
    assert f"{machine.config} is no signed checkpoint" in done.stderr
    assert machine.content() == before


@pytest.mark.parametrize("name", ["log-checkpoint.txt", "log-checkpoint.first.txt"])
def test_the_log_of_an_older_backup_goes_on_whichever_daemon_signed_the_later_one(
    machine: Machine, tmp_path: Path, name: str
) -> None:
    later = later_checkpoint(machine, tmp_path)
    shutil.copy(later, machine.state / name)
    done = machine.restore("--older")
    assert done.exit_code == 0, done.output
    check_anchored(machine.site.config)
    shutil.copy(later, machine.state / name)
    done = machine.restore("--older", "--replace")
    assert done.exit_code == 0, done.output
    check_anchored(machine.site.config)
    kept = machine.state.glob(f"replaced-*/{name}")
    assert {path.read_bytes() for path in kept} == {later.read_bytes()}


_KILLED = """
import os, signal, sys
from pathlib import Path
from matl_coordinator.backup import write_backup
from matl_coordinator.config import load_config

def report(what, done, total):
    if what == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

write_backup(load_config(Path(sys.argv[1])), Path(sys.argv[2]), report=report)
"""
_FULL = """
import resource, sys
from pathlib import Path
from matl.cli import app

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
app(["backup", sys.argv[2], "--config", sys.argv[1]])
"""


def in_a_process(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.crash
@pytest.mark.parametrize("moment", ["database", "files"])
def test_a_killed_backup_leaves_nothing_that_passes_for_one(
    machine: Machine, tmp_path: Path, moment: str
) -> None:
    assert machine.restore().exit_code == 0
    out = tmp_path / "out"
    killed = in_a_process(_KILLED, machine.config, out, moment)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    (part,) = tmp_path.iterdir()
    refused = machine.run("restore", str(part), "--dry-run")
    assert "is no backup" in refused.stderr
    assert machine.run("backup", str(out)).exit_code == 0
    assert list(tmp_path.iterdir()) == [out]
    assert machine.run("restore", str(out), "--dry-run").exit_code == 0


@pytest.mark.parametrize("room", [20_000, 1_000_000])
def test_a_full_disk_ends_a_backup_in_words_and_leaves_nothing(
    machine: Machine, tmp_path: Path, room: int
) -> None:
    assert machine.restore().exit_code == 0
    out = tmp_path / "out"
    full = in_a_process(_FULL, machine.config, out, room)
    assert full.returncode == EXIT_FAILED, full.stderr
    assert "room" in full.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing_of_a_backup(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matl_coordinator.backup import write_backup
    from matl_coordinator.config import load_config

    assert machine.restore().exit_code == 0

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "files":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_backup(load_config(machine.config), tmp_path / "out", report=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_backup_is_never_written_over_another(machine: Machine) -> None:
    done = machine.run("backup", str(machine.backup))
    assert done.exit_code == EXIT_WRONG_USE
    assert "is there already" in done.stderr


def test_a_database_that_went_back_is_not_backed_up(machine: Machine, tmp_path: Path) -> None:
    assert machine.restore().exit_code == 0
    database = machine.state / "coordinator.db"
    earlier = tmp_path / "earlier.db"
    with closing(sqlite3.connect(database)) as now, closing(sqlite3.connect(earlier)) as copy:
        now.backup(copy)

    async def go_on() -> None:
        async with running(machine.site) as coordinator:
            await machine.site.checkpoints(coordinator.store).newest()

    asyncio.run(go_on())
    for left in machine.state.glob("coordinator.db*"):
        left.unlink()
    shutil.copy(earlier, database)
    done = machine.run("backup", str(tmp_path / "out"))
    assert done.exit_code == EXIT_FAILED
    assert "the database is older than that" in done.stderr
    assert not (tmp_path / "out").exists()
    assert events(machine.site)[-1]["event"] == "backup_restored"


def test_an_interrupted_restore_starts_no_coordinator_and_is_done_again(
    machine: Machine, undisturbed: Digest
) -> None:
    code = _KILLED_RESTORE
    for moment in ("files", "database"):
        killed = in_a_process(code, machine.config, machine.backup, moment)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        with pytest.raises(ConfigurationError, match="was interrupted; run 'matl restore' again"):
            refuse_unfinished(machine.state)
    done = machine.restore()
    assert done.exit_code == 0, done.output
    refuse_unfinished(machine.state)
    assert asyncio.run(rest_of_the_study(machine.site)) == undisturbed


def test_a_restore_killed_while_it_puts_aside_loses_nothing(machine: Machine) -> None:
    assert machine.restore().exit_code == 0
    (machine.state / "models" / "mine.txt").write_text("not in the backup")
    before = {path.name: digest_of(path.read_bytes()) for path in machine.state.glob("*.db")}
    for _ in range(2):
        killed = in_a_process(_KILLED_ASIDE, machine.config, machine.backup, "")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = machine.restore("--replace", "--older")
    assert done.exit_code == 0, done.output
    kept = [path for path in machine.state.glob("replaced-*/**/*") if path.is_file()]
    assert any(path.name == "mine.txt" for path in kept)
    assert before.items() <= {path.name: digest_of(path.read_bytes()) for path in kept}.items()
    refuse_unfinished(machine.state)


_KILLED_ASIDE = """
import os, shutil, signal, sys
from pathlib import Path
from matl_coordinator import restore
from matl_coordinator.backup_check import check_backup
from matl_coordinator.config import load_config

def move(path, to):
    os.rename(path, to)
    os.kill(os.getpid(), signal.SIGKILL)

restore.shutil.move = move
config = load_config(Path(sys.argv[1]))
checked = check_backup(config, Path(sys.argv[2]), report=lambda *_: None)
restore.restore(
    config, checked, verify=lambda _: None, older=True, replace=True, report=lambda *_: None
)
"""
_KILLED_RESTORE = """
import os, signal, sys
from pathlib import Path
from matl_coordinator.backup_check import check_backup
from matl_coordinator.config import load_config
from matl_coordinator.restore import restore

def report(what, done, total):
    if what == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

config = load_config(Path(sys.argv[1]))
checked = check_backup(config, Path(sys.argv[2]), report=lambda *_: None)
restore(config, checked, verify=lambda _: None, report=report)
"""


def test_without_its_spool_an_open_round_is_given_up_and_the_study_pauses(
    machine: Machine, tmp_path: Path
) -> None:
    assert machine.restore().exit_code == 0
    bare = replace(machine, backup=tmp_path / "bare")
    assert bare.run("backup", str(bare.backup), "--without-spool").exit_code == 0
    assert not (bare.backup / "spool").exists()
    bare.lose_everything()
    assert bare.restore().exit_code == 0

    async def go_on() -> State:
        async with running(bare.site) as coordinator:
            sending = asyncio.create_task(take_part(coordinator, LATE))
            while True:
                state = await coordinator.register.state()
                if state.study is not None and state.study.paused:
                    sending.cancel()
                    return state
                await asyncio.sleep(0.05)

    state = asyncio.run(go_on())
    assert state.round is not None
    assert state.round.phase is Phase.ABORTED


@pytest.mark.postgres
def test_a_study_on_postgresql_is_restored_into_another_database(
    tmp_path: Path, postgres_url: str, postgres_database: str, undisturbed: Digest
) -> None:
    machine = made_machine(a_site(tmp_path / "site", postgres_database))
    with fresh_database(postgres_url) as empty:
        machine.lose_everything()
        full = machine.restore()
        assert full.exit_code == EXIT_WRONG_USE
        assert "the database holds a study already" in full.stderr
        config = machine.site.config.model_copy(update={"database": empty})
        site = replace(machine.site, config=config)
        moved = Machine(site, config_file(site), machine.backup)
        done = moved.restore()
        assert done.exit_code == 0, done.output
        assert asyncio.run(rest_of_the_study(site)) == undisturbed


@pytest.mark.postgres
def test_a_study_moves_from_sqlite_to_postgresql_by_its_backup(
    machine: Machine, postgres_database: str, undisturbed: Digest
) -> None:
    config = machine.site.config.model_copy(update={"database": postgres_database})
    site = replace(machine.site, config=config)
    moved = replace(machine, site=site, config=config_file(site))
    try:
        done = moved.restore()
        assert done.exit_code == 0, done.output
        assert asyncio.run(rest_of_the_study(site)) == undisturbed
    finally:
        config_file(machine.site)
