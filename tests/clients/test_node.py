"""A hospital on Node's gRPC, from the .proto files alone, at a real coordinator."""

import json
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from matl_common.identity.node_folder import NodeFolder
from matl_common.ids import NodeId
from matl_coordinator.rpc.guard import ROLES
from tests.system.federation import (
    COORDINATOR_NAME,
    EXTRA_HOSPITALS,
    HOSPITALS,
    OPERATOR,
    Federation,
    Material,
    found_federation,
    logged_events,
    logged_leaf,
)
from tests.system.processes import ROOT
from tests.system.story import of, start_hospitals

pytestmark = [pytest.mark.clients, pytest.mark.system]
STRANGE = EXTRA_HOSPITALS[0]


def run_node_hospital(
    client: Path, federation: Federation, node: NodeId, update: Path
) -> subprocess.CompletedProcess[str]:
    """Take part in one round from JavaScript."""
    return run_node(client, "hospital.mjs", federation, federation.keys[node], update=str(update))


def run_node(
    client: Path, script: str, federation: Federation, mine: NodeFolder, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a script with a node's files."""
    path = federation.folder / f"{mine.folder.name}.json"
    path.write_text(
        json.dumps(
            {
                "protos": str(ROOT / "proto"),
                "address": federation.address,
                "server_name": COORDINATOR_NAME.server_name,
                "authority": str(mine.tls.trusted_authority),
                "tls_key": str(mine.tls.private_key),
                "tls_certificate": str(mine.tls.certificate_chain),
                "signing_key": str(mine.signing_key),
                "coordinator_signing_key": str(mine.coordinator_signing_key),
                **settings,
            }
        )
    )
    command = ["node", script, str(path)]
    return subprocess.run(
        command, cwd=client, capture_output=True, text=True, check=False, timeout=90
    )


def test_a_generic_tool_finds_every_method_by_either_version_of_reflection(
    node_client: Path, tmp_path: Path, material: Material, running: ExitStack
) -> None:
    federation = found_federation(tmp_path, material)
    coordinator = running.enter_context(federation.start_coordinator())
    coordinator.wait_for("coordinator_ready")

    run = run_node(node_client, "reflect.mjs", federation, federation.keys[OPERATOR])

    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    described = {
        f"/{service}/{method}" for service, methods in told["v1"].items() for method in methods
    }
    unlisted = ("/grpc.health.", "/grpc.reflection.v1.")
    assert described == {path for path in ROLES if not path.startswith(unlisted)}
    assert told["v1alpha"] == told["v1"]


def test_a_hospital_on_node_is_admitted_and_receipted_like_any_other(
    node_client: Path, tmp_path: Path, material: Material, running: ExitStack
) -> None:
    federation = found_federation(
        tmp_path, material, hospitals=(*HOSPITALS, STRANGE), study={"rounds": 1}
    )
    coordinator = running.enter_context(federation.start_coordinator())
    coordinator.wait_for("coordinator_ready")
    start_hospitals(replace(federation, hospitals=HOSPITALS), running)
    update = tmp_path / "update.f32"
    (np.fromfile(federation.direction, dtype="<f4") * np.float32(0.05)).tofile(update)

    run = run_node_hospital(node_client, federation, STRANGE, update)

    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    coordinator.wait_for("model_released", round=1)
    assert coordinator.drain() == 0
    events = logged_events(federation)
    (admitted,) = of(events, "update_admitted", node=STRANGE)
    assert told["update"] == admitted["update"]
    assert events[told["log_index"]] == admitted
    assert told["log_leaf_hash"] == logged_leaf(federation, told["log_index"])
    assert (told["round"], told["node"], told["chunks"]) == (1, STRANGE, 1)
    (closed,) = of(events, "collection_closed")
    assert isinstance(closed["admitted"], dict)
    assert set(closed["admitted"]) == {*HOSPITALS, STRANGE}
    (weighted,) = of(events, "round_weighted")
    assert isinstance(weighted["weights"], dict)
    assert weighted["weights"][STRANGE] > 0.0
