"""What is audited: one node's configuration, its registry, and its log where it has one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from matl.compliance.control import NotTestedError, Side
from matl.compliance.logbook import Logbook
from matl.compliance.registry import Registry
from matl.doctor.examination import BrokenLinkError
from matl.doctor.handshake import connection_found
from matl_common.host_port import dialled_from_here
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.ids import FederationId, NodeId
from matl_coordinator.config import Config as CoordinatorConfig
from matl_participant.config import Config as ParticipantConfig


@dataclass(frozen=True, slots=True)
class CoordinatorSite:
    """A coordinator's machine.

    Attributes:
        file: what its configuration was read from.
        log: its log.
        data: folders and files to scan for what identifies patients.
        key: for the keyed hashes of what a scan finds.
        processes: where the kernel tells of sockets and mounts.
    """

    config: CoordinatorConfig
    file: Path
    registry: Registry
    log: Logbook
    now: datetime
    data: tuple[Path, ...]
    key: bytes
    processes: Path = Path("/proc")

    @property
    def side(self) -> Side:
        """What it is."""
        return Side.COORDINATOR

    @property
    def state_dir(self) -> Path:
        """Where its state lies."""
        return self.config.state_dir

    @property
    def name(self) -> SpiffeId:
        """Its own."""
        federation = self.config.federation
        return SpiffeId(FederationId(federation.id), Role.COORDINATOR, NodeId(federation.node_id))

    @property
    def address(self) -> str:
        """Where it can be dialled from its own machine."""
        return dialled_from_here(self.config.listen.address)

    @property
    def listening(self) -> tuple[str, ...]:
        """What it is configured to listen on."""
        both = (self.config.listen.address, self.config.listen.metrics)
        return tuple(each for each in both if each)


@dataclass(frozen=True, slots=True)
class ParticipantSite:
    """A hospital's machine; attributes as of ``CoordinatorSite``."""

    config: ParticipantConfig
    file: Path
    registry: Registry
    now: datetime
    data: tuple[Path, ...]
    key: bytes
    processes: Path = Path("/proc")

    @property
    def side(self) -> Side:
        """What it is."""
        return Side.PARTICIPANT

    @property
    def state_dir(self) -> Path:
        """Where its state lies."""
        return self.config.state_dir

    @property
    def name(self) -> SpiffeId:
        """Its own."""
        federation = FederationId(self.config.coordinator.name.federation)
        return SpiffeId(federation, Role.PARTICIPANT, self.config.node_id)

    @property
    def listening(self) -> tuple[str, ...]:
        """What it is configured to listen on."""
        return tuple(each for each in (self.config.daemon.metrics,) if each)


Site = CoordinatorSite | ParticipantSite


def at_coordinator(site: Site) -> CoordinatorSite:
    """The site of a control that only coordinators have.

    Raises:
        NotTestedError: it is a hospital's.
    """
    if isinstance(site, ParticipantSite):
        raise NotTestedError("it is probed on the coordinator's machine")
    return site


def answering(site: Site) -> CoordinatorSite:
    """The site of a control that takes a coordinator that runs.

    Raises:
        NotTestedError: it does not run, or it is a hospital's.
    """
    here = at_coordinator(site)
    try:
        connection_found(here.address)
    except BrokenLinkError as error:
        raise NotTestedError(str(error), "start the coordinator") from error
    return here
