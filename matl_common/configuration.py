"""What the daemons' configuration files have in common: strict sections, paths, and loading.

A configuration is one TOML file, read once, every key checked. Relative paths are
relative to the file they stand in. Nothing here reads the environment: that is for each
daemon's ``config`` module alone.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
)

from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.certificates import Role, parse_spiffe_id
from matl_common.identity.key_places import KeyPlace, parse_key_place
from matl_common.ids import parse_federation_id, parse_node_id
from matl_common.validation import problems_in

LABELS_FILE = "labels_deidentified.csv"
_FOLDER = "folder"


class Section(BaseModel):
    """A table of the file: frozen, strictly typed, unknown keys refused, values not echoed."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        hide_input_in_errors=True,
        # JSON has no infinity, and --print-config prints JSON.
        ser_json_inf_nan="strings",
    )


def _resolved(path: Path, info: ValidationInfo) -> Path:
    folder = Path(info.context[_FOLDER]) if info.context else Path.cwd()
    return folder / path.expanduser()


def _key_place(text: object, info: ValidationInfo) -> KeyPlace:
    if isinstance(text, Path):
        return text
    if not isinstance(text, str):
        raise ValueError("must be a path or a pkcs11: URI")
    try:
        place = parse_key_place(text)
    except ConfigurationError as error:
        raise ValueError(str(error)) from error
    return _resolved(place, info) if isinstance(place, Path) else place


def _node_id(text: str) -> str:
    try:
        return parse_node_id(text)
    except InvalidInputError as error:
        raise ValueError(str(error)) from error


def _federation_id(text: str) -> str:
    try:
        return parse_federation_id(text)
    except InvalidInputError as error:
        raise ValueError(str(error)) from error


def _coordinator(text: str) -> str:
    try:
        name = parse_spiffe_id(text)
    except InvalidInputError as error:
        raise ValueError(str(error)) from error
    if name.role is not Role.COORDINATOR:
        raise ValueError(
            "names no coordinator; expected spiffe://<federation>/coordinator/<node_id>"
        )
    return text


def _host_and_port(text: str) -> str:
    host, _, port = text.rpartition(":")
    # Port 0 asks for any free one.
    if text and (not host or not port.isdigit() or int(port) >= 1 << 16):
        raise ValueError("must look like host:port")
    return text


def addresses_of(text: str) -> tuple[str, ...]:
    """The addresses in ``host:port, host:port, …``, in their order."""
    return tuple(each.strip() for each in text.split(","))


def _hosts_and_ports(text: str) -> str:
    found = addresses_of(text)
    for each in found:
        if not _host_and_port(each):
            raise ValueError("must look like host:port, or host:port, host:port for several")
    if len(set(found)) < len(found):
        raise ValueError("names an address twice")
    return text


FilePath = Annotated[Path, Field(strict=False), AfterValidator(_resolved)]
KeyReference = Annotated[KeyPlace, PlainValidator(_key_place), PlainSerializer(str)]
"""The path of a file, or the ``pkcs11:`` URI of a key in a token."""
NodeName = Annotated[str, AfterValidator(_node_id)]
FederationName = Annotated[str, AfterValidator(_federation_id)]
CoordinatorName = Annotated[str, AfterValidator(_coordinator)]
"""``spiffe://<federation>/coordinator/<node>``, as the coordinator's certificate has it."""
Address = Annotated[str, AfterValidator(_host_and_port)]
"""``host:port``, or empty for nowhere."""
AddressList = Annotated[str, AfterValidator(_hosts_and_ports)]
"""``host:port``, or several with commas between them; see ``addresses_of``."""
Seconds = Annotated[float, Field(gt=0, le=366 * 86400)]

SectionT = TypeVar("SectionT", bound=Section)


def load(
    kind: type[SectionT], path: Path, *, overrides: Mapping[tuple[str, str], str | None]
) -> SectionT:
    """Read a file as ``kind``, with ``overrides`` by (section, key) where they have a value.

    Raises:
        ConfigurationError: unreadable, not TOML, an unknown key, or a value out of range;
            the message names the key and never the value.
    """
    table = _table(path)
    for (section, key), value in overrides.items():
        _override(table, section, key, value)
    try:
        return kind.model_validate(table, context={_FOLDER: path.resolve().parent})
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {problems_in(error, whole='file', kind=kind)}") from None


def daemon_of(path: Path) -> Role:
    """Whether a configuration is a coordinator's or a participant's, by the sections it has.

    Raises:
        ConfigurationError: it cannot be read, or is somebody else's.
    """
    sections = _table(path).keys()
    if "operator" in sections:
        raise ConfigurationError(
            f"{path} is an operator's; give a coordinator's or a participant's configuration. What "
            f"an operator is told: matl --config {path} status"
        )
    if "leader" in sections:
        raise ConfigurationError(
            f"{path} is a front end's; give the configuration of the coordinator that it serves"
        )
    return Role.COORDINATOR if "federation" in sections else Role.PARTICIPANT


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error


def _override(table: dict[str, Any], section: str, key: str, value: str | None) -> None:
    if value and isinstance(table.setdefault(section, {}), dict):
        table[section][key] = value


def labels_beside(images: Path) -> Path:
    """The labels of a folder of images: ``labels_deidentified.csv`` in it or beside it."""
    inside = images / LABELS_FILE
    return inside if inside.exists() else images.parent / LABELS_FILE
