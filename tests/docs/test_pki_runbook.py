"""The commands of ``docs/certificates.md``, run in order as they are printed."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from matl_common.identity.allowlist import load_allowlist
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.held_keys import load_p256_key
from matl_common.identity.keys import parse_public_key
from matl_common.identity.node_folder import NodeFolder
from matl_common.identity.tls import TlsPlace
from matl_common.ids import FederationId, NodeId
from tests.docs.test_certificates import ask

pytestmark = [
    pytest.mark.certificates,
    pytest.mark.skipif(
        None in (shutil.which("bash"), shutil.which("openssl")),
        reason="the commands need bash and openssl",
    ),
]
ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "certificates.md").read_text("utf-8")
HOSPITAL = NodeId("hospital_b")


@dataclass(frozen=True, slots=True)
class Runbook:
    folder: Path

    def run(self, section: str, *, hospital: str = HOSPITAL) -> None:
        """Run a section's commands, for its own hospital or another."""
        (part,) = (each for each in TEXT.split("\n## ") if each.startswith(section))
        script = self.folder / "commands.sh"
        script.write_text(
            "set -euo pipefail\n" + "\n".join(blocks(part)).replace(HOSPITAL, hospital)
        )
        finished = subprocess.run(
            ["bash", script],
            cwd=self.folder,
            env={"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
        )
        assert finished.returncode == 0, finished.stderr

    def answer(self, node: str, *, tls: TlsPlace | None = None) -> str:
        """Who the coordinator says has called; it serves with its own or other TLS files."""
        coordinator = NodeFolder(self.folder / "federation" / "coordinator")
        return ask(
            tls or coordinator.tls,
            NodeFolder(self.folder / node).tls,
            allowlist=load_allowlist(coordinator.allowlist),
            coordinator=SpiffeId(FederationId("dr-study"), Role.COORDINATOR, NodeId("coordinator")),
        )

    def pins(self, hospital: str = HOSPITAL) -> frozenset[str]:
        allowlist = load_allowlist(self.folder / "federation" / "coordinator" / "allowlist.toml")
        node = allowlist.lookup(NodeId(hospital))
        return frozenset() if node is None else node.pins


def blocks(text: str) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


def test_the_runbook_works_from_the_first_key_to_the_last(tmp_path: Path) -> None:
    command = tmp_path / "bin" / "matl"
    command.parent.mkdir()
    # Says yes; and without the other commands' imports it starts in a fraction of the time.
    program = (
        "import sys; from matl.commands.pki.app import pki_app; "
        "from matl.commands.pki.node import keygen; pki_app.command()(keygen); "
        'pki_app([each for each in sys.argv[1:] if each != "pki"])'
    )
    command.write_text(f"#!/bin/sh\nyes | {sys.executable} -c '{program}' \"$@\"\n")
    command.chmod(0o755)
    runbook = Runbook(tmp_path)

    runbook.run("The federation")
    # Listed before the runbook's own hospital.
    runbook.run("A node joins", hospital="hospital_a")
    others = runbook.pins("hospital_a")
    assert others
    runbook.run("A node joins")
    assert runbook.answer("hospital_b") == "participant hospital_b"
    assert runbook.answer("operator_a") == "operator operator_a"
    (old,) = runbook.pins()

    runbook.run("Renewal")
    (new,) = runbook.pins()
    assert new != old
    assert not (tmp_path / "hospital_b" / "next").joinpath("signing.key").exists()
    assert runbook.answer("hospital_b") == "participant hospital_b"
    assert runbook.pins("hospital_a") == others

    runbook.run("Shutting out")
    assert runbook.answer("hospital_b") == "unlisted"
    assert runbook.answer("operator_a") == "operator operator_a"
    lines = (tmp_path / "federation" / "revoked.jsonl").read_text().splitlines()
    reasons = [json.loads(line)["reason"] for line in lines]
    assert reasons == ["replaced", "replaced", "replaced", "laptop stolen"]

    runbook.run("A node comes back")
    assert runbook.answer("hospital_b") == "participant hospital_b"

    stolen = NodeFolder(tmp_path / "stolen")
    shutil.copytree(tmp_path / "federation" / "coordinator", stolen.folder)
    assert runbook.answer("hospital_b", tls=stolen.tls) == "participant hospital_b"
    runbook.run("The coordinator's key was stolen")
    assert runbook.answer("hospital_b") == "participant hospital_b"
    with pytest.raises(grpc.aio.AioRpcError):
        runbook.answer("hospital_b", tls=stolen.tls)
    published = (tmp_path / "hospital_b" / "coordinator-signing.pub").read_bytes()
    key = load_p256_key(tmp_path / "federation" / "coordinator" / "signing.key")
    assert parse_public_key(published) == key.public_key
    assert published != stolen.signing_public_key.read_bytes()
    # Whoever has no answer yet trusts the thief, and not the coordinator.
    assert runbook.answer("operator_a", tls=stolen.tls) == "operator operator_a"
    with pytest.raises(grpc.aio.AioRpcError):
        runbook.answer("operator_a")
