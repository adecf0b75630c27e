"""Fixtures of the attacks over real processes."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import pytest

from tests.attacks.arena import prepare_arena_material
from tests.system.federation import Material


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Return images for every data set and a direction for the honest, made once."""
    return prepare_arena_material(tmp_path_factory.mktemp("arena"))
