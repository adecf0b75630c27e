"""Logs of daemons: what they must not show, in either style, and that they end nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FAILING = """
import structlog
from matl_common.logs import configure_logs

configure_logs({style!r})

def fail(passphrase):
    raise RuntimeError("it broke")

try:
    fail("-".join(["canary", "passphrase"]))
except RuntimeError as error:
    structlog.get_logger().error("call_failed", exc_info=error)
"""


@pytest.mark.parametrize("style", ["console", "json"])
def test_a_failure_is_logged_without_the_variables_of_its_functions(style: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FAILING.format(style=style)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "it broke" in run.stderr
    assert "canary-passphrase" not in run.stderr


UNWRITTEN = """
import os, sys
import structlog
from matl_common.logs import configure_logs, failed_writes

configure_logs("json")
log = structlog.get_logger()
written = os.dup(2)
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
for number in range(3):
    log.info("nobody_reads_this", number=number)
assert failed_writes() == 3
os.dup2(written, 2)
log.info("room_again")
"""


def test_a_full_disk_under_the_log_raises_nothing_and_is_told_once_there_is_room() -> None:
    run = subprocess.run(
        [sys.executable, "-c", UNWRITTEN], capture_output=True, text=True, check=True
    )
    told = [json.loads(line) for line in run.stderr.splitlines()]
    assert [each["event"] for each in told[-2:]] == ["room_again", "log_was_not_written"]
    assert told[-1]["lines"] == 3


def test_a_log_whose_reader_is_gone_raises_nothing(tmp_path: Path) -> None:
    done = tmp_path / "done"
    program = (
        "import sys, time; from pathlib import Path; import structlog; "
        "from matl_common.logs import configure_logs; configure_logs('json'); sys.stdin.read(); "
        "structlog.get_logger().info('nobody_reads_this'); Path(sys.argv[1]).touch()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(done)], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stderr.close()
        process.stdin.close()
        process.wait()
    assert done.exists()
