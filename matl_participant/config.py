"""The participant's configuration: one TOML file, read once, every key checked.

The only module of the participant that reads the environment. Relative paths are
relative to the file they stand in. Keys are named by their paths; nothing here reads
a key, an image or a label.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)

from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.certificates import Role, SpiffeId, parse_spiffe_id
from matl_common.identity.tls import TlsFiles
from matl_common.ids import NodeId, parse_node_id
from matl_participant.core.limits import PrivacyLimits

LABELS_FILE = "labels_deidentified.csv"
_FOLDER = "folder"
_ENVIRONMENT = {
    "MATL_NODE_ID": ("identity", "node_id"),
    "MATL_PRIVATE_KEY": ("identity", "tls_key"),
    "MATL_COORDINATOR_ADDRESS": ("coordinator", "address"),
}


def _resolved(path: Path, info: ValidationInfo) -> Path:
    folder = Path(info.context[_FOLDER]) if info.context else Path.cwd()
    return folder / path.expanduser()


def _node_id(text: str) -> str:
    try:
        return parse_node_id(text)
    except InvalidInputError as error:
        raise ValueError(str(error)) from error


def _coordinator(text: str) -> str:
    try:
        spiffe_id = parse_spiffe_id(text)
    except InvalidInputError as error:
        raise ValueError(str(error)) from error
    if spiffe_id.role is not Role.COORDINATOR:
        raise ValueError("must name a coordinator: spiffe://<federation>/coordinator/<node_id>")
    return text


def _host_and_port(text: str) -> str:
    host, _, port = text.rpartition(":")
    if text and (not host or not port.isdigit() or not 0 < int(port) < 1 << 16):
        raise ValueError("must look like host:port")
    return text


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


FilePath = Annotated[Path, Field(strict=False), AfterValidator(_resolved)]
Name = Annotated[str, AfterValidator(_node_id)]
Address = Annotated[str, AfterValidator(_host_and_port)]
Seconds = Annotated[float, Field(gt=0, le=366 * 86400)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class Identity(_Section):
    """Who this hospital is."""

    node_id: Name
    tls_key: FilePath
    tls_certificate: FilePath
    signing_key: FilePath


class Coordinator(_Section):
    """The one coordinator this hospital speaks to, and how it is known."""

    address: Annotated[Address, AfterValidator(_not_empty)]
    spiffe_id: Annotated[str, AfterValidator(_coordinator)]
    authority: FilePath
    """The certificate authority of coordinators, which issues no other certificates."""
    signing_key: FilePath
    """Public key of the coordinator's plans, round starts and receipts."""

    @property
    def name(self) -> SpiffeId:
        return parse_spiffe_id(self.spiffe_id)


class Data(_Section):
    """The hospital's images and labels. They never leave it."""

    dataset: Name = "retina"
    """Names the data set in the privacy ledger: one budget for each data set and study."""
    images: FilePath
    labels: FilePath | None = None
    """CSV; ``labels_deidentified.csv`` in the images' folder or beside it if unset."""
    on_bad_image: Literal["skip", "fail"] = "skip"
    declared_patients: int = Field(ge=1, le=10_000_000)
    """Rounded and public; normalises updates, so that the exact number stays private."""

    @property
    def labels_file(self) -> Path:
        if self.labels is not None:
            return self.labels
        inside = self.images / LABELS_FILE
        return inside if inside.exists() else self.images.parent / LABELS_FILE


class Privacy(_Section):
    """What this hospital allows a study, whatever the coordinator asks."""

    max_epsilon: float = Field(default=1.0, gt=0.0)
    """``inf`` allows studies that add no noise."""
    max_delta: float = Field(default=1e-5, gt=0.0, lt=1.0)
    attempts_per_round: int = Field(default=1, ge=1, le=10)
    """How often one round may be charged when training is interrupted."""

    @property
    def limits(self) -> PrivacyLimits:
        return PrivacyLimits(self.max_epsilon, self.max_delta)


class Training(_Section):
    """What a training job may use."""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    device_memory_bytes: int | None = Field(default=None, ge=1 << 20)
    workers: int = Field(default=2, ge=1, le=64)
    physical_batch: int = Field(default=8, ge=1, le=4096)
    memory_bytes: int = Field(default=8 << 30, ge=256 << 20)
    """Resident memory of the training process; above it, the process is killed."""
    timeout_seconds: Seconds = 6 * 3600.0
    keep_warm_seconds: Annotated[float, Field(ge=0, le=86400)] = 60.0
    weights_file: FilePath | None = None
    """The public backbone's weights, where they are not where its package keeps them."""
    cache_bytes: int = Field(default=4 << 30, ge=1 << 20)
    """Disk space for cached features."""


class Daemon(_Section):
    """How the daemon itself behaves."""

    metrics: Address = ""
    """Where Prometheus scrapes, for example 127.0.0.1:9471; empty for nowhere."""
    logs: Literal["auto", "json", "console"] = "auto"
    poll_seconds: int = Field(default=30, ge=1, le=3600)
    """How long one question for the next round stays open."""
    drain_seconds: Annotated[float, Field(ge=0, le=3600)] = 60.0
    """How long a stopping daemon waits for a training that has been charged already."""


class Config(_Section):
    """The whole configuration of a participant."""

    state_dir: FilePath
    identity: Identity
    coordinator: Coordinator
    data: Data
    privacy: Privacy = Privacy()
    training: Training = Training()
    daemon: Daemon = Daemon()

    @property
    def node_id(self) -> NodeId:
        return NodeId(self.identity.node_id)

    @property
    def tls(self) -> TlsFiles:
        return TlsFiles(
            private_key=self.identity.tls_key,
            certificate_chain=self.identity.tls_certificate,
            trusted_authority=self.coordinator.authority,
        )

    def printable(self) -> dict[str, Any]:
        """The effective configuration. Keys appear as the paths of their files."""
        shown = self.model_dump(mode="json")
        shown["data"]["labels"] = str(self.data.labels_file)
        return shown


def load_config(path: Path, *, environment: Mapping[str, str] = os.environ) -> Config:
    """Read the file, then ``MATL_NODE_ID``, ``MATL_PRIVATE_KEY`` and
    ``MATL_COORDINATOR_ADDRESS`` over it.

    Raises:
        ConfigurationError: unreadable, not TOML, an unknown key, or a value out of range;
            the message names the key and never the value.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    for variable, (section, key) in _ENVIRONMENT.items():
        _override(table, section, key, environment.get(variable))
    try:
        return Config.model_validate(table, context={_FOLDER: path.resolve().parent})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'file'}: {each['msg']}"
            for each in error.errors(include_input=False, include_url=False)
        )
        raise ConfigurationError(f"{path}: {problems}") from None


def _override(table: dict[str, Any], section: str, key: str, value: str | None) -> None:
    if value and isinstance(table.setdefault(section, {}), dict):
        table[section][key] = value
