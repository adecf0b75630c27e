"""Fixtures every test may use, and the order of the run. No test data here."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

import matl_common  # noqa: F401 - before gRPC, which reads its TLS settings once
from tests.postgres import PostgresUnavailableError, fresh_database, running_postgres
from tests.softhsm import SoftHsmUnavailableError, TokenFolder, token_folder

# Before numpy or torch load: small tensors gain nothing from threads, and tests share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A deadline measures the machine's load, not the code. CI repeats the same examples every time.
settings.register_profile("matl", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("matl")

# Cheap failures first.
SLOWER_KINDS = ("postgres", "browser", "prometheus", "peers", "hostile", "crash", "system")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run pure tests first and whole systems last, otherwise in the order they are written."""
    items.sort(key=_slowness)


def _slowness(item: pytest.Item) -> int:
    kinds = {marker.name for marker in item.iter_markers()}
    ranks = (rank for rank, kind in enumerate(SLOWER_KINDS, start=1) if kind in kinds)
    return max(ranks, default=0)


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """Take back how a test set up this process's logs, which the next one may want to read."""
    yield
    if structlog.is_configured():
        structlog.reset_defaults()


@pytest.fixture(autouse=True)
def main_as_it_was() -> Iterator[None]:
    """Take back a page that a test ran as ``__main__``: processes that are spawned run it again."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Yield the URL of a PostgreSQL server that this run alone uses."""
    try:
        with running_postgres() as url:
            yield url
    except PostgresUnavailableError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """Yield the URL of an empty database that this test alone uses."""
    with fresh_database(postgres_url) as url:
        yield url


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TokenFolder]:
    """Yield a folder with a PKCS#11 token "hsm", which this test alone uses."""
    try:
        with token_folder(tmp_path / "softhsm", monkeypatch) as folder:
            folder.add("hsm")
            yield folder
    except SoftHsmUnavailableError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
