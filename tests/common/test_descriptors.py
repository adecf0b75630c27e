"""The limit of open descriptors, in processes of their own."""

import resource
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from matl_common.descriptors import raise_descriptor_limit

soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(raise_descriptor_limit(wanted), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""
HARD = 2048


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[1] < HARD, reason="this system allows fewer"
)
@pytest.mark.parametrize(
    ("soft", "wanted", "allowed"),
    [(512, 1024, 1024), (512, 4096, HARD), (1024, 600, 1024)],
    ids=["raised", "raised to the system's limit", "never lowered"],
)
def test_the_limit_is_raised_as_far_as_it_may_be(soft: int, wanted: int, allowed: int) -> None:
    command = [sys.executable, "-c", SCRIPT, str(soft), str(HARD), str(wanted)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(allowed), str(allowed), str(HARD)]
