"""Fixtures of the tests with clients that nobody here wrote."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system.conftest import material, running
from tests.system.processes import ROOT

__all__ = ["material", "node_client", "running"]

SOURCE = Path(__file__).parent / "node"
FILES = ("package.json", "package-lock.json", "hospital.mjs", "reflect.mjs")
# npm's and Node's words for a registry that cannot be reached.
UNREACHABLE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH")


@pytest.fixture(scope="session")
def node_client() -> Path:
    """Return a folder with the client and the npm packages that its lock file names."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("Node.js and npm are not installed: apt-get install nodejs npm")
    folder = ROOT / "out" / "node-client"
    folder.mkdir(parents=True, exist_ok=True)
    lock, installed = SOURCE / "package-lock.json", folder / "package-lock.json"
    is_new = not installed.exists() or installed.read_bytes() != lock.read_bytes()
    if is_new or not (folder / "node_modules").exists():
        installed.unlink(missing_ok=True)
        _install(npm, folder)
    for name in FILES:
        shutil.copyfile(SOURCE / name, folder / name)
    return folder


def _install(npm: str, folder: Path) -> None:
    # Elsewhere until it is whole, so that an install that was cut short is not taken for one.
    fresh = folder / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for name in FILES:
        shutil.copyfile(SOURCE / name, fresh / name)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
    run = subprocess.run(command, cwd=fresh, capture_output=True, text=True, check=False)
    if run.returncode and any(word in run.stderr for word in UNREACHABLE):
        pytest.skip(f"npm's registry cannot be reached: {run.stderr.strip().splitlines()[0]}")
    assert run.returncode == 0, run.stderr
    shutil.rmtree(folder / "node_modules", ignore_errors=True)
    (fresh / "node_modules").rename(folder / "node_modules")
    shutil.rmtree(fresh)
