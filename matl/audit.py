"""An audit log for research code: the tutorial's interface to the real log.

The same log as a coordinator's: an RFC 6962 tree, encrypted entries, signed checkpoints. Whoever
runs a federation needs none of this: its coordinator logs by itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from matl_common.clock import utc_now
from matl_common.durable import owned_folder, write_atomically
from matl_common.errors import ConfigurationError, InvalidInputError, MatlError
from matl_common.identity.keys import load_ed25519_private_key, private_key_pem
from matl_common.identity.wrapping import create_key_file, load_key_file
from matl_common.ids import parse_federation_id
from matl_common.tlog.checkpoint import Checkpoint, log_key, sign_checkpoint
from matl_common.tlog.entry import entry_of, parse_entry
from matl_common.tlog.merkle import inclusion_proof, leaf_hash, verify_inclusion
from matl_common.tlog.names import log_origin
from matl_coordinator.core.retention import HIPAA_YEARS
from matl_coordinator.service.parts import Fact, numbered_parts
from matl_coordinator.store.sql import SqlStore

MAX_DEPTH: Final = 32
"""Levels of lists and mappings in a fact."""


class AuditLogger:
    """Logs events where nobody can rewrite them unnoticed.

    Calls block until an entry is durable. Use it as a context manager, or ``close`` it; a second
    logger on the same folder is refused meanwhile.
    """

    def __init__(
        self,
        backend: str = "sqlite",
        retention_years: int = 7,
        *,
        encrypt: bool = True,
        folder: Path | str = "matl-audit",
        url: str | None = None,
        name: str = "research",
    ) -> None:
        """Open a log, or begin one.

        Args:
            backend: ``sqlite``, a file in ``folder``; or ``postgresql``, at ``url`` or, if that
                is not given, at ``MATL_AUDIT_DB``.
            retention_years: how long entries are to be kept, at least six.
            encrypt: must be true; there is no log that is not encrypted.
            folder: the log's keys, made at first use. Back them up apart from the database.
            url: ``postgresql://user@host/database``.
            name: the log's; its origin is ``<name>.matl.internal/log``.

        Raises:
            ConfigurationError: one of these cannot be.
            StoreError: the database cannot be reached.
        """
        if not encrypt:
            raise ConfigurationError("encrypt=False: every log is encrypted; leave it out")
        if not isinstance(retention_years, int) or isinstance(retention_years, bool):
            raise ConfigurationError(f"retention_years={retention_years!r}: give whole years")
        if retention_years < HIPAA_YEARS:
            raise ConfigurationError(
                f"retention_years={retention_years}: 45 CFR 164.316(b)(2)(i) asks for "
                f"{HIPAA_YEARS} years"
            )
        self.retention_years = retention_years
        self._folder = Path(folder).absolute()
        self._origin = log_origin(parse_federation_id(name))
        self._lock = threading.Lock()
        self._closed = False
        self._owned = owned_folder(self._folder)
        self._owned.__enter__()
        try:
            self._private_key = self._keys()
            self._store = SqlStore.connect(
                self._url(backend, url),
                log_origin=self._origin,
                log_key=load_key_file(self._folder / "log-encryption.key"),
            )
            self._store.load()
        except BaseException:
            self._owned.__exit__(None, None, None)
            raise

    def audit_log(self, event: str, **facts: Any) -> int:
        """Log an event; returns its number once it is durable.

        Args:
            event: what happened, in a word.
            **facts: strings, numbers (NumPy's scalars too), booleans, and lists and mappings of
                these; ``node`` and ``round`` can be filtered by later. Never patient data.

        Raises:
            InvalidInputError: a fact is of another kind, not finite, deeper than ``MAX_DEPTH``, or
                all are longer than 64 KiB.
            ConfigurationError: the log was closed.
            StoreError: the database did not confirm; the entry may be there or not.
        """
        return self._write(event, [{name: _plain(fact) for name, fact in facts.items()}])

    def _write(self, event: str, parts: Sequence[Mapping[str, object]]) -> int:
        """Log an entry of each part, all or none; returns the last one's number."""
        moment = utc_now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        written = [entry_of({**part, "v": 1, "event": event, "at": moment}) for part in parts]
        with self._lock:
            if self._closed:
                raise ConfigurationError("this log was closed; open another AuditLogger")
            try:
                logged = self._store.commit([], written)
            except MatlError:
                # What is durable is not known; the next call reads it again.
                self._store.load()
                raise
        return logged[-1].index

    def audit_checkpoint(
        self, round_num: int, accuracy: float, history: Mapping[str, Any] | None = None
    ) -> str:
        """Log the end of a round, and sign the log as it is now.

        Args:
            round_num: the round.
            accuracy: of its model.
            history: what else is to be on record, as for ``audit_log``, and as long as it is: what
                one entry cannot hold is cut into several, which tell their ``part`` of ``parts``.

        Returns:
            The checkpoint, a C2SP signed note. Give it to somebody who keeps it: the log can then
            no longer be rewritten unnoticed.

        Raises:
            InvalidInputError: as for ``audit_log``; too long is a single text of 64 KiB.
            ConfigurationError, StoreError: as for ``audit_log``.
        """
        facts = {"accuracy": _plain(accuracy), "history": _plain(dict(history or {}))}
        parts = numbered_parts(facts)
        self._write("audit_checkpoint", [{**part, "round": _plain(round_num)} for part in parts])
        head = self._store.log_head()
        key = log_key(self._origin, self._private_key.public_key())
        checkpoint = Checkpoint(self._origin, head.size, bytes.fromhex(head.root))
        note = sign_checkpoint(checkpoint, key, self._private_key).note.encode()
        self._store.put_checkpoint(head.size, note)
        return note.decode()

    def get_recent(self, limit: int = 10) -> list[dict[str, Any]]:
        """What the newest entries say, the newest first."""
        size = self._store.log_head().size
        logged = self._store.log_entries(start=max(0, size - limit), limit=limit)
        return [dict(parse_entry(each.data)) for each in reversed(logged) if each.data is not None]

    def is_active(self) -> bool:
        """Whether the log answers and holds its newest entry; looked up, not remembered."""
        if self._closed:
            return False
        try:
            head = self._store.log_head()
            if head.size == 0:
                return True
            (newest,) = self._store.log_entries(start=head.size - 1, limit=1)
            if newest.damage is not None:
                return False
            verify_inclusion(
                index=newest.index,
                size=head.size,
                leaf=leaf_hash(newest.leaf),
                proof=inclusion_proof(newest.index, head.size, self._store.log_node),
                root=bytes.fromhex(head.root),
            )
        except (MatlError, ValueError):
            return False
        return True

    def is_encrypted(self) -> bool | None:
        """Whether the newest entry is stored as ciphertext; looked up. ``None`` without any."""
        if self._closed:
            return False
        head = self._store.log_head()
        if head.size == 0:
            return None
        (newest,) = self._store.log_entries(start=head.size - 1, limit=1)
        return (
            newest.payload is not None
            and newest.data is not None
            and newest.data not in newest.payload
        )

    @property
    def verifier_key(self) -> str:
        """The log's C2SP verifier key, which checkpoints are verified with."""
        return log_key(self._origin, self._private_key.public_key()).vkey

    def close(self) -> None:
        """Let go of the database and the folder; doing it again changes nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._store.close()
            self._owned.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keys(self) -> Ed25519PrivateKey:
        signing, wrapping = self._folder / "log.key", self._folder / "log-encryption.key"
        if not signing.exists():
            write_atomically(signing, [private_key_pem(Ed25519PrivateKey.generate())])
        if not wrapping.exists():
            create_key_file(wrapping)
        return load_ed25519_private_key(signing)

    def _url(self, backend: str, url: str | None) -> str:
        match backend:
            case "sqlite" if url is None:
                return f"sqlite:///{self._folder / 'audit.db'}"
            case "postgresql":
                found = url or os.environ.get("MATL_AUDIT_DB", "")
                if found:
                    return found
                raise ConfigurationError(
                    "backend='postgresql' needs url='postgresql://user@host/database', or "
                    "MATL_AUDIT_DB in the environment"
                )
        raise ConfigurationError(
            f"backend={backend!r}: use 'sqlite', without a url, or 'postgresql'"
        )


def _plain(fact: object, *, depth: int = 0) -> Fact:
    """A fact, ``depth`` levels down, with Python's own numbers in the place of NumPy's.

    Raises:
        InvalidInputError: no entry can hold it.
    """
    if depth > MAX_DEPTH:
        raise InvalidInputError(
            f"an audit entry is at most {MAX_DEPTH} levels deep, and contains not itself"
        )
    match fact:
        case np.generic():
            return _plain(fact.item(), depth=depth)
        case Mapping() if all(isinstance(name, str) for name in fact):
            return {name: _plain(each, depth=depth + 1) for name, each in fact.items()}
        case list() | tuple():
            return [_plain(each, depth=depth + 1) for each in fact]
        case None | bool() | int() | float() | str():
            return fact
    raise InvalidInputError(f"an audit entry cannot hold this {type(fact).__name__}")
