"""Every implementation of a port, each behind the same way to open it again."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from matl_coordinator.aggregation.sharing import SharedStore
from matl_coordinator.aggregation.stored import SharedPlace
from matl_coordinator.ports import ModelStore, Spool, Store
from matl_coordinator.store.models import FileModelStore
from matl_coordinator.store.shared import SharedSpool
from matl_coordinator.store.spool import DiskSpool
from matl_coordinator.store.sql import SqlStore
from tests.fakes import FakeDatabase, FakeModelStore, FakeSpool, FakeStore
from tests.logs import LOG
from tests.store.roles import WRITER, prepare, url_of

OpenStore = Callable[[], Store]
OpenSpool = Callable[[int], Spool]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'coordinator.db'}"
    return _as_the_daemon(request)


def _as_the_daemon(request: pytest.FixtureRequest) -> str:
    """A database of PostgreSQL with its roles, as the user that the coordinator has there."""
    url: str = request.getfixturevalue("postgres_database")
    prepare(url)
    return url_of(url, WRITER)


@pytest.fixture(params=["fake", "sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStore]:
    """Opens a store on one database; every call stands for another process."""
    fake = FakeDatabase()
    url = f"sqlite:///{tmp_path / 'coordinator.db'}"
    if request.param == "postgres":
        url = _as_the_daemon(request)
    with ExitStack() as opened:

        def open_another() -> Store:
            is_fake = request.param == "fake"
            store: Store = FakeStore(fake) if is_fake else SqlStore.connect(url, **LOG)
            return opened.enter_context(closing(store))

        yield open_another


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    """A store whose state was loaded."""
    store = open_store()
    store.load()
    return store


@pytest.fixture(params=["fake", "disk", "shared"])
def open_spool(request: pytest.FixtureRequest, tmp_path: Path) -> OpenSpool:
    """Opens a spool of so many bytes; every later call stands for a start after a kill."""
    fakes: list[FakeSpool] = []

    def open_again(quota_bytes: int = 1 << 30) -> Spool:
        if request.param != "fake":
            disk = DiskSpool.open_folder(tmp_path / "spool", quota_bytes=quota_bytes)
            if request.param == "disk":
                return disk
            folder = tmp_path / "shared"
            folder.mkdir(exist_ok=True)
            return SharedSpool(
                disk,
                SharedStore(
                    SharedPlace(f"file://{folder}"), federation="eu-retina", study="dr-2026"
                ),
            )
        if fakes:
            fakes[0].crash()
        else:
            fakes.append(FakeSpool(tmp_path, quota_bytes=quota_bytes))
        return fakes[0]

    return open_again


@pytest.fixture(params=["fake", "disk"])
def model_store(request: pytest.FixtureRequest, tmp_path: Path) -> ModelStore:
    folder = tmp_path / "models"
    if request.param == "disk":
        return FileModelStore.open(folder)
    folder.mkdir()
    return FakeModelStore(folder)
