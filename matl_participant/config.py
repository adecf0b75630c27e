"""The participant's configuration: one TOML file, read once, every key checked.

The only module of the participant that takes settings from the environment. Relative paths
are relative to the file they stand in. Keys are named by their paths; nothing here reads
a key, an image or a label.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from matl_common.configuration import (
    Address,
    AddressList,
    CoordinatorName,
    FilePath,
    KeyReference,
    NodeName,
    Seconds,
    Section,
    addresses_of,
    labels_beside,
    load,
)
from matl_common.identity.certificates import SpiffeId, parse_spiffe_id
from matl_common.identity.tls import TlsPlace, tls_place
from matl_common.ids import NodeId
from matl_common.logs import LogStyle
from matl_participant.core.limits import PrivacyLimits
from matl_participant.core.spending import DatasetLimit

_ENVIRONMENT = {
    "MATL_NODE_ID": ("identity", "node_id"),
    "MATL_PRIVATE_KEY": ("identity", "tls_key"),
    "MATL_COORDINATOR_ADDRESS": ("coordinator", "address"),
}


class Identity(Section):
    """Who this hospital is."""

    node_id: NodeName
    tls_key: KeyReference
    tls_certificate: FilePath
    signing_key: KeyReference
    witness_key: KeyReference | None = None
    """Ed25519; cosigns the log's checkpoints. Without one this hospital does not witness."""


class Coordinator(Section):
    """The one coordinator this hospital speaks to, and how it is known."""

    address: AddressList
    """``host:port``; of a coordinator with a standby both, with a comma between them."""
    spiffe_id: CoordinatorName
    authority: FilePath
    """The certificate authority of coordinators, which issues no other certificates."""
    signing_key: FilePath
    """Public key of the coordinator's plans, round starts and receipts."""
    log_key: FilePath | None = None
    """The log's C2SP verifier key, one line; a hospital with a ``witness_key`` needs it."""

    @property
    def name(self) -> SpiffeId:
        return parse_spiffe_id(self.spiffe_id)

    @property
    def addresses(self) -> tuple[str, ...]:
        return addresses_of(self.address)


class Data(Section):
    """The hospital's images and labels. They never leave it."""

    dataset: NodeName = "retina"
    """Names the data set in the privacy ledger: one budget for each data set and study."""
    images: FilePath
    labels: FilePath | None = None
    """CSV; ``labels_deidentified.csv`` in the images' folder or beside it if unset."""
    on_bad_image: Literal["skip", "fail"] = "skip"
    declared_patients: int = Field(ge=1, le=10_000_000)
    """Rounded and public; normalises updates, so that the exact number stays private."""
    phi_scan: Literal["refuse", "warn", "off"] = "refuse"
    """What is done about labels or images that hold what may identify patients."""
    phi_ocr: bool = False
    """Also look for text in the pixels, with the system's ``tesseract``; a second for each."""
    images_per_patient: int | None = Field(default=None, ge=1, le=1000)
    """The most images any patient has, where the labels have no ``group_key``; without
    either, every image is taken for a patient of its own."""

    @property
    def labels_file(self) -> Path:
        if self.labels is not None:
            return self.labels
        return labels_beside(self.images)


class Privacy(Section):
    """What this hospital allows a study, whatever the coordinator asks."""

    max_epsilon: float = Field(default=1.0, gt=0.0)
    """``inf`` allows studies that add no noise."""
    max_delta: float = Field(default=1e-5, gt=0.0, lt=1.0)
    dataset_epsilon: float | None = Field(default=None, gt=0.0)
    """What all studies together may cost the patients of the data set: ``max_epsilon`` if
    unset, and without limit if ``inf``."""
    dataset_delta: float | None = Field(default=None, gt=0.0, lt=1.0)
    """The δ at which that holds; ``max_delta`` if unset."""
    min_send_after_seconds: float = Field(default=0.0, ge=0.0)
    """The least ``send_after_seconds`` of a study: as long as a look at the data may take here."""
    require_discrete_noise: bool = False
    """Refuse studies without the hardened mechanism, which is exact and costs more noise."""
    allow_evaluation: bool = True
    """Tell a study that asks for it, each round, how many patients its model gets right, with
    noise and at a price; if not, take part without."""
    attempts_per_round: int = Field(default=1, ge=1, le=10)
    """How often one round may be charged when training is interrupted."""

    @property
    def limits(self) -> PrivacyLimits:
        return PrivacyLimits(
            self.max_epsilon,
            self.max_delta,
            self.min_send_after_seconds,
            self.require_discrete_noise,
        )

    @property
    def dataset_limit(self) -> DatasetLimit:
        return DatasetLimit(
            self.max_epsilon if self.dataset_epsilon is None else self.dataset_epsilon,
            self.max_delta if self.dataset_delta is None else self.dataset_delta,
            is_implied=self.dataset_epsilon is None,
        )


class Attestation(Section):
    """What the coordinator must show of its machine before this hospital trains or sends."""

    policy: FilePath
    """Which machines are accepted; see attestation.md."""
    period_seconds: Seconds = 3600.0
    """How long evidence counts. After a call that failed new evidence is needed in any case."""


class Training(Section):
    """What a training job may use."""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    device_memory_bytes: int | None = Field(default=None, ge=1 << 20)
    workers: int = Field(default=2, ge=1, le=64)
    """Processor threads, of all processes together."""
    processes: int | None = Field(default=None, ge=1, le=64)
    """That share the work; one for each GPU, or one, if unset."""
    physical_batch: int = Field(default=8, ge=1, le=4096)
    """Images that pass through the network together, in each process."""
    memory_bytes: int = Field(default=8 << 30, ge=256 << 20)
    """Resident memory of all training processes; above it, they are killed."""
    timeout_seconds: Seconds = 6 * 3600.0
    stall_seconds: Seconds = 600.0
    """A process that keeps the others waiting for longer ends the attempt."""
    keep_warm_seconds: Annotated[float, Field(ge=0, le=86400)] = 60.0
    weights_file: FilePath | None = None
    """The public backbone's weights, where they are not where its package keeps them."""
    cache_bytes: int = Field(default=4 << 30, ge=1 << 20)
    """Disk space for cached features."""

    @model_validator(mode="after")
    def _one_thread_each(self) -> Self:
        if self.processes is not None and self.processes > self.workers:
            raise ValueError("processes may not exceed workers: each takes a thread at least")
        return self


class Nodes(Section):
    """Other machines that train together with this one, over a link of their own."""

    count: int = Field(ge=2, le=64)
    """This machine included."""
    rendezvous: Address
    """``host:port`` of the participant's machine on the link; it listens while it trains."""
    interface: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@-]{1,15}$")]
    """This machine's end of the link, for example ``wg0``."""
    token: FilePath
    """A secret of at least 32 bytes, the same file on all machines."""
    link_is_isolated: bool
    """The operator's word that nobody else is on the link, or that it is encrypted."""

    @model_validator(mode="after")
    def _link_is_safe(self) -> Self:
        if not self.link_is_isolated:
            raise ValueError(
                "link_is_isolated must be true: what passes between the nodes has no noise yet, "
                "and gloo and nccl neither encrypt nor authenticate it. Use a cable or VLAN of "
                "their own, or WireGuard or IPsec, and say so"
            )
        if not self.rendezvous:
            raise ValueError("rendezvous must be host:port of the participant on the link")
        return self

    def seat(self, rank: int) -> dict[str, Any]:
        """What a training worker is told of them."""
        return {
            "count": self.count,
            "rank": rank,
            "rendezvous": self.rendezvous,
            "interface": self.interface,
            "token_file": str(self.token),
        }


class Daemon(Section):
    """How the daemon itself behaves."""

    metrics: Address = ""
    """Where Prometheus scrapes, and /healthy answers, for example 127.0.0.1:9471; empty for
    nowhere."""
    logs: LogStyle = "auto"
    poll_seconds: int = Field(default=30, ge=1, le=3600)
    """How long one question for the next round stays open."""
    drain_seconds: Annotated[float, Field(ge=0, le=3600)] = 60.0
    """How long a stopping daemon waits for a training that has been charged already, and, once
    the study is complete, for its last cosignature and proof."""
    witness_seconds: Seconds = 10.0
    """How often a witness asks for the log's checkpoint."""


class Config(Section):
    """The whole configuration of a participant."""

    state_dir: FilePath
    identity: Identity
    coordinator: Coordinator
    data: Data
    privacy: Privacy = Privacy()
    attestation: Attestation | None = None
    """With it, nothing is trained or sent without valid evidence (MODE2)."""
    training: Training = Training()
    nodes: Nodes | None = None
    """Without them, this machine trains alone."""
    daemon: Daemon = Daemon()

    @model_validator(mode="after")
    def _witness_knows_the_log(self) -> Self:
        if self.identity.witness_key is not None and self.coordinator.log_key is None:
            raise ValueError(
                "identity.witness_key needs coordinator.log_key: a file with the log's verifier "
                "key, one line that the coordinator's operator publishes "
                "(<federation>.matl.internal/log+<id>+<key>)"
            )
        return self

    @property
    def node_id(self) -> NodeId:
        return NodeId(self.identity.node_id)

    @property
    def tls(self) -> TlsPlace:
        return tls_place(
            self.identity.tls_key, self.identity.tls_certificate, self.coordinator.authority
        )

    def printable(self) -> dict[str, Any]:
        """The effective configuration. Keys appear as the paths of their files."""
        shown = self.model_dump(mode="json")
        shown["data"]["labels"] = str(self.data.labels_file)
        together = self.privacy.dataset_limit
        shown["privacy"] |= {
            "dataset_epsilon": together.epsilon,
            "dataset_delta": together.delta,
        }
        return shown


def load_config(path: Path, *, environment: Mapping[str, str] = os.environ) -> Config:
    """Read the file, then ``MATL_NODE_ID``, ``MATL_PRIVATE_KEY`` and
    ``MATL_COORDINATOR_ADDRESS`` over it.

    Raises:
        ConfigurationError: unreadable, not TOML, an unknown key, or a value out of range;
            the message names the key and never the value.
    """
    overrides = {target: environment.get(name) for name, target in _ENVIRONMENT.items()}
    return load(Config, path, overrides=overrides)


def states_address(path: Path) -> bool:
    """Whether a file says by itself where the coordinator is.

    A file that cannot be read says nothing; ``load_config`` tells why.
    """
    try:
        section = tomllib.loads(path.read_text(encoding="utf-8")).get("coordinator")
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(section, dict) and bool(section.get("address"))
