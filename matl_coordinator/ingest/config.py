"""A front end's configuration: one TOML file, read once, every key checked.

Relative paths are relative to the file they stand in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from matl_common.configuration import (
    Address,
    AddressList,
    FederationName,
    FilePath,
    KeyReference,
    NodeName,
    Seconds,
    Section,
    load,
)
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.tls import TlsPlace, tls_place
from matl_common.ids import FederationId, NodeId
from matl_common.logs import LogStyle


class Federation(Section):
    """For whom this front end stands."""

    id: FederationName
    coordinator: NodeName
    """The coordinator's name, as in its certificate."""


class Listen(Section):
    """Where the front end can be reached."""

    address: Address = "0.0.0.0:8470"
    metrics: Address = "127.0.0.1:9472"
    """Where Prometheus scrapes, and /healthy answers; empty for nowhere."""
    logs: LogStyle = "auto"
    """``console`` for people, ``json`` for machines; ``auto`` looks for a terminal."""


class Identity(Section):
    """What hospitals are shown, and who may connect."""

    tls_key: KeyReference
    tls_certificate: FilePath
    """In the coordinator's name, from the authority of coordinators."""
    participant_authority: FilePath

    @property
    def tls(self) -> TlsPlace:
        return tls_place(self.tls_key, self.tls_certificate, self.participant_authority)


class Leader(Section):
    """The coordinator behind, and what this front end is to it."""

    address: AddressList
    """``host:port``; of a coordinator with a standby both, with a comma between them."""
    tls_key: KeyReference
    tls_certificate: FilePath
    """This front end's own, from the authority of participants; its role is ``front-end``."""
    coordinator_authority: FilePath
    poll_seconds: Seconds = 1.0
    """How often it is asked whether it leads."""
    timeout_seconds: Seconds = 10.0
    """How long it may take to say so before another address is tried."""

    @property
    def tls(self) -> TlsPlace:
        return tls_place(self.tls_key, self.tls_certificate, self.coordinator_authority)


class Limits(Section):
    """Bounds on what others can make the front end hold."""

    idle_seconds: Seconds = 60.0
    """An upload from which nothing comes for this long is cut; it can be resumed."""
    drain_seconds: Annotated[float, Field(ge=0, le=600)] = 10.0


class FrontEndConfig(Section):
    """The whole configuration of a front end."""

    spool: FilePath
    """The folder ``spool`` in the coordinator's ``state_dir``, as this machine sees it."""
    models: FilePath | None = None
    """The folder ``models`` there, which hospitals are then sent models from; without it the
    coordinator sends them."""
    federation: Federation
    listen: Listen = Listen()
    identity: Identity
    leader: Leader
    limits: Limits = Limits()

    @property
    def coordinator_name(self) -> SpiffeId:
        """Whose certificate the leader must show."""
        return SpiffeId(
            FederationId(self.federation.id),
            Role.COORDINATOR,
            NodeId(self.federation.coordinator),
        )

    def printable(self) -> dict[str, Any]:
        """The effective configuration; there is no secret in it."""
        return self.model_dump(mode="json")


def load_front_end_config(path: Path) -> FrontEndConfig:
    """Read the file.

    Raises:
        ConfigurationError: unreadable, not TOML, an unknown key, or a value out of range;
            the message names the key and never the value.
    """
    return load(FrontEndConfig, path, overrides={})
