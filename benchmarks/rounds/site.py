"""A federation's files on this machine: keys, configurations, and a model of any size.

Starts nothing. Development keys; nobody's data: each hospital has a labels file without a row.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from matl.demo.federation import Scalar, Table, toml_text
from matl.demo.run import Program, free_port
from matl_common.clock import utc_now
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.development import (
    DevelopmentFederation,
    Enrolment,
    create_development_keys,
)
from matl_common.identity.node_folder import NodeFolder
from matl_common.ids import FederationId, NodeId

FEDERATION: Final = FederationId("bench")
COORDINATOR: Final = NodeId("coordinator")
NAME: Final = SpiffeId(FEDERATION, Role.COORDINATOR, COORDINATOR)
PATIENTS: Final = 1000
MILLION: Final = {"weights": [1000, 1000]}
"""Tensors of a model of a million parameters."""
_STAGES: Final = ((64, 3), (128, 4), (256, 6), (512, 3))
_EXPANSION: Final = 4

Tensors = Mapping[str, Sequence[int]]


def resnet50() -> Tensors:
    """Shapes of torchvision's ResNet-50 with ImageNet's head: 267 tensors, 102.4 MB."""
    return dict(_resnet50())


def _resnet50() -> Iterator[tuple[str, list[int]]]:
    yield from _convolution("conv1", "bn1", [64, 3, 7, 7])
    inputs = 64
    for stage, (width, blocks) in enumerate(_STAGES, start=1):
        outputs = width * _EXPANSION
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            yield from _convolution(f"{name}.conv1", f"{name}.bn1", [width, inputs, 1, 1])
            yield from _convolution(f"{name}.conv2", f"{name}.bn2", [width, width, 3, 3])
            yield from _convolution(f"{name}.conv3", f"{name}.bn3", [outputs, width, 1, 1])
            if block == 0:
                shortcut = f"{name}.downsample"
                yield from _convolution(f"{shortcut}.0", f"{shortcut}.1", [outputs, inputs, 1, 1])
            inputs = outputs
    yield "fc.weight", [1000, inputs]
    yield "fc.bias", [1000]


def _convolution(name: str, norm: str, shape: list[int]) -> Iterator[tuple[str, list[int]]]:
    yield f"{name}.weight", shape
    for each in ("weight", "bias", "running_mean", "running_var"):
        yield f"{norm}.{each}", [shape[0]]


def bytes_of(tensors: Tensors) -> int:
    """Of all values, as float32."""
    return 4 * sum(math.prod(shape) for shape in tensors.values())


@dataclass(frozen=True, slots=True)
class Site:
    """Where everything of one federation lies, and who takes part."""

    folder: Path
    hospitals: tuple[NodeId, ...]
    tensors: Tensors
    rounds: int
    schedule: str = "interval"
    """``manual``: no round opens by itself."""
    keep_spooled: int = 2
    poll_seconds: int = 30
    port: int = field(default_factory=free_port)
    keys: dict[NodeId, NodeFolder] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        """The coordinator's."""
        return self.folder / COORDINATOR

    def log(self, program: NodeId) -> Path:
        """What a program says, whoever takes part in it."""
        return self.folder / f"{program}.log"

    def write(self) -> None:
        """Make keys and configurations."""
        wanted = DevelopmentFederation(
            federation=FEDERATION,
            coordinator=COORDINATOR,
            participants=dict.fromkeys(self.hospitals, Enrolment(PATIENTS)),
            operators=(NodeId("operator"),),
        )
        self.keys.update(create_development_keys(self.folder / "keys", wanted, now=utc_now()))
        data = self.folder / "data"
        data.mkdir()
        (data / "labels_deidentified.csv").write_text("image_id,dr_level\n", encoding="utf-8")
        (self.folder / "tensors.json").write_text(json.dumps(self.tensors), encoding="utf-8")
        self.state.mkdir()
        self._config(COORDINATOR).write_text(toml_text(self._coordinator()), encoding="utf-8")
        for node in self.hospitals:
            (self.folder / node).mkdir()
            self._config(node).write_text(toml_text(self._hospital(node)), encoding="utf-8")

    def coordinator_program(self) -> Program:
        """The daemon."""
        module = "benchmarks.rounds.coordinator"
        config, tensors = str(self._config(COORDINATOR)), str(self.folder / "tensors.json")
        argv = (sys.executable, "-m", module, config, tensors)
        return Program(COORDINATOR, argv, self.log(COORDINATOR))

    def hospital_programs(self, *, processes: int) -> tuple[Program, ...]:
        """All hospitals, shared out over processes; as many processes as hospitals is one each."""
        return tuple(
            Program(
                NodeId(f"hospitals_{number}"),
                (
                    *(sys.executable, "-m", "benchmarks.rounds.hospitals"),
                    *(str(self._config(node)) for node in self.hospitals[number::processes]),
                ),
                self.log(NodeId(f"hospitals_{number}")),
            )
            for number in range(processes)
        )

    def _config(self, node: NodeId) -> Path:
        return self.folder / f"{node}.toml"

    def _coordinator(self) -> Table:
        mine = self.keys[COORDINATOR]
        study: dict[str, Scalar] = {
            "recipe": "full",
            "backbone": "resnet50_gn",
            "image_size": 64,
            "views": 1,
            "rounds": self.rounds,
            "spare_rounds": 0,
            "steps_per_round": 1,
            # Bounds what an update may do; nothing is trained with it.
            "learning_rate": 1000.0,
            "epsilon": float("inf"),
            "send_after_seconds": 0.0,
        }
        # Without images to score on, what protects is a robust rule; see docs/robustness.md.
        rounds: dict[str, Scalar] = {
            "schedule": self.schedule,
            "interval_seconds": 0.0,
            "quorum": len(self.hospitals),
            "minimum_participants": len(self.hospitals),
            "maximum_participants": len(self.hospitals),
            "collect_seconds": 3600.0,
            "rule": "geometric_median",
            "byzantine": 1,
            "keep_spooled": self.keep_spooled,
        }
        return {
            "state_dir": str(self.state),
            "federation": {
                "id": FEDERATION,
                "study": "bench",
                "node_id": COORDINATOR,
                "allowlist": str(mine.allowlist),
            },
            "listen": {"address": f"127.0.0.1:{self.port}", "metrics": ""},
            "identity": {
                "tls_key": str(mine.tls.private_key),
                "tls_certificate": str(mine.tls.certificate_chain),
                "participant_authority": str(mine.tls.trusted_authority),
                "signing_key": str(mine.signing_key),
                "log_key": str(mine.log_key),
            },
            "study": study,
            "rounds": rounds,
        }

    def _hospital(self, node: NodeId) -> Table:
        mine = self.keys[node]
        return {
            "state_dir": str(self.folder / node),
            "identity": {
                "node_id": node,
                "tls_key": str(mine.tls.private_key),
                "tls_certificate": str(mine.tls.certificate_chain),
                "signing_key": str(mine.signing_key),
                **({"witness_key": str(mine.witness_key)} if mine.witness_key.exists() else {}),
            },
            "coordinator": {
                "address": f"127.0.0.1:{self.port}",
                "spiffe_id": str(NAME),
                "authority": str(mine.tls.trusted_authority),
                "signing_key": str(mine.coordinator_signing_key),
                "log_key": str(mine.log_verifier_key),
            },
            "data": {"images": str(self.folder / "data"), "declared_patients": PATIENTS},
            "privacy": {"max_epsilon": float("inf")},
            "training": {"device": "cpu", "workers": 1},
            "daemon": {"poll_seconds": self.poll_seconds, "drain_seconds": 1.0, "logs": "json"},
        }
