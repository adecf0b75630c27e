"""A whole federation's keys and certificates in one folder, for development.

Made by the same steps as a real federation's, and at once: the folder is complete or does not
exist. Every private key of every node lies side by side, which no real federation may do; the
folder says so.

    DEVELOPMENT-KEYS.json    what the folder was made for
    <node_id>/               a ``NodeFolder`` for every node
    and the rest of a ``FederationFolder``
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType

from matl_common.durable import fsync_directory
from matl_common.errors import ConfigurationError
from matl_common.identity.allowlist import MAX_WITNESSES
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.enrolling import (
    Request,
    make_answer,
    make_request,
    parse_answer,
    parse_request,
)
from matl_common.identity.federation_folder import Facts, FederationFolder
from matl_common.identity.installing import install
from matl_common.identity.node_folder import (
    NodeFolder,
    keys_in,
    make_missing_keys,
    write_public,
)
from matl_common.ids import FederationId, NodeId

MARKER = "DEVELOPMENT-KEYS.json"
KEYS_VERSION = 2
"""Of which files each node has; a folder of another version is made anew."""
DEFAULT_VALIDITY = timedelta(days=30)
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

_FOLDER_MODE = 0o755


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What the operator of a development federation says about a participant."""

    patients: int
    label_histogram: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class DevelopmentFederation:
    """What to make keys for."""

    federation: FederationId
    coordinator: NodeId
    participants: Mapping[NodeId, Enrolment]
    operators: tuple[NodeId, ...] = ()
    server_names: tuple[str, ...] = field(default=LOOPBACK_NAMES)


def create_development_keys(
    folder: Path,
    wanted: DevelopmentFederation,
    *,
    now: datetime,
    validity: timedelta = DEFAULT_VALIDITY,
) -> Mapping[NodeId, NodeFolder]:
    """Make the folder, or accept the one made earlier for the same federation.

    Returns:
        Every node's folder.

    Raises:
        ConfigurationError: the folder exists and is something else, was made for
            another federation, or its certificates have expired. Nothing is overwritten.
    """
    if not folder.exists():
        _create(folder, wanted, now=now, validity=validity)
    else:
        _check_existing(folder, wanted, now=now)
    return MappingProxyType({node: NodeFolder(folder / node) for node in _node_ids(wanted)})


def _create(
    folder: Path, wanted: DevelopmentFederation, *, now: datetime, validity: timedelta
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        _fill(temporary, wanted, now=now, validity=validity)
        temporary.chmod(_FOLDER_MODE)
        # Fails where the folder has appeared meanwhile with anything in it.
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    fsync_directory(folder.parent)


def _fill(
    folder: Path, wanted: DevelopmentFederation, *, now: datetime, validity: timedelta
) -> None:
    federation = FederationFolder.found(
        folder,
        SpiffeId(wanted.federation, Role.COORDINATOR, wanted.coordinator),
        now=now,
        authority_validity=validity,
        validity=validity,
        server_names=wanted.server_names,
        remark=" (development keys)",
    )
    clients = [node for node in _node_ids(wanted) if node != wanted.coordinator]
    # A checkpoint has no room for the cosignatures of hundreds.
    witnesses = frozenset(sorted(wanted.participants)[:MAX_WITNESSES])
    answers = federation.approve_all(
        [_request(folder, wanted, node, witnesses=node in witnesses) for node in clients],
        now=now,
        validity=validity,
    )
    for node, answer in zip(clients, answers, strict=True):
        install(NodeFolder(folder / node), parse_answer(make_answer(answer)), now=now)
    write_public(folder / MARKER, _marker(wanted, now + validity))


def _request(
    folder: Path, wanted: DevelopmentFederation, node: NodeId, *, witnesses: bool
) -> tuple[Request, Facts]:
    """Make a node's own keys, and what it and its operator would send for enrolment."""
    spiffe_id = SpiffeId(wanted.federation, _role_of(node, wanted), node)
    mine = NodeFolder(folder / node)
    make_missing_keys(mine, spiffe_id.role)
    if not witnesses:
        mine.witness_key.unlink(missing_ok=True)
    enrolment = wanted.participants.get(node, Enrolment(patients=0))
    request = parse_request(make_request(spiffe_id, keys_in(mine, spiffe_id)))
    return request, Facts(enrolment.patients, enrolment.label_histogram)


def _check_existing(folder: Path, wanted: DevelopmentFederation, *, now: datetime) -> None:
    try:
        found = json.loads((folder / MARKER).read_bytes())
        not_after = datetime.fromisoformat(found.pop("not_after"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{folder} exists and holds no development keys; choose another folder"
        ) from error
    if found != _description(wanted):
        raise ConfigurationError(
            f"{folder} holds development keys of another federation or version; delete it or "
            "choose another"
        )
    if now >= not_after:
        raise ConfigurationError(
            f"the development keys in {folder} expired on {not_after:%Y-%m-%d}; delete the folder"
        )


def _marker(wanted: DevelopmentFederation, not_after: datetime) -> bytes:
    document = _description(wanted) | {"not_after": not_after.isoformat()}
    return json.dumps(document, indent=2).encode() + b"\n"


def _description(wanted: DevelopmentFederation) -> dict[str, object]:
    return {
        "warning": "development keys: every node's private keys are in this folder",
        "version": KEYS_VERSION,
        "federation": wanted.federation,
        "coordinator": wanted.coordinator,
        "participants": {
            node: {
                "patients": enrolment.patients,
                "label_histogram": enrolment.label_histogram and list(enrolment.label_histogram),
            }
            for node, enrolment in wanted.participants.items()
        },
        "operators": list(wanted.operators),
        "server_names": list(wanted.server_names),
    }


def _node_ids(wanted: DevelopmentFederation) -> tuple[NodeId, ...]:
    nodes = (wanted.coordinator, *wanted.participants, *wanted.operators)
    if len(set(nodes)) != len(nodes):
        raise ConfigurationError("two nodes of the development federation share a name")
    return nodes


def _role_of(node: NodeId, wanted: DevelopmentFederation) -> Role:
    if node == wanted.coordinator:
        return Role.COORDINATOR
    return Role.PARTICIPANT if node in wanted.participants else Role.OPERATOR
