"""Which log a command reads, and whose signatures on it count.

Three places: the coordinator, asked as an operator; its database, on its machine; a bundle that
was exported, anywhere, without either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from matl.connection import connected
from matl.log_sources import BundleSource, CoordinatorSource, DatabaseSource, LogSource
from matl.log_verification import Believed
from matl_common.errors import ConfigurationError
from matl_common.identity.allowlist import load_allowlist
from matl_common.identity.key_places import load_wrapping_key
from matl_common.identity.keys import load_ed25519_private_key
from matl_common.tlog.checkpoint import log_key
from matl_common.tlog.names import log_origin
from matl_common.tlog.note import VerifierKey, parse_verifier_key
from matl_common.tlog.policy import Policy, parse_policy
from matl_common.tlog.sealing import DataKey
from matl_coordinator.config import Config, load_config
from matl_coordinator.service.checkpoints import witness_policy
from matl_coordinator.store.database import create_database_engine
from matl_coordinator.store.reader import LogReader


@dataclass(frozen=True, slots=True)
class Place:
    """A log to read, and whose signatures on it count."""

    source: LogSource
    believed: Believed | None

    def require_believed(self) -> Believed:
        """Whose signatures count.

        Raises:
            ConfigurationError: nobody has said.
        """
        if self.believed is None:
            raise ConfigurationError(
                "give the log's key with --log-key or --policy: a log that says itself who may "
                "sign it proves nothing"
            )
        return self.believed


@contextmanager
def log_place(
    context: typer.Context,
    coordinator_config: Path | None,
    bundle: Path | None = None,
    log_key_file: Path | None = None,
    policy_file: Path | None = None,
    *,
    with_keys: bool = False,
) -> Iterator[Place]:
    """Where to read from, and whom to believe; ``with_keys`` to decrypt a database's entries, too.

    Raises:
        ConfigurationError: two places, or a file that does not fit.
    """
    said = _said(log_key_file, policy_file)
    with ExitStack() as stack:
        match coordinator_config, bundle:
            case Path(), Path():
                raise ConfigurationError("give --coordinator-config or --bundle, not both")
            case Path(), None:
                config = load_config(coordinator_config)
                engine = create_database_engine(config.database_url)
                stack.callback(engine.dispose)
                reader = LogReader(engine)
                believed = said or _configured(config)
                if with_keys and said is None:
                    believed = replace(believed, keys=_data_keys(config, reader))
                yield Place(DatabaseSource(reader), believed)
            case None, Path():
                yield Place(BundleSource(bundle), said)
            case _:
                client = stack.enter_context(connected(context))
                yield Place(CoordinatorSource(client.audit), said)


def _said(log_key_file: Path | None, policy_file: Path | None) -> Believed | None:
    if policy_file is not None:
        policy = parse_policy(read_file(policy_file))
        if len(policy.logs) != 1:
            raise ConfigurationError(f"{policy_file} names {len(policy.logs)} logs; it needs one")
        return Believed(policy.logs[0], policy)
    if log_key_file is not None:
        return Believed(_verifier_key(log_key_file))
    return None


def _configured(config: Config) -> Believed:
    """Whom a coordinator's own configuration believes."""
    allowlist = load_allowlist(config.federation.allowlist)
    public_key = load_ed25519_private_key(config.identity.log_key).public_key()
    key = log_key(log_origin(allowlist.federation), public_key)
    policy: Policy = witness_policy(allowlist, key, f=config.rounds.byzantine)
    return Believed(key, policy)


def _data_keys(config: Config, reader: LogReader) -> dict[str, DataKey] | None:
    """What a coordinator's entries can be read with, unless the file of the key is elsewhere."""
    place = config.log_encryption_key
    if isinstance(place, Path) and not place.exists():
        return None
    return reader.data_keys(load_wrapping_key(place))


def _verifier_key(path: Path) -> VerifierKey:
    try:
        return parse_verifier_key(read_file(path).decode().strip())
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} holds no verifier key") from error


def read_file(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
