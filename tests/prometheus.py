"""A real Prometheus of a test's own, and what it says (Debian's ``prometheus``)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.postgres import free_port
from tests.system.processes import end_with_parent, until

DEPLOYED = Path(__file__).parents[1] / "deploy" / "prometheus"
IS_HERE = None not in (shutil.which("prometheus"), shutil.which("promtool"))
MISSING = "there is no Prometheus here: apt-get install prometheus (its service may be off)"


def promtool(*arguments: str, stdin: str = "", cwd: Path = DEPLOYED) -> str:
    """What promtool says; fails where it finds fault."""
    done = subprocess.run(
        ["promtool", *arguments], input=stdin, cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def metrics_named(expression: str) -> frozenset[str]:
    """The metrics that a PromQL expression names; ours, and those of any process."""
    without_texts = re.sub(r'"[^"]*"', "", expression)
    return frozenset(re.findall(r"\b(?:matl|process)_\w+", without_texts))


@dataclass(frozen=True)
class Prometheus:
    """One that runs."""

    address: str

    def ask(self, path: str, **parameters: str) -> Any:
        """What its HTTP API answers."""
        with urlopen(f"http://{self.address}/api/v1/{path}?{urlencode(parameters)}") as answer:
            said = json.load(answer)
        assert said["status"] == "success", said
        return said["data"]

    def query(self, expression: str) -> list[Any]:
        """The value of an expression now."""
        found: list[Any] = self.ask("query", query=expression)["result"]
        return found


@contextmanager
def running_prometheus(folder: Path, targets: dict[str, list[str]]) -> Iterator[Prometheus]:
    """One that goes by ``deploy/prometheus``, with other targets and in haste.

    Args:
        folder: an empty one, for its files.
        targets: addresses for each address in the example.
    """
    for path in DEPLOYED.glob("*.rules.yml"):
        shutil.copy(path, folder)
    text = (DEPLOYED / "prometheus.yml").read_text("utf-8")
    for example, addresses in targets.items():
        assert f'["{example}"]' in text
        text = text.replace(f'["{example}"]', json.dumps(addresses))
    text = re.sub(r"interval: \d+s", "interval: 1s", text)
    # Nobody listens there, and nobody is to: alerts are asked for here.
    text = text.replace("127.0.0.1:9093", f"127.0.0.1:{free_port()}")
    (folder / "prometheus.yml").write_text(text, "utf-8")
    address = f"127.0.0.1:{free_port()}"
    with subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
            "--log.level=error",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call
    ) as process:
        try:
            until(lambda: _is_ready(address), what="Prometheus is ready")
            yield Prometheus(address)
        finally:
            process.kill()


def _is_ready(address: str) -> bool:
    try:
        with urlopen(f"http://{address}/-/ready") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
