"""A whole federation on loopback: keys, tiny images, configurations, real processes.

The study is the ``full`` recipe on 16-pixel images, unless a test wants otherwise.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from matl.log.sources import DatabaseSource
from matl.log.verification import Believed, opened_entries, verify_log
from matl.operations import OperationsClient, connect_operator
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.development import (
    DevelopmentFederation,
    Enrolment,
    create_development_keys,
)
from matl_common.identity.key_places import load_wrapping_key
from matl_common.identity.keys import load_verifier_key
from matl_common.identity.node_folder import NodeFolder
from matl_common.identity.pkcs11.uri import parse_token_uri
from matl_common.ids import FederationId, NodeId
from matl_common.tlog.merkle import root_from
from matl_coordinator.store.database import create_database_engine
from matl_coordinator.store.reader import LogReader
from matl_participant.core.account import Account
from matl_participant.core.journal import replay
from matl_participant.ledger import ledger_path
from tests.postgres import free_port
from tests.system.processes import ROOT, Daemon

FEDERATION, STUDY = FederationId("dr-study"), "dr-2026"
COORDINATOR, OPERATOR = NodeId("coordinator"), NodeId("operator")
COORDINATOR_NAME = SpiffeId(FEDERATION, Role.COORDINATOR, COORDINATOR)
HOSPITALS = (NodeId("hospital_a"), NodeId("hospital_b"), NodeId("hospital_c"))
EXTRA_HOSPITALS = (NodeId("hospital_d"), NodeId("hospital_e"))
PATIENTS = 16
CLASSES = 5
IMAGE_SIZE = 16

Scalar = str | int | float | bool
Table = Mapping[str, Scalar | Mapping[str, Scalar]]
Event = Mapping[str, object]


@dataclass(frozen=True)
class Federation:
    """One folder with everything that outlives the processes."""

    folder: Path
    keys: Mapping[NodeId, NodeFolder]
    hospitals: tuple[NodeId, ...]
    images: Path
    direction: Path
    """Where scripted hospitals step to; see ``write_direction``."""
    port: int
    metrics_port: int
    database: str
    study: Mapping[str, Scalar] = field(default_factory=dict)
    rounds: Mapping[str, Scalar] = field(default_factory=dict)
    log: Mapping[str, Scalar] = field(default_factory=dict)
    sections: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    """Further sections of the coordinator's configuration."""
    identities: dict[NodeId, Mapping[str, Scalar]] = field(default_factory=dict)
    """What a node's configuration says of its keys, where those are elsewhere."""
    daemon: str = ""
    """Which of several daemons of the coordinator this value starts and asks."""
    drain_seconds: float = 4.0
    """How long hospitals take at most to leave."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def coordinator_state(self) -> Path:
        return self.folder / COORDINATOR

    @property
    def database_url(self) -> str:
        """Of the coordinator's database."""
        return self.database or f"sqlite:///{self.coordinator_state / 'coordinator.db'}"

    @property
    def coordinator_config(self) -> Path:
        """The coordinator's configuration file, once it was started."""
        return self.folder / f"coordinator{self.daemon}.toml"

    def daemon_named(self, name: str, **standby: Scalar) -> Federation:
        """The same with another daemon of the coordinator, on ports of its own."""
        table = {"name": name, "poll_seconds": 0.2, "lease_seconds": 10.0, **standby}
        return replace(
            self,
            port=free_port(),
            metrics_port=free_port(),
            daemon=name,
            sections={**self.sections, "standby": table},
        )

    def start_coordinator(self) -> Daemon:
        self.write_coordinator_config()
        return Daemon("-m", "matl_coordinator.daemon", "-c", str(self.coordinator_config))

    def write_coordinator_config(self) -> Path:
        self.coordinator_config.write_text(toml_text(self._coordinator_table()))
        return self.coordinator_config

    def start_participant(self, node: NodeId, *, address: str = "", **changes: Scalar) -> Daemon:
        """The real daemon, training for real."""
        config = self.participant_config(node, address=address, changes=changes)
        return Daemon("-m", "matl_participant", "-c", str(config))

    def start_scripted(
        self, node: NodeId, *, address: str = "", policy: str = "", **changes: Scalar
    ) -> Daemon:
        """The real daemon with a scripted training worker.

        ``policy`` names the file in the federation's folder by which it requires evidence.
        """
        config = self.participant_config(node, address=address, policy=policy, changes=changes)
        module = "tests.system.scripted_hospital"
        return Daemon("-m", module, str(config), str(self.control(node)), str(self.direction))

    def control(self, node: NodeId) -> Path:
        """What a scripted worker is told; see ``scripted_worker``."""
        return self.folder / f"{node}.control"

    def trainings(self, node: NodeId) -> list[int]:
        """The rounds a scripted worker was asked to train, in order."""
        path = Path(f"{self.control(node)}.jobs")
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["round"] for line in lines]

    def account(self, node: NodeId) -> Account:
        """What the hospital's ledger says."""
        folder = self.folder / node / "ledger"
        path = ledger_path(folder, dataset="retina", study_id=STUDY)
        return replay(path.read_bytes()).account if path.exists() else Account()

    @contextmanager
    def operator(self) -> Iterator[OperationsClient]:
        """A connection with the operator's certificate."""
        with connect_operator(self.address, self.keys[OPERATOR].tls, COORDINATOR_NAME) as client:
            yield client

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value as Prometheus would scrape it; 0 for one not there yet."""
        with urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        wanted = name
        if labels:
            inner = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
            wanted = f"{name}{{{inner}}}"
        for line in text.splitlines():
            if line.rpartition(" ")[0] == wanted:
                return float(line.rpartition(" ")[2])
        return 0.0

    def _coordinator_table(self) -> Table:
        mine = self.keys[COORDINATOR]
        table: dict[str, Scalar | Mapping[str, Scalar]] = {
            "state_dir": str(self.coordinator_state),
            "federation": {
                "id": FEDERATION,
                "study": STUDY,
                "node_id": COORDINATOR,
                "allowlist": str(mine.allowlist),
            },
            "listen": {"address": self.address, "metrics": f"127.0.0.1:{self.metrics_port}"},
            "identity": {
                "tls_key": str(mine.tls.private_key),
                "tls_certificate": str(mine.tls.certificate_chain),
                "participant_authority": str(mine.tls.trusted_authority),
                "signing_key": str(mine.signing_key),
                "log_key": str(mine.log_key),
                **self.identities.get(COORDINATOR, {}),
            },
            "study": {
                "recipe": "full",
                "backbone": "small_gn",
                "image_size": IMAGE_SIZE,
                "views": 1,
                "rounds": 2,
                "spare_rounds": 8,
                "steps_per_round": 1,
                "learning_rate": 0.2,
                "epsilon": float("inf"),
                "send_after_seconds": 0.3,
                **self.study,
            },
            "rounds": {
                "interval_seconds": 0.0,
                "quorum": len(self.hospitals),
                "minimum_participants": len(self.hospitals),
                "maximum_participants": len(self.hospitals),
                "collect_seconds": 600.0,
                **self.rounds,
            },
            "holdout": {"images": str(self.images / "holdout")},
            "log": dict(self.log),
            "worker": {"device": "cpu", "aggregation_threads": 1},
            **self.sections,
        }
        if self.database:
            table["database"] = self.database
        return table

    def participant_config(
        self, node: NodeId, *, address: str, changes: Mapping[str, Scalar], policy: str = ""
    ) -> Path:
        """Write a hospital's configuration file; ``address`` of the coordinator if not empty."""
        mine = self.keys[node]
        attestation = {"policy": str(self.folder / f"{policy}.toml")} if policy else None
        table: Table = {
            "state_dir": str(self.folder / node),
            "identity": {
                "node_id": node,
                "tls_key": str(mine.tls.private_key),
                "tls_certificate": str(mine.tls.certificate_chain),
                "signing_key": str(mine.signing_key),
                "witness_key": str(mine.witness_key),
                **self.identities.get(node, {}),
            },
            "coordinator": {
                "address": address or self.address,
                "spiffe_id": str(COORDINATOR_NAME),
                "authority": str(mine.tls.trusted_authority),
                "signing_key": str(mine.coordinator_signing_key),
                "log_key": str(mine.log_verifier_key),
            },
            "data": {"images": str(self.images / node), "declared_patients": PATIENTS},
            "privacy": {"max_epsilon": float("inf"), **changes},
            "training": {"device": "cpu", "workers": 1},
            "daemon": {
                "poll_seconds": 30,
                "drain_seconds": self.drain_seconds,
                "witness_seconds": 0.2,
                "logs": "json",
            },
            **({"attestation": attestation} if attestation else {}),
        }
        path = self.folder / f"{node}.toml"
        path.write_text(toml_text(table))
        return path


@dataclass(frozen=True)
class Material:
    """What does not change from study to study, made once."""

    images: Path
    direction: Path


def prepare_material(folder: Path) -> Material:
    """Images of every data set, and the direction of scripted updates."""
    write_images(folder / "holdout", per_class=16, seed=0)
    for seed, node in enumerate((*HOSPITALS, *EXTRA_HOSPITALS), start=1):
        write_images(folder / node, per_class=3, seed=seed)
    direction = folder / "direction.f32"
    command = (sys.executable, "-m", "tests.system.write_direction")
    subprocess.run([*command, folder / "holdout", direction], cwd=ROOT, check=True)
    return Material(folder, direction)


def found_federation(
    folder: Path,
    material: Material,
    *,
    hospitals: tuple[NodeId, ...] = HOSPITALS,
    database: str = "",
    study: Mapping[str, Scalar] | None = None,
    rounds: Mapping[str, Scalar] | None = None,
    log: Mapping[str, Scalar] | None = None,
) -> Federation:
    """Make keys; nothing runs yet. ``study``, ``rounds`` and ``log`` change settings."""
    wanted = DevelopmentFederation(
        federation=FEDERATION,
        coordinator=COORDINATOR,
        participants={node: Enrolment(PATIENTS) for node in hospitals},
        operators=(OPERATOR,),
    )
    return Federation(
        folder=folder,
        keys=create_development_keys(folder / "keys", wanted, now=datetime.now(UTC)),
        hospitals=hospitals,
        images=material.images,
        direction=material.direction,
        port=free_port(),
        metrics_port=free_port(),
        database=database,
        study=study or {},
        rounds=rounds or {},
        log=log or {},
    )


def write_images(folder: Path, *, per_class: int, seed: int) -> None:
    """Small noisy images, the brighter the higher their level, and their labels."""
    folder.mkdir(parents=True)
    draws = np.random.default_rng(seed)
    rows = []
    for number in range(per_class * CLASSES):
        level = number % CLASSES
        pixels = draws.normal(40.0 + 40.0 * level, 10.0, (IMAGE_SIZE, IMAGE_SIZE, 3))
        name = f"image_{number:03d}"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{name}.png")
        rows.append((name, level))
    with (folder / "labels_deidentified.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("image_id", "dr_level"), *rows])


def logged_events(federation: Federation) -> list[Event]:
    """The log's entries, verified as ``matl audit verify`` does, each one opened."""
    uri = federation.log.get("encryption_key")
    place = federation.coordinator_state / "log-encryption.key"
    key = load_wrapping_key(parse_token_uri(str(uri)) if uri else place)
    log_key = load_verifier_key(federation.keys[COORDINATOR].log_verifier_key)
    with _reading(federation) as reader:
        keys = reader.data_keys(key)
        found = verify_log(DatabaseSource(reader), Believed(log_key, keys=keys))
        events: list[Event] = [
            dict(each) for each in opened_entries(reader.pages(), keys, on_damage=pytest.fail)
        ]
    assert found.opened == found.tally.size == len(events)
    return events


def logged_root(federation: Federation, *, size: int) -> str:
    """The root hash of the log's first ``size`` leaves."""
    with _reading(federation) as reader:
        return root_from(size, reader.node).hex()


def logged_leaf(federation: Federation, index: int) -> str:
    """The hash of one leaf."""
    with _reading(federation) as reader:
        return reader.node(0, index).hex()


@contextmanager
def _reading(federation: Federation) -> Iterator[LogReader]:
    engine = create_database_engine(federation.database_url)
    try:
        yield LogReader(engine)
    finally:
        engine.dispose()


def toml_text(table: Table) -> str:
    """A table of scalars and of tables of scalars, as TOML."""
    top = [f"{key} = {_scalar(value)}" for key, value in table.items() if _is_scalar(value)]
    sections = [
        "\n".join([f"[{name}]", *(f"{key} = {_scalar(each)}" for key, each in inner.items())])
        for name, inner in table.items()
        if isinstance(inner, Mapping)
    ]
    return "\n".join([*top, *sections]) + "\n"


def _is_scalar(value: object) -> bool:
    return not isinstance(value, Mapping)


def _scalar(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value)
        case _:
            return repr(value)
