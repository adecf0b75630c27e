"""Shared by the tests of ``matl_participant``."""

# Before any test module imports grpc: it shuts out TLS 1.2 (see the package's docstring).
import matl_common  # noqa: F401, I001

from collections.abc import AsyncIterator

from pathlib import Path

import pytest

from matl_common.identity.node_folder import NodeFolder
from matl_common.ids import NodeId
from matl_participant.files import StateFolder
from tests.participant.log_simulator import SimulatedLog
from tests.participant.simulator import (
    COORDINATOR,
    FEDERATION,
    HOSPITAL,
    SimulatedCoordinator,
    create_keys,
)
from tests.participant.test_daemon import Hospital
from tests.participant.witness_desk import Desk


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[NodeId, NodeFolder]:
    """Return every node's keys, made once."""
    return create_keys(tmp_path_factory.mktemp("federation") / "keys")


@pytest.fixture
async def coordinator(keys: dict[NodeId, NodeFolder]) -> AsyncIterator[SimulatedCoordinator]:
    """Yield a simulated coordinator that listens."""
    async with SimulatedCoordinator(keys) as running:
        yield running


@pytest.fixture
def log(keys: dict[NodeId, NodeFolder]) -> SimulatedLog:
    """Return a log of five entries."""
    log = SimulatedLog(keys[COORDINATOR], FEDERATION)
    for number in range(5):
        log.note(f"entry {number}")
    return log


@pytest.fixture
async def desk(
    tmp_path: Path, keys: dict[NodeId, NodeFolder], log: SimulatedLog
) -> AsyncIterator[Desk]:
    """Yield a hospital that witnesses the log, whose coordinator listens."""
    async with SimulatedCoordinator(keys, log=log) as coordinator:
        witness_key = keys[HOSPITAL].witness_key
        hospital = Hospital(tmp_path, keys, coordinator.address, witness_key=witness_key)
        StateFolder(tmp_path / "state").prepare()
        yield Desk(hospital, log)
