"""A real HAProxy of a test's own (Debian's ``haproxy``), by the configuration in ``deploy``."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.postgres import free_port
from tests.system.processes import END_WITH_PARENT, until

DEPLOYED = Path(__file__).parents[1] / "deploy" / "haproxy" / "haproxy.cfg"
IS_HERE = shutil.which("haproxy") is not None
MISSING = "there is no HAProxy here: apt-get install haproxy (its service may be off)"


@contextmanager
def running_haproxy(folder: Path, servers: Mapping[str, str]) -> Iterator[str]:
    """One that goes by ``deploy/haproxy``, before other servers; yields its address.

    Args:
        folder: an empty one, for its files.
        servers: what stands in place of each text of the example.
    """
    port = free_port()
    text = DEPLOYED.read_text("utf-8")
    for example, here in {"bind :8470": f"bind 127.0.0.1:{port}", **servers}.items():
        assert example in text, example
        text = text.replace(example, here)
    path = folder / "haproxy.cfg"
    path.write_text(text, "utf-8")
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(
            [*END_WITH_PARENT, "haproxy", "-db", "-f", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: process.poll() is not None or _answers(port), what="HAProxy answers")
        assert process.poll() is None, (folder / "haproxy.log").read_text("utf-8")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
