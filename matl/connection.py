"""Where a coordinator is and how an operator proves to be one: flags, the environment, a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import typer
from pydantic import ValidationError

from matl.operations import OperationsClient, connect_operator
from matl.terminal import errors_in_one_line
from matl_common.configuration import (
    AddressList,
    CoordinatorName,
    FilePath,
    KeyReference,
    Section,
    load,
)
from matl_common.errors import ConfigurationError
from matl_common.identity.certificates import parse_spiffe_id
from matl_common.identity.pkcs11.uri import is_token_uri
from matl_common.identity.tls import tls_place

DEFAULT_CONFIG: Final = Path("operator.toml")
_SECTION: Final = "operator"


class Connection(Section):
    """The ``[operator]`` table: where the coordinator is and how the operator proves itself."""

    address: AddressList
    coordinator: CoordinatorName
    key: KeyReference
    certificate: FilePath
    authority: FilePath
    log_key: FilePath | None = None
    """The log's verifier key (``log.vkey``), with which the dashboard and the report verify."""


class OperatorFile(Section):
    """A whole ``operator.toml``."""

    operator: Connection


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line and the environment say; ``None`` where they say nothing."""

    address: str | None
    coordinator: str | None
    key: str | None
    certificate: Path | None
    authority: Path | None

    def given(self) -> dict[str, str]:
        """The flags that have a value. Paths are the shell's, not relative to a file."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        if self.key is not None and not is_token_uri(self.key):
            values["key"] = Path(self.key)
        return {
            name: str(value.expanduser().absolute() if isinstance(value, Path) else value)
            for name, value in values.items()
            if value
        }


@dataclass(frozen=True, slots=True)
class Invocation:
    """The common options of one call; nothing is read before a command needs it."""

    config: Path | None
    flags: Flags


def read_connection(config: Path | None, flags: Flags) -> Connection:
    """Flags over a file; without ``config``, ``operator.toml`` if there is one.

    Raises:
        ConfigurationError: unreadable, incomplete, or a value that cannot be.
    """
    given = flags.given()
    path = config or DEFAULT_CONFIG
    if config is not None or path.exists():
        overrides = {(_SECTION, name): value for name, value in given.items()}
        return load(OperatorFile, path, overrides=overrides).operator
    missing = [f"--{each.name}" for each in fields(flags) if each.name not in given]
    if missing:
        raise ConfigurationError(
            f"there is no {path} here, and no {', '.join(missing)}; "
            "give them, or a file with --config (matl --help shows one)"
        )
    try:
        return Connection.model_validate(given)
    except ValidationError as error:
        problems = (
            f"--{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()
        )
        raise ConfigurationError("; ".join(problems)) from None


@contextmanager
def connected(context: typer.Context) -> Iterator[OperationsClient]:
    """Yield a client; errors in the block end the program, said in one line."""
    with errors_in_one_line(), opened_client(context) as client:
        yield client


@contextmanager
def opened_client(context: typer.Context) -> Iterator[OperationsClient]:
    """Yield a client, for a caller who says what errors mean.

    Raises:
        ConfigurationError: where the coordinator is, or who asks it, is not to be found.
    """
    invocation: Invocation = context.obj
    wanted = read_connection(invocation.config, invocation.flags)
    files = tls_place(wanted.key, wanted.certificate, wanted.authority)
    with connect_operator(wanted.address, files, parse_spiffe_id(wanted.coordinator)) as client:
        yield client
