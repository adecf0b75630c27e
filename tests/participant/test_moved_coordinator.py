"""The coordinator's name comes to stand for another address while a hospital runs."""

import os
from pathlib import Path

import pytest

from matl_common.identity.node_folder import NodeFolder
from matl_common.ids import NodeId
from tests.participant.simulator import SimulatedCoordinator
from tests.participant.test_daemon import PROGRAM, Hospital, started, until

NAME = "coordinator.hospital-a.test"
# Names come from a file of its own, which may be changed while the daemon runs.
THERE = """
import sys
from tests.faults.elsewhere import Surroundings, enter
enter(Surroundings(hosts=sys.argv.pop(1)))
"""


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="other names for one process need root")
async def test_a_hospital_follows_its_coordinators_name_to_another_address(
    tmp_path: Path, keys: dict[NodeId, NodeFolder]
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {NAME}\n")
    coordinator = SimulatedCoordinator(keys)
    coordinator.host = "127.0.0.1"
    async with coordinator:
        hospital = Hospital(tmp_path, keys, f"{NAME}:{coordinator.port}")
        arguments = (str(hospital.config_file), *hospital.worker_argv)
        command = ("-c", THERE + PROGRAM, str(hosts), *arguments)
        async with started(hospital, *command):
            await until(lambda: coordinator.hellos == 1, seconds=60.0)
            await coordinator.stop()
            coordinator.host = "127.0.0.2"
            await coordinator.start()
            hosts.write_text(f"127.0.0.1 localhost\n127.0.0.2 {NAME}\n")
            await until(lambda: coordinator.hellos == 2, seconds=60.0)
