"""``safeguards.toml``: what an audit cannot find out by itself, and who answers for it.

Documents are named by their SHA-256; where one is at hand as well, its digest is compared.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from matl_common.configuration import Address, FilePath, KeyReference, NodeName, Section, load
from matl_common.errors import InvalidInputError
from matl_common.ids import parse_digest

DEFAULT_REGISTRY = "safeguards.toml"
"""Beside the daemon's own configuration."""


def _digest(text: str) -> str:
    try:
        return parse_digest(text)
    except InvalidInputError as error:
        raise ValueError(str(error)) from error


DigestText = Annotated[str, AfterValidator(_digest)]


class Document(Section):
    """A signed document, kept elsewhere."""

    sha256: DigestText
    document: FilePath | None = None
    """The document itself, where it is at hand."""
    signed: date
    by: Annotated[str, Field(min_length=1, max_length=200)]
    """Who answers for it."""


class Agreement(Document):
    """A business associate agreement, or a data use agreement, with one hospital."""

    node: NodeName
    kind: Literal["BAA", "DUA"]
    expires: date


class Upload(Document):
    """A report that others wrote, or an attestation."""

    kind: Literal["mfa", "patching", "penetration-test", "segmentation", "vulnerability-scan"]


class Route(Document):
    """By which paragraph of 164.514 the images count as de-identified."""

    route: Literal["expert-determination", "safe-harbor", "limited-data-set"]


class Probes(Section):
    """What probes need beyond the coordinator's own files."""

    authority_key: KeyReference | None = None
    """The participants' authority's, to make bad certificates with. If unset:
    ``participant-ca.key`` in the federation folder, where the allow-list lies in one."""
    operator: FilePath | None = None
    """``operator.toml``; beside this file if unset."""
    reader_database: str = ""
    """URL of an auditor's user, who may only read."""
    retention_database: str = ""
    """URL of the user who puts months away."""
    idle_patience_seconds: float = Field(default=90.0, gt=0.0, le=3600.0)
    """The longest idle limit that an audit waits for."""
    ocr: bool = False
    """Look for text in the pixels of every image as well; a second or so for each."""
    dashboard: Address = ""
    """``host:port`` of the dashboard on this machine."""


class Places(Section):
    """Where things lie that no daemon knows of."""

    backups: FilePath | None = None
    """The folder that holds backups, each a folder that ``matl backup`` wrote."""
    backup_days: int = Field(default=7, ge=1, le=365)
    """How old the newest of them may be."""
    scratch: FilePath | None = None
    """Where a backup is restored to for the drill; the system's folder if unset."""
    data: list[FilePath] = Field(default_factory=list)
    """Further folders with data to scan."""
    lock: FilePath | None = None
    """The lock file that this software was installed from."""


class Network(Section):
    """What is meant to be reachable."""

    listening: list[Address] = Field(default_factory=list)
    """Sockets besides the daemon's own; ``0.0.0.0`` stands for every address."""


class Registry(Section):
    """The whole file."""

    agreements: list[Agreement] = Field(default_factory=list)
    uploads: list[Upload] = Field(default_factory=list)
    deidentification: Route | None = None
    probes: Probes = Probes()
    places: Places = Places()
    network: Network = Network()


def load_registry(path: Path | None, *, beside: Path) -> Registry:
    """The registry that was named, or the one beside the daemon's configuration, or none.

    Raises:
        ConfigurationError: it cannot be read, or holds what it cannot.
    """
    found = path or beside.resolve().parent / DEFAULT_REGISTRY
    if path is None and not found.exists():
        return Registry()
    return load(Registry, found, overrides={})
