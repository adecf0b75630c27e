"""Logs of daemons: what they must not show, in either style."""

import subprocess
import sys

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
