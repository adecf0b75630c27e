"""Break the privacy ledger in every way that is declared, and see a named test fail each time.

``ledger_mutants.toml`` beside this file lists the mutants: a text of the source, what takes
its place, and the test that must notice. Each is tried in a copy of the tree, never in the
tree itself, with that test alone. Exit status 1: a mutant survived, its text is no longer
in the source exactly once, or a test fails without any mutant.
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("ledger_mutants.toml")
# Everything the tests read; the rest of the tree may hold gigabytes of figures.
COPIED = (
    *("matl", "matl_common", "matl_coordinator", "matl_participant"),
    *("tests", "deploy", "docs", "pyproject.toml"),
)
_TEST_FAILED = 1
_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way to break the ledger, and the test that must notice."""

    what: str
    file: str
    source: str
    replacement: str
    test: str


def main() -> int:
    """Try every mutant and print which test killed it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="mutants whose description holds this text")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    mutants = [each for each in read_mutants() if options.only in each.what]
    lost = [each for each in mutants if (ROOT / each.file).read_text().count(each.source) != 1]
    for mutant in lost:
        print(f"{mutant.file}: the text of {mutant.what!r} is not there exactly once")
    if lost or not mutants:
        return 1
    with tempfile.TemporaryDirectory() as folder:
        trees: queue.Queue[Path] = queue.Queue()
        for number in range(options.jobs):
            trees.put(copied_tree(Path(folder) / str(number)))
        if (ended := pytest(ROOT, sorted({each.test for each in mutants}))) != 0:
            print(f"the tests end with status {ended} on the source as it is")
            return 1
        return report(mutants, trees, jobs=options.jobs)


def read_mutants() -> list[Mutant]:
    """The declared list, strictly."""
    return [Mutant(**each) for each in tomllib.loads(LIST.read_text())["mutant"]]


def copied_tree(into: Path) -> Path:
    """A copy of what the tests need."""
    into.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, into / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, into / name)
    return into


def report(mutants: list[Mutant], trees: "queue.Queue[Path]", *, jobs: int) -> int:
    """Print a table as the mutants die; 1 if one survives."""
    survived = 0

    def tried(mutant: Mutant) -> int:
        tree = trees.get()
        try:
            return status_with(mutant, tree)
        finally:
            trees.put(tree)

    with ThreadPoolExecutor(jobs) as pool:
        for mutant, ended in zip(mutants, pool.map(tried, mutants), strict=True):
            survived += ended != _TEST_FAILED
            verdict = "killed by" if ended == _TEST_FAILED else f"SURVIVED ({ended})"
            name = mutant.test.rpartition("::")[2]
            print(f"{Path(mutant.file).name:12}  {mutant.what:58}  {verdict} {name}", flush=True)
    print(f"{len(mutants) - survived} of {len(mutants)} mutants killed")
    return int(survived > 0)


def status_with(mutant: Mutant, tree: Path) -> int:
    """Pytest's exit status in ``tree`` with the mutant in it; the tree is as before after."""
    file = tree / mutant.file
    sound = file.read_text()
    file.write_text(sound.replace(mutant.source, mutant.replacement))
    try:
        return pytest(tree, [mutant.test])
    finally:
        file.write_text(sound)


def pytest(tree: Path, tests: Iterable[str]) -> int:
    """Run tests in a tree of their own modules; 1 is that they ran and one failed."""
    argv = (sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests)
    # A test that hangs on a mutant has noticed it.
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    try:
        done = subprocess.run(
            argv, cwd=tree, env=environment, capture_output=True, check=False, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return _TEST_FAILED
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
