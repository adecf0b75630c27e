"""The daemons' end of a worker process, against real small programs."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from matl_common.durable import lacks_room
from matl_common.identity.pkcs11.uri import PIN_VARIABLE
from matl_common.worker import (
    MAX_STDERR_LINE_CHARACTERS,
    MAX_STDERR_LINES_PER_REQUEST,
    WorkerCrashedError,
    WorkerFailedError,
    WorkerLimits,
    WorkerOutOfMemoryError,
    WorkerProcess,
    WorkerTimedOutError,
    resident_bytes,
)

pytestmark = pytest.mark.asyncio

Write = Callable[[str], tuple[str, ...]]

PROGRAM = '''
import os, signal, subprocess, sys, time
from matl_common.errors import MatlError
from matl_common.worker import serve

count = 0

class LabelsUnreadableError(MatlError):
    """The worker's own error."""

def handle(request, report):
    global count
    count += 1
    match request["do"]:
        case "echo":
            return {"said": request["text"], "count": count, "pid": os.getpid()}
        case "progress":
            for step in range(3):
                report({"step": step})
            return {}
        case "print":
            print("a library prints")
            return {}
        case "refuse":
            raise LabelsUnreadableError("column dr_level is missing")
        case "bug":
            raise ValueError(f"patient {4000 + 711}")
        case "fill":
            with open("/dev/full", "wb") as disk:
                disk.write(b"x")
        case "hang":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            report({"child": child.pid})
            time.sleep(600)
        case "sleep":
            report({"pid": os.getpid()})
            time.sleep(600)
        case "exit":
            print("about to exit", file=sys.stderr)
            os._exit(7)
        case "signal":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "eat":
            eaten = []
            while True:
                eaten.append(bytearray(os.urandom(1) * (8 << 20)))
                time.sleep(0.005)
        case "flood":
            for number in range(10_000):
                print("x" * 2000, number, file=sys.stderr)
            return {}

serve(handle)
'''

GARBAGE = 'import sys; sys.stdin.readline(); print("hello, not JSON", flush=True); sys.stdin.read()'
UNKNOWN = (
    "import sys; sys.stdin.readline(); print('{\"resutl\": {}}', flush=True); sys.stdin.read()"
)
HUGE_LINE = 'import sys; sys.stdin.readline(); print("9" * (3 << 20), flush=True); sys.stdin.read()'


@pytest.fixture
def program(tmp_path: Path) -> Write:
    def write(text: str) -> tuple[str, ...]:
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(text))
        return (sys.executable, str(path))

    return write


@asynccontextmanager
async def worker(
    argv: tuple[str, ...], *, limits: WorkerLimits | None = None, lines: list[str] | None = None
) -> AsyncIterator[WorkerProcess]:
    sink = [] if lines is None else lines
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    async with WorkerProcess(
        argv, limits=limits, environment=environment, on_stderr=sink.append
    ) as process:
        yield process


def _has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def gone(pid: int) -> bool:
    """Whether a process ends within two seconds; a zombie has ended."""
    for _ in range(200):
        if _has_ended(pid):
            return True
        await asyncio.sleep(0.01)
    return False


async def test_a_worker_is_started_for_the_first_request_and_kept_warm(program: Write) -> None:
    async with worker(program(PROGRAM)) as process:
        assert process.pid is None
        first = await process.run({"do": "echo", "text": "ä"}, timeout_seconds=20)
        second = await process.run({"do": "echo", "text": "b"}, timeout_seconds=20)
    assert (first["said"], first["count"]) == ("ä", 1)
    assert (second["said"], second["count"]) == ("b", 2)
    assert first["pid"] == second["pid"]
    assert await gone(first["pid"])


async def test_an_idle_worker_is_ended_and_the_next_request_starts_another(program: Write) -> None:
    async with worker(program(PROGRAM), limits=WorkerLimits(idle_seconds=0.05)) as process:
        first = await process.run({"do": "echo", "text": ""}, timeout_seconds=20)
        assert await gone(first["pid"])
        second = await process.run({"do": "echo", "text": ""}, timeout_seconds=20)
    assert second["count"] == 1
    assert second["pid"] != first["pid"]


async def test_without_an_idle_time_the_worker_ends_with_its_request(program: Write) -> None:
    async with worker(program(PROGRAM), limits=WorkerLimits(idle_seconds=0)) as process:
        first = await process.run({"do": "echo", "text": ""}, timeout_seconds=20)
        assert process.pid is None
        assert await gone(first["pid"])


async def test_progress_arrives_in_order_and_prints_do_not_break_the_protocol(
    program: Write,
) -> None:
    told: list[dict[str, object]] = []
    lines: list[str] = []
    async with worker(program(PROGRAM), lines=lines) as process:
        await process.run({"do": "progress"}, timeout_seconds=20, on_progress=told.append)
        assert await process.run({"do": "print"}, timeout_seconds=20) == {}
    assert told == [{"step": 0}, {"step": 1}, {"step": 2}]
    assert lines == ["a library prints"]


async def test_a_failure_keeps_its_type_and_the_process(program: Write) -> None:
    async with worker(program(PROGRAM)) as process:
        with pytest.raises(WorkerFailedError, match="dr_level is missing") as failure:
            await process.run({"do": "refuse"}, timeout_seconds=20)
        assert failure.value.remote_type == "LabelsUnreadableError"
        assert (await process.run({"do": "echo", "text": ""}, timeout_seconds=20))["count"] == 2


async def test_the_text_of_an_unexpected_exception_stays_in_the_worker(program: Write) -> None:
    lines: list[str] = []
    async with worker(program(PROGRAM), lines=lines) as process:
        with pytest.raises(WorkerFailedError, match="ValueError") as failure:
            await process.run({"do": "bug"}, timeout_seconds=20)
    assert "4711" not in str(failure.value)
    assert "ValueError at" in lines
    assert not any("4711" in line for line in lines)


@pytest.mark.parametrize(("request_", "cause"), [("exit", "exit status 7"), ("signal", "SIGSEGV")])
@pytest.mark.crash
async def test_a_crash_is_named_and_the_next_request_gets_a_fresh_process(
    program: Write, request_: str, cause: str
) -> None:
    lines: list[str] = []
    async with worker(program(PROGRAM), lines=lines) as process:
        await process.run({"do": "echo", "text": ""}, timeout_seconds=20)
        with pytest.raises(WorkerCrashedError, match=cause):
            await process.run({"do": request_}, timeout_seconds=20)
        assert (await process.run({"do": "echo", "text": ""}, timeout_seconds=20))["count"] == 1
    assert lines == (["about to exit"] if request_ == "exit" else [])


@pytest.mark.crash
async def test_a_hang_is_killed_with_its_children(program: Write) -> None:
    told: list[dict[str, int]] = []
    async with worker(program(PROGRAM)) as process:
        pid = (await process.run({"do": "echo", "text": ""}, timeout_seconds=20))["pid"]
        with pytest.raises(WorkerTimedOutError, match=r"after 0\.5 seconds"):
            await process.run({"do": "hang"}, timeout_seconds=0.5, on_progress=told.append)
        assert await gone(pid)
        assert await gone(told[0]["child"])
        assert (await process.run({"do": "echo", "text": ""}, timeout_seconds=20))["count"] == 1


async def test_a_cancelled_request_leaves_no_answer_behind(program: Write) -> None:
    async with worker(program(PROGRAM)) as process:
        task = asyncio.create_task(process.run({"do": "hang"}, timeout_seconds=60))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert process.pid is None
        assert (await process.run({"do": "echo", "text": "x"}, timeout_seconds=20))["said"] == "x"


@pytest.mark.crash
async def test_a_worker_that_eats_memory_is_killed_and_says_why(program: Write) -> None:
    async with worker(program(PROGRAM), limits=WorkerLimits(memory_bytes=200 << 20)) as process:
        with pytest.raises(WorkerOutOfMemoryError, match="of the 200 MiB"):
            await process.run({"do": "eat"}, timeout_seconds=30)
        assert process.pid is None


async def test_memory_of_children_counts() -> None:
    eat = "x = b'x' * (64 << 20); import time; time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {eat!r}])"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", parent, start_new_session=True
    )
    try:
        for _ in range(300):
            if resident_bytes(process.pid) > 64 << 20:
                break
            await asyncio.sleep(0.01)
        assert resident_bytes(process.pid) > 64 << 20
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    assert resident_bytes(process.pid) == 0


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (GARBAGE, "not JSON"),
        (UNKNOWN, "unknown message"),
        (HUGE_LINE, "more than 1048576 bytes"),
        ("import sys; sys.exit()", "exit status 0"),
    ],
)
async def test_what_is_not_the_protocol_ends_the_process(
    program: Write, text: str, cause: str
) -> None:
    async with worker(program(text)) as process:
        with pytest.raises(WorkerCrashedError, match=cause):
            await process.run({"do": "echo"}, timeout_seconds=20)
        assert process.pid is None


async def test_a_program_that_does_not_exist_is_a_crash() -> None:
    lines: list[str] = []
    async with worker(("/nonexistent/program",), lines=lines) as process:
        with pytest.raises(WorkerCrashedError, match="exit status"):
            await process.run({}, timeout_seconds=20)
    assert any("No such file" in line for line in lines)


async def test_standard_error_is_bounded_in_lines_and_length(program: Write) -> None:
    lines: list[str] = []
    async with worker(program(PROGRAM), lines=lines) as process:
        await process.run({"do": "flood"}, timeout_seconds=20)
    assert len(lines) == MAX_STDERR_LINES_PER_REQUEST + 1
    assert "not logged" in lines[-1]
    assert max(map(len, lines)) == MAX_STDERR_LINE_CHARACTERS


@pytest.mark.crash
async def test_a_busy_worker_dies_with_its_daemon(program: Write) -> None:
    daemon = textwrap.dedent(f"""
        import asyncio
        from matl_common.worker import WorkerProcess

        async def main():
            worker = WorkerProcess({program(PROGRAM)!r})
            await worker.run(
                {{"do": "sleep"}},
                timeout_seconds=600,
                on_progress=lambda told: print(told["pid"], flush=True),
            )

        asyncio.run(main())
        """)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        daemon,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    pid = int(await asyncio.wait_for(process.stdout.readline(), 20))
    process.kill()
    await process.wait()
    assert await gone(pid)


async def test_a_worker_does_not_inherit_the_pin_of_a_token(
    program: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PIN_VARIABLE, "canary-4711")
    monkeypatch.setenv("MATL_UNRELATED", "inherited")
    async with worker(program(PROGRAM)) as process:
        await process.run({"do": "echo", "text": ""}, timeout_seconds=20)
        environment = psutil.Process(process.pid).environ()
    assert environment["MATL_UNRELATED"] == "inherited"
    assert PIN_VARIABLE not in environment


async def test_a_full_disk_in_the_worker_is_told_apart(program: Write) -> None:
    async with worker(program(PROGRAM)) as process:
        with pytest.raises(WorkerFailedError) as full:
            await process.run({"do": "fill"}, timeout_seconds=30)
        assert lacks_room(full.value)
        with pytest.raises(WorkerFailedError) as other:
            await process.run({"do": "bug"}, timeout_seconds=30)
        assert not lacks_room(other.value)
