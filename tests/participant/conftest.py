"""Shared by the tests of ``matl_participant``."""

# Before any test module imports grpc: it shuts out TLS 1.2 (see the package's docstring).
import matl_common  # noqa: F401, I001

from collections.abc import AsyncIterator

import pytest

from matl_common.identity.development import NodeFolder
from matl_common.ids import NodeId
from tests.participant.simulator import SimulatedCoordinator, create_keys


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[NodeId, NodeFolder]:
    """Return every node's keys, made once."""
    return create_keys(tmp_path_factory.mktemp("federation") / "keys")


@pytest.fixture
async def coordinator(keys: dict[NodeId, NodeFolder]) -> AsyncIterator[SimulatedCoordinator]:
    """Yield a simulated coordinator that listens."""
    async with SimulatedCoordinator(keys) as running:
        yield running
