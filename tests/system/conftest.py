"""Fixtures of the tests over real processes."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.system.federation import Material, found_federation, prepare_material
from tests.system.story import Story, run_to_the_end

STUDY_ROUNDS = 4


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Return images and the scripted hospitals' direction, made once."""
    return prepare_material(tmp_path_factory.mktemp("material"))


@pytest.fixture
def running() -> Iterator[ExitStack]:
    """Yield what ends a test's processes, whatever became of the test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Story:
    """Return what a study of scripted hospitals comes to when nothing goes wrong."""
    folder: Path = tmp_path_factory.mktemp("undisturbed")
    federation = found_federation(folder, material, study={"rounds": STUDY_ROUNDS})
    with ExitStack() as stack:
        return run_to_the_end(federation, stack)
