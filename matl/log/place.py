"""Which log a command reads, whose signatures on it count, and where it is put on record.

Three places: the coordinator, asked as an operator; its database, on its machine; a bundle that
was exported, anywhere, without either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from matl.audit_client import AuditClient
from matl.connection import opened_client
from matl.log.bundle import BundleSource
from matl.log.sources import CoordinatorSource, DatabaseSource, LogSource
from matl.log.verification import Believed
from matl_common.errors import ConfigurationError, InvalidInputError, MatlError
from matl_common.identity.allowlist import load_allowlist
from matl_common.identity.key_places import load_wrapping_key
from matl_common.identity.keys import load_verifier_key
from matl_common.tlog.note import parse_note
from matl_common.tlog.policy import Policy, parse_policy
from matl_coordinator.config import Config, load_config
from matl_coordinator.log_identity import configured_policy, load_log_signer
from matl_coordinator.service.readings import Verification
from matl_coordinator.store.anchor import log_anchor
from matl_coordinator.store.database import create_database_engine
from matl_coordinator.store.reader import LogReader
from matl_coordinator.upkeep import record_verification

Database = Annotated[
    Path | None,
    typer.Option(
        "--coordinator-config",
        help="The coordinator's TOML file: read its database instead of asking it.",
    ),
]
Bundle = Annotated[
    Path | None, typer.Option("--bundle", help="A folder that `matl audit export` wrote.")
]
LogKeyFile = Annotated[
    Path | None,
    typer.Option("--log-key", help="File with the log's verifier key (log.vkey), from enrolment."),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", help="tlog-policy of the log's and the witnesses' keys."),
]
Index = Annotated[int, typer.Argument(min=0, help="The entry's number in the log.")]


@dataclass(frozen=True, slots=True)
class Recorded:
    """Where the log says that it was gone over, or why it does not."""

    index: int | None
    said: str


@dataclass(frozen=True, slots=True)
class Place:
    """A log to read, and whose signatures on it count.

    ``record`` puts a verification into the log and returns the entry's number; ``None`` where
    there is nothing to write to. ``anchor`` reads the last checkpoint that a coordinator on this
    machine has signed.
    """

    source: LogSource
    believed: Believed | None
    record: Callable[[Verification], int] | None
    anchor: Callable[[], bytes | None] = lambda: None

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

    def put_on_record(self, found: Verification) -> Recorded:
        """Put a verification into the log, where there is one to write to."""
        if self.record is None:
            return Recorded(
                None, "no: a bundle cannot be written to, and its coordinator is not asked"
            )
        return put_on_record(partial(self.record, found))


def put_on_record(write: Callable[[], int]) -> Recorded:
    """Log a run of a command; what it found is no worse where that cannot be.

    Args:
        write: puts the run into the log and returns the entry's number.
    """
    try:
        index = write()
    except (MatlError, OSError) as error:
        return Recorded(None, f"no, this run could not be logged: {error}")
    return Recorded(index, f"entry {index} of the log tells of this run")


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
    """Where to read from, and whom to believe; ``with_keys`` to go by what entries say, too.

    Raises:
        ConfigurationError: two places, or a file that does not fit.
    """
    said = believed_from(log_key_file, policy_file)
    with ExitStack() as stack:
        match coordinator_config, bundle:
            case Path(), Path():
                raise ConfigurationError("give --coordinator-config or --bundle, not both")
            case Path(), None:
                config = load_config(coordinator_config)
                engine = create_database_engine(config.database_url)
                stack.callback(engine.dispose)
                reader = LogReader(engine)
                believed = said or configured(config)
                if with_keys and said is None:
                    believed = with_data_keys(believed, config, reader)
                yield Place(
                    DatabaseSource(reader),
                    believed,
                    lambda found: record_verification(config, found).index,
                    log_anchor(config.state_dir).read,
                )
            case None, Path():
                yield Place(BundleSource(bundle), said, None)
            case _:
                client = stack.enter_context(opened_client(context)).audit
                yield Place(
                    CoordinatorSource(client, opened=with_keys), said, partial(_record, client)
                )


def load_policy_file(path: Path) -> Policy:
    """A policy that was given.

    Raises:
        ConfigurationError: the file cannot be read, or holds none.
    """
    try:
        return parse_policy(read_file(path))
    except InvalidInputError as error:
        raise ConfigurationError(f"{path} is no policy: {error}") from error


def believed_from(log_key_file: Path | None, policy_file: Path | None) -> Believed | None:
    """Whom the files name; ``None`` without any.

    Raises:
        ConfigurationError: a file cannot be read, or holds none or several.
    """
    if policy_file is not None:
        policy = load_policy_file(policy_file)
        if len(policy.logs) != 1:
            raise ConfigurationError(f"{policy_file} names {len(policy.logs)} logs; it needs one")
        return Believed(policy.logs[0], policy)
    if log_key_file is not None:
        return Believed(load_verifier_key(log_key_file))
    return None


def configured(config: Config) -> Believed:
    """Whom a coordinator's own configuration believes."""
    allowlist = load_allowlist(config.federation.allowlist)
    log = load_log_signer(config, allowlist)
    return Believed(log.key, configured_policy(config, allowlist, log))


def with_data_keys(believed: Believed, config: Config, reader: LogReader) -> Believed:
    """What a coordinator's entries can be read with, unless the file of the key is elsewhere."""
    place = config.log_encryption_key
    if isinstance(place, Path) and not place.exists():
        return believed
    key = load_wrapping_key(place)
    return replace(believed, keys=reader.data_keys(key), key_damage=reader.data_key_damage(key))


def _record(client: AuditClient, found: Verification) -> int:
    if found.root is None:
        return client.record_damage(found.size, first=found.first, last=found.last)
    return client.record_sound(found.size, bytes.fromhex(found.root))


def read_file(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error


def read_note(path: Path) -> bytes:
    """A signed checkpoint as its file has it, which nobody has verified yet.

    Raises:
        ConfigurationError: the file cannot be read, or holds none.
    """
    note = read_file(path)
    try:
        parse_note(note)
    except InvalidInputError as error:
        raise ConfigurationError(f"{path} is no signed checkpoint: {error}") from error
    return note
