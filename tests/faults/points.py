"""Fault points: every durable write of a process, named, and what shall go wrong there.

``install`` stands between a program and the operations by which it makes something last:
``fsync``, renames, removals, writes of a ledger's or an update's bytes, commits of SQLite. The
program does not know. Names leave out what differs from run to run, so that a driver can count
where a process has already died, whoever carries on.
"""

import errno
import json
import os
import re
import signal
import sqlite3
import stat
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.default import DefaultDialect

from tests.faults.power import DurableImage

T = TypeVar("T")
SETTLED = re.compile(r"(?P<digest>\b[0-9a-f]{64}\b)|(?P<study>\b[0-9a-f]{16}\b)")
ROUND = re.compile(r"(?<=spool/)\d+|(?<=round-)\d{6}|(?<=released/)\d{4}")
TEMPORARY = re.compile(r"\.[^/]*\.tmp$")
SCRATCH = re.compile(r"/scratch-[0-9a-f]{16}(/.*)?$")
"""Files that are worthless after a kill, one like the other."""
WRITTEN = re.compile(r"\s*(INSERT INTO|UPDATE|DELETE FROM)\s+(\w+)")


class Mode(StrEnum):
    """What happens at a fault point."""

    KILL_BEFORE = "killed before"
    """SIGKILL; of a plain write the first half was done."""
    KILL_AFTER = "killed after"
    """Done, and the process never hears of it."""
    POWER_CUT = "power cut"
    """SIGKILL, and everything that was not flushed by then is lost."""
    FAIL_BEFORE = "failed"
    """The operation reports an I/O error and was not done."""
    FAIL_AFTER = "failed though done"
    DISK_FULL = "disk full"
    """The operation finds no room; of a plain write the first half fits."""

    @property
    def kills(self) -> bool:
        return self in (Mode.KILL_BEFORE, Mode.KILL_AFTER, Mode.POWER_CUT)

    @property
    def is_done(self) -> bool:
        return self in (Mode.KILL_AFTER, Mode.FAIL_AFTER)


@dataclass(frozen=True, slots=True)
class Plan:
    """What one process, in all its lives, shall suffer."""

    root: str
    """Its state folder; nothing outside is a fault point."""
    mode: str
    visited: str
    """A file with the name of every fault that struck, a line each."""
    limit: int = 1
    """How often a fault strikes at points of one name."""
    only: str = ""
    """A regular expression that a point's name must contain."""
    python: str = ""
    """What the process shall start its workers with, if not its own Python."""

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @property
    def image(self) -> Path:
        """Where a process that loses its power leaves what the disk still has."""
        return Path(f"{self.visited}.disk")


def visited(plan: Plan) -> list[str]:
    """Where faults struck, in order."""
    path = Path(plan.visited)
    return path.read_text().splitlines() if path.exists() else []


class Points:
    """The fault points of this process."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._mode = Mode(plan.mode)
        self._root = Path(plan.root)
        self._struck = Counter(visited(plan))
        self._only = re.compile(plan.only)
        # Guards everything here, and lets one thread die at a time.
        self._lock = threading.RLock()
        self._kernel = {name: getattr(os, name) for name in _PATCHED}
        self.image: DurableImage | None = None
        if self._mode is Mode.POWER_CUT:
            self.image = DurableImage(self._root)
        self._tables: dict[int, dict[str, None]] = {}
        self._committing = threading.local()

    def reach(self, name: str, perform: Callable[[], T], *, half: Callable[[], object]) -> T:
        """Do an operation, unless a fault strikes."""
        with self._lock:
            if self._struck[name] >= self._plan.limit or not self._only.search(name):
                return perform()
            self._struck[name] += 1
            if self._mode.is_done:
                perform()
            else:
                half()
            self._note(name)
            if self._mode.kills:
                if self.image is not None:
                    self.image.save(self._plan.image)
                os.kill(os.getpid(), signal.SIGKILL)
            code = errno.ENOSPC if self._mode is Mode.DISK_FULL else errno.EIO
            raise OSError(code, os.strerror(code))

    def name_of(self, target: "str | os.PathLike[str] | int", dir_fd: int | None = None) -> str:
        """A path below the root as a name, or nothing."""
        if isinstance(target, int):
            path = Path(os.readlink(f"/proc/self/fd/{target}"))
        elif dir_fd is not None:
            path = Path(os.readlink(f"/proc/self/fd/{dir_fd}")) / os.fspath(target)
        else:
            path = Path(os.path.abspath(target))
        if path != self._root and self._root not in path.parents:
            return ""
        if path.name == "lock":
            return ""
        text = str(path.relative_to(self._root.parent)).removesuffix(" (deleted)")
        text = SCRATCH.sub("/<scratch>", TEMPORARY.sub("<temporary>", text))
        text = ROUND.sub("<round>", text)
        return SETTLED.sub(lambda found: f"<{found.lastgroup}>", text)

    def _note(self, name: str) -> None:
        descriptor = os.open(self._plan.visited, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._kernel["write"](descriptor, f"{name}\n".encode())
        os.close(descriptor)

    # The operations.

    def fsync(self, descriptor: int) -> None:
        name = self.name_of(descriptor)
        flush = self._kernel["fsync"]
        if not name:
            flush(descriptor)
            return

        def perform() -> None:
            flush(descriptor)
            if self.image is not None:
                self.image.flushed(descriptor)

        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        self.reach(f"sync {'folder ' if is_folder else ''}{name}", perform, half=lambda: None)

    def write(self, descriptor: int, data: "bytes | memoryview") -> int:
        written: int = self._written("write", descriptor, data)
        return written

    def pwrite(self, descriptor: int, data: "bytes | memoryview", offset: int) -> int:
        written: int = self._written("pwrite", descriptor, data, offset)
        return written

    def _written(self, call: str, descriptor: int, data: Any, *where: int) -> Any:
        kernel = self._kernel[call]
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not (name := self.name_of(descriptor)):
            return kernel(descriptor, data, *where)
        entry = _ledger_entry(data) if name.endswith(".jsonl") else ""
        return self.reach(
            f"write {name}{entry}",
            lambda: kernel(descriptor, data, *where),
            half=lambda: kernel(descriptor, data[: len(data) // 2], *where),
        )

    def rename(self, source: Any, target: Any, **folders: Any) -> None:
        self._named("rename to", "rename", target, source, target, **folders)

    def replace(self, source: Any, target: Any, **folders: Any) -> None:
        self._named("rename to", "replace", target, source, target, **folders)

    def link(self, source: Any, target: Any, **folders: Any) -> None:
        self._named("link", "link", target, source, target, **folders)

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._named("remove", "unlink", path, path, dir_fd=dir_fd)

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._named("remove", "rmdir", path, path, dir_fd=dir_fd)

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if dir_fd is None and os.path.isdir(path):
            self._kernel["mkdir"](path, mode)
        self._named("make", "mkdir", path, path, mode, dir_fd=dir_fd)

    def _named(self, verb: str, call: str, at: Any, *args: Any, **folders: Any) -> None:
        kernel = self._kernel[call]
        name = self.name_of(at, folders.get("dir_fd"))
        if not name:
            kernel(*args, **folders)
            return
        self.reach(f"{verb} {name}", lambda: kernel(*args, **folders), half=lambda: None)

    # SQLite, whose own system calls are out of sight: a commit is one step.

    def statement(
        self,
        connection: Connection,
        _: object,
        text: str,
        __: object,
        context: Any,
        ___: bool,  # noqa: FBT001 - as SQLAlchemy calls it
    ) -> None:
        if found := WRITTEN.match(text):
            values = context.compiled_parameters[0] if context and context.compiled else {}
            facts = [str(values[key]) for key in ("phase", "status") if key in values]
            table = f"{found[2]}[{facts[0]}]" if facts else found[2]
            self._tables.setdefault(id(connection), {})[table] = None

    def begin_commit(self, connection: Connection) -> None:
        self._committing.tables = self._tables.pop(id(connection), {})

    def rolled_back(self, connection: Connection) -> None:
        self._tables.pop(id(connection), None)

    def commit(self, dialect: DefaultDialect, connection: Any) -> None:
        tables, self._committing.tables = getattr(self._committing, "tables", {}), {}

        def perform() -> None:
            _DO_COMMIT(dialect, connection)
            if self.image is not None and tables:
                # FULL synchronisation: a commit that returned is on the disk.
                for path in self._root.glob("coordinator.db*"):
                    if not path.name.endswith("-shm"):
                        self.image.flushed_file(path)

        if not tables or self._root.name != "coordinator":
            perform()
            return
        try:
            self.reach(f"commit {' + '.join(tables)}", perform, half=lambda: None)
        except OSError as error:
            full = error.errno == errno.ENOSPC
            text = "database or disk is full" if full else "disk I/O error"
            raise sqlite3.OperationalError(text) from None


_DO_COMMIT: Callable[[DefaultDialect, Any], None] = DefaultDialect.do_commit
_PATCHED = ("fsync", "write", "pwrite", "rename", "replace", "link", "unlink", "rmdir", "mkdir")


def install(plan: Plan) -> None:
    """Make this process suffer what is planned, from now on."""
    points = Points(plan)
    for name in _PATCHED:
        setattr(os, name, getattr(points, name))
    os.remove = points.unlink
    event.listen(Engine, "before_cursor_execute", points.statement)
    event.listen(Engine, "commit", points.begin_commit)
    event.listen(Engine, "rollback", points.rolled_back)

    def do_commit(dialect: DefaultDialect, connection: Any) -> None:
        points.commit(dialect, connection)

    DefaultDialect.do_commit = do_commit  # type: ignore[method-assign]  # that is the point


def _ledger_entry(line: "bytes | memoryview") -> str:
    """Of which kind an entry of a privacy ledger is."""
    found = re.search(rb'"kind":"([\w-]+)"', bytes(line))
    return f" ({found[1].decode()})" if found else ""
