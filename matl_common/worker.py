"""A worker process and the two ends of its pipe: requests in, progress and results out.

A daemon owns a ``WorkerProcess``; the program it runs calls ``serve``. One line of
JSON is one message, file paths travel instead of tensors, and nothing is unpickled:

    daemon → worker   {"request": {…}}
    worker → daemon   {"progress": {…}}                       any number of times
    worker → daemon   {"result": {…}}                         once, or
                      {"error": {"type": "…", "message": "…"}}

Whatever the worker does (crash, hang, flood, eat memory) costs one request: the error
says what happened, its whole process group is gone, and the next request starts
afresh. This module never imports what a worker computes with.
"""

import asyncio
import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from matl_common.durable import lacks_room
from matl_common.errors import MatlError
from matl_common.identity.pkcs11.uri import PIN_VARIABLE

Message = dict[str, Any]
ReportProgress = Callable[[Message], None]

MAX_LINE_BYTES = 1 << 20
MAX_STDERR_LINES_PER_REQUEST = 200
MAX_STDERR_LINE_CHARACTERS = 500
_MEMORY_POLL_SECONDS = 0.1
_GRACE_SECONDS = 5.0
_CLOSED = "closed its output"
NO_ROOM = "NoRoom"
"""Told in place of an exception's type where a disk is full."""
# A thread that waits for another gives up its core instead of spinning. Where a coordinator
# and a hospital share a machine, spinning makes both slower by an order of magnitude.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}

# Runs before the worker's own program, in the same process. The kernel kills the worker
# when its daemon dies, and prefers it over the daemon when memory runs out. Done here and
# not in a ``preexec_fn``, which may deadlock in a process with the threads of gRPC.
_TRAMPOLINE = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that started this one died meanwhile")
try:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
except OSError:
    pass
os.execvp(sys.argv[2], sys.argv[2:])
"""


class WorkerError(MatlError):
    """A worker did not deliver a result; the next request gets a fresh process."""


class WorkerCrashedError(WorkerError):
    """The process ended, or wrote something that is not the protocol."""


class WorkerTimedOutError(WorkerError):
    """The process was killed because the request took too long."""


class WorkerOutOfMemoryError(WorkerError):
    """The process was killed because it exceeded its memory limit."""


class WorkerFailedError(WorkerError):
    """The worker's own code raised; the process is still usable."""

    def __init__(self, remote_type: str, message: str) -> None:
        """Keep the name of the remote exception, so that a caller can tell causes apart."""
        super().__init__(f"the worker failed with {remote_type}: {message}")
        self.remote_type = remote_type
        self.remote_message = message


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """How long a worker is kept and how much memory it may use."""

    idle_seconds: float = 60.0
    """Kept warm this long after a request; 0 ends it at once."""
    memory_bytes: int | None = None
    """Resident memory of the worker and its children together; ``None``: not watched."""


def log_stderr(line: str) -> None:
    """Log one line of a worker's standard error as one event."""
    structlog.get_logger("matl.worker").warning("worker.stderr", line=line)


class WorkerProcess:
    """Runs one program on demand and speaks with it, one request at a time.

    Linux only: process groups, ``/proc`` and parent-death signals. Use ``close`` or
    ``async with`` to end it.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        limits: WorkerLimits | None = None,
        environment: Mapping[str, str] | None = None,
        on_stderr: Callable[[str], None] = log_stderr,
    ) -> None:
        """Remember what to run; nothing is started before the first request.

        Args:
            argv: the program, for example ``(sys.executable, "-m", "package.worker")``.
            limits: lifetime and memory.
            environment: added to this process's own environment.
            on_stderr: receives the worker's standard error, line by line, bounded.
        """
        self._argv = tuple(argv)
        self._limits = limits or WorkerLimits()
        self._environment = dict(environment or {})
        self._on_stderr = on_stderr
        # Guards everything below: one request, one process.
        self._lock = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: asyncio.Task[None] | None = None
        self._stderr_lines_left = 0
        self._idle: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while a worker is alive."""
        process = self._process
        return process.pid if process and process.returncode is None else None

    async def run(
        self, request: Message, *, timeout_seconds: float, on_progress: ReportProgress | None = None
    ) -> Message:
        """Send one request and return its result.

        Args:
            request: JSON values only.
            timeout_seconds: for the whole request, start-up of the process included.
            on_progress: called with each progress message, on the event loop.

        Raises:
            WorkerError: one of its four leaves; the request may be sent again.
        """
        async with self._lock:
            self._cancel_idle_timer()
            try:
                return await self._run_watched(
                    request, timeout_seconds=timeout_seconds, on_progress=on_progress
                )
            except WorkerFailedError:
                raise
            except BaseException:
                # Cancelled requests too: an answer to nobody must not meet the next request.
                await self._kill()
                raise
            finally:
                await self._start_idle_timer()

    async def close(self) -> None:
        """End the process, if there is one."""
        async with self._lock:
            self._cancel_idle_timer()
            await self._kill()

    async def __aenter__(self) -> "WorkerProcess":
        """Nothing to open: the first request starts the process."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the process."""
        await self.close()

    async def _run_watched(
        self, request: Message, *, timeout_seconds: float, on_progress: ReportProgress | None
    ) -> Message:
        exchange = asyncio.create_task(self._exchange(request, on_progress))
        watch = asyncio.create_task(self._watch_memory())
        try:
            done, _ = await asyncio.wait(
                {exchange, watch}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if exchange in done:
                return exchange.result()
            if watch in done:
                raise watch.result()
            raise WorkerTimedOutError(
                f"the worker was killed after {timeout_seconds:g} seconds; raise its time limit or "
                "give it less to do"
            )
        finally:
            for task in (exchange, watch):
                task.cancel()
            await asyncio.gather(exchange, watch, return_exceptions=True)

    async def _exchange(self, request: Message, on_progress: ReportProgress | None) -> Message:
        process = await self._started()
        assert process.stdin is not None
        self._stderr_lines_left = MAX_STDERR_LINES_PER_REQUEST
        line = json.dumps({"request": request}, allow_nan=False).encode() + b"\n"
        try:
            process.stdin.write(line)
            await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise await self._crashed(process, _CLOSED) from None
        while True:
            match await self._read_message(process):
                case {"progress": dict(progress)}:
                    if on_progress:
                        on_progress(progress)
                case {"result": dict(result)}:
                    return result
                case {"error": {"type": str(remote_type), "message": str(message)}}:
                    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    cause = full if remote_type == NO_ROOM else None
                    raise WorkerFailedError(remote_type, message) from cause
                case _:
                    raise await self._crashed(process, "sent an unknown message")

    async def _read_message(self, process: asyncio.subprocess.Process) -> object:
        assert process.stdout is not None
        try:
            line = await process.stdout.readline()
        except ValueError:
            raise await self._crashed(
                process, f"wrote a line of more than {MAX_LINE_BYTES} bytes"
            ) from None
        if not line.endswith(b"\n"):
            raise await self._crashed(process, _CLOSED)
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise await self._crashed(process, "wrote a line that is not JSON") from None

    async def _crashed(self, process: asyncio.subprocess.Process, what: str) -> WorkerCrashedError:
        if what == _CLOSED:
            # End of output precedes the exit status by a moment.
            with suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_SECONDS):
                    await process.wait()
        match process.returncode:
            case None:
                cause = what
            case status if status < 0:
                cause = f"was ended by {signal.Signals(-status).name}"
            case status:
                cause = f"ended with exit status {status}"
        return WorkerCrashedError(f"the worker {cause}; its standard error is in the log")

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process and self._process.returncode is None:
            return self._process
        await self._kill()
        self._process = await asyncio.create_subprocess_exec(
            *ending_with_us(self._argv),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**_ENVIRONMENT, **_inherited(), **self._environment},
            limit=MAX_LINE_BYTES,
            # Its own group, so that its children die with it and a terminal's Ctrl-C,
            # which means "drain" to the daemon, does not reach it.
            start_new_session=True,
        )
        self._stderr = asyncio.create_task(self._forward_stderr(self._process))
        return self._process

    async def _watch_memory(self) -> WorkerOutOfMemoryError:
        """Return, with the reason, once the limit is exceeded."""
        limit = self._limits.memory_bytes
        while True:
            used = resident_bytes(self.pid) if self.pid else 0
            if limit is not None and used > limit:
                return WorkerOutOfMemoryError(
                    f"the worker was killed: it used {used >> 20} MiB of the {limit >> 20} MiB "
                    "it may; raise its memory limit or lower the batch size"
                )
            await asyncio.sleep(_MEMORY_POLL_SECONDS)

    async def _forward_stderr(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        pending = b""
        while block := await process.stderr.read(1 << 16):
            *lines, pending = (pending + block).split(b"\n")
            for line in lines:
                self._log(line)
            # What is cut off here would not have been logged.
            pending = pending[: 4 * MAX_STDERR_LINE_CHARACTERS]
        self._log(pending)

    def _log(self, line: bytes) -> None:
        text = line.decode(errors="replace").strip()[:MAX_STDERR_LINE_CHARACTERS]
        if not text or self._stderr_lines_left < 0:
            return
        if self._stderr_lines_left == 0:
            text = "(the rest of this request's standard error is not logged)"
        self._stderr_lines_left -= 1
        self._on_stderr(text)

    async def _kill(self) -> None:
        process, self._process = self._process, None
        stderr, self._stderr = self._stderr, None
        if process is None:
            return
        # Also when the leader is gone: its children may not be.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if stderr:
            with suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_SECONDS):
                    await stderr

    async def _start_idle_timer(self) -> None:
        if self._limits.idle_seconds <= 0:
            await self._kill()
        elif self._process:
            self._idle = asyncio.create_task(self._end_when_idle())

    async def _end_when_idle(self) -> None:
        await asyncio.sleep(self._limits.idle_seconds)
        async with self._lock:
            self._idle = None
            await self._kill()

    def _cancel_idle_timer(self) -> None:
        if self._idle:
            self._idle.cancel()
            self._idle = None


def _inherited() -> dict[str, str]:
    """This process's environment but for what a worker has no use for and must not know."""
    return {name: value for name, value in os.environ.items() if name != PIN_VARIABLE}


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants; 0 for one that has ended."""
    total = 0
    page = os.sysconf("SC_PAGE_SIZE")
    waiting = [pid]
    while waiting:
        process = Path("/proc") / str(waiting.pop())
        # A process may end between any two of these reads.
        with suppress(OSError, ValueError):
            total += int((process / "statm").read_text().split()[1]) * page
            for thread in (process / "task").iterdir():
                waiting += map(int, (thread / "children").read_text().split())
    return total


def ending_with_us(argv: Sequence[str]) -> tuple[str, ...]:
    """A command that runs ``argv`` and is killed as soon as this process dies.

    Start it from the main thread: for the kernel it is the thread that dies.
    """
    return (sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(os.getpid()), *argv)


def serve(
    handle: Callable[[Message, ReportProgress], Message],
    requests: Iterable[str] | None = None,
) -> None:
    """Answer requests until there are no more; the worker program's main loop.

    Args:
        handle: takes a request and a function that reports progress; returns the result.
            What it raises becomes an ``error`` message. The text of a ``MatlError`` is
            sent, of any other exception only its type: such a text may quote data.
        requests: lines; those of standard input until it closes, if not given.
    """
    # Whatever a library prints goes to standard error and cannot break the protocol.
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(message: Message) -> None:
        messages.write(json.dumps(message, allow_nan=False) + "\n")
        messages.flush()

    for line in sys.stdin if requests is None else requests:
        try:
            request = json.loads(line)["request"]
            answer: Message = {"result": handle(request, lambda told: send({"progress": told}))}
        except MatlError as error:
            answer = _error_message(error, str(error))
        # The daemon decides what a failure means; the worker stays for the next request.
        except Exception as error:  # noqa: BLE001
            _log_where(error)
            answer = _error_message(error, "its text is withheld because it might quote data")
            if lacks_room(error):
                answer = {"error": {"type": NO_ROOM, "message": "a disk is full"}}
        send(answer)


def _log_where(error: Exception) -> None:
    """Write the frames of a traceback, which hold our code and no values."""
    frames = traceback.format_list(traceback.extract_tb(error.__traceback__))
    sys.stderr.write(f"{type(error).__name__} at\n{''.join(frames)}")


def _error_message(error: Exception, message: str) -> Message:
    return {"error": {"type": type(error).__name__, "message": message}}
