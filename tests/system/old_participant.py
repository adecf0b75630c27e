"""A participant of an earlier revision beside two of this one, with this coordinator.

    python -m tests.system.old_participant REVISION FOLDER

Needs the repository's history, and an empty folder. The earlier revision's own daemon and its own
scripted worker run, from its own files; its configuration has what was known from the beginning.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from matl_common.ids import NodeId
from tests.system.federation import (
    COORDINATOR_NAME,
    PATIENTS,
    Federation,
    Table,
    found_federation,
    prepare_material,
    toml_text,
)
from tests.system.processes import PATIENCE_SECONDS, ROOT, Daemon
from tests.system.story import finish, tell

ROUNDS = 2


def main(revision: str, folder: Path) -> None:
    """Run a study, and print what the log says of the earlier participant."""
    earlier = checked_out(revision, folder / "earlier")
    material = prepare_material(folder / "material")
    (folder / "study").mkdir()
    federation = found_federation(folder / "study", material, study={"rounds": ROUNDS})
    *others, old = federation.hospitals
    with ExitStack() as running:
        coordinator = running.enter_context(federation.start_coordinator())
        coordinator.wait_for("coordinator_ready", seconds=3 * PATIENCE_SECONDS)
        hospitals = {
            node: running.enter_context(federation.start_scripted(node)) for node in others
        }
        hospitals[old] = running.enter_context(start_earlier(federation, old, earlier))
        finish(federation, coordinator, hospitals)
    told = sorted(
        (int(str(number)), str(event))
        for event, number, node in tell(federation).entries
        if node == old and number is not None
    )
    admitted = [number for number, event in told if event == "update_admitted"]
    assert admitted == list(range(1, ROUNDS + 1)), told
    print(f"{old} of revision {revision} was admitted to rounds {admitted}")


def checked_out(revision: str, folder: Path) -> Path:
    folder.mkdir()
    packed = subprocess.run(
        ["git", "archive", revision], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
    return folder


def start_earlier(federation: Federation, node: NodeId, earlier: Path) -> Daemon:
    mine = federation.keys[node]
    table: Table = {
        "state_dir": str(federation.folder / node),
        "identity": {
            "node_id": node,
            "tls_key": str(mine.tls.private_key),
            "tls_certificate": str(mine.tls.certificate_chain),
            "signing_key": str(mine.signing_key),
        },
        "coordinator": {
            "address": federation.address,
            "spiffe_id": str(COORDINATOR_NAME),
            "authority": str(mine.tls.trusted_authority),
            "signing_key": str(mine.coordinator_signing_key),
        },
        "data": {"images": str(federation.images / node), "declared_patients": PATIENTS},
        "privacy": {"max_epsilon": float("inf")},
        "training": {"device": "cpu", "workers": 1},
        "daemon": {"poll_seconds": 30, "drain_seconds": 4.0, "logs": "json"},
    }
    path = federation.folder / "earlier.toml"
    path.write_text(toml_text(table))
    module = ("-P", "-m", "tests.system.scripted_hospital")
    arguments = (str(path), str(federation.control(node)), str(federation.direction))
    # -P: not from the working folder, which is this revision's.
    return Daemon(*module, *arguments, environment={"PYTHONPATH": str(earlier)})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
