"""The page in the system's Chromium, and the process that serves it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Page, Request, WebSocket, sync_playwright

from tests.system.processes import ROOT, end_with_parent, until

CHROMIUM = shutil.which("chromium")
_URL = re.compile(r"The page is at (\S+)")
_TOKEN = re.compile(r"works once: (\S+)")


@dataclass
class Served:
    """A page's process and what it has printed."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self._found(_URL)[0]

    @property
    def tokens(self) -> list[str]:
        return self._found(_TOKEN)

    def _found(self, pattern: re.Pattern[str]) -> list[str]:
        return [match[1] for line in list(self.lines) if (match := pattern.search(line))]

    def read(self) -> None:
        """Collect what it prints, until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)


@contextmanager
def serving_page(*arguments: str | Path) -> Iterator[Served]:
    """Yield the page's server once it answers."""
    script = ROOT / "scripts" / "monitor_fl_node.py"
    process = subprocess.Popen(
        [sys.executable, "-u", script, "--dashboard", "--port", "0", *arguments],
        cwd=ROOT,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # One system call between fork and exec.
        preexec_fn=end_with_parent,  # noqa: PLW1509
    )
    served = Served(process)
    reader = threading.Thread(target=served.read, daemon=True)
    reader.start()
    try:
        until(lambda: any("URL:" in line for line in served.lines), what="the page is served")
        yield served
    finally:
        process.terminate()
        process.wait()
        reader.join()
        if process.stdout is not None:
            process.stdout.close()


@dataclass
class Visit:
    """A browser's page, and every host that it asked for anything."""

    page: Page
    hosts: set[str]


@contextmanager
def chromium(*, width: int = 1280, height: int = 900) -> Iterator[Visit]:
    """Yield an empty page of a browser without a window."""
    with sync_playwright() as playwright:
        # Its sandbox needs a user namespace, which containers often forbid.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        visit = Visit(page, set())

        def note(asked: Request | WebSocket) -> None:
            visit.hosts.add(urlsplit(asked.url).hostname or urlsplit(asked.url).scheme)

        page.on("request", note)
        page.on("websocket", note)
        try:
            yield visit
        finally:
            browser.close()


def log_in(page: Page, served: Served) -> None:
    """Log in with the keyboard alone, with the token shown last."""
    page.goto(served.url)
    page.get_by_label("One-time token").wait_for()
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('type')") == "password":
            break
    page.keyboard.type(served.tokens[-1])
    page.keyboard.press("Enter")
    page.get_by_text("Signed in.").wait_for()


def whole_page(page: Page, path: Path, *, width: int = 1280) -> None:
    """Take a picture of everything, not of what fits a window."""
    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": width, "height": min(int(height) + 8, 6000)})
    page.wait_for_timeout(600)
    page.screenshot(path=path)
