"""The participant's files other than the ledger: models, sealed updates, receipts.

What it keeps as a witness of the log is in ``log_files``.

When a method that writes returns, its file is durable. The ledger says which of these
files count; ``discard_others`` removes the rest. Nothing here decides or sends.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from matl_common.durable import (
    fsync_directory,
    owned_folder,
    remove_leftovers,
    usable,
    write_atomically,
)
from matl_common.errors import InvalidInputError
from matl_common.ids import Digest, RoundId, digest_of
from matl_common.signing import Envelope, encode_envelope, parse_envelope
from matl_common.tensors import MODEL_SUFFIX
from matl_common.tlog.proof import FILE_SUFFIX as PROOF_SUFFIX
from matl_common.wire.documents import parse_receipt
from matl_participant.core.evidence import Evidence

_STUDY_CHARACTERS = 16
_ROOM_BESIDE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The state directory of one participant."""

    path: Path

    @property
    def ledger(self) -> Path:
        return self.path / "ledger"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def phi(self) -> Path:
        """The key of the scan for identifiers, and what the newest one said."""
        return self.path / "phi"

    @property
    def work(self) -> Path:
        """Half-done training output; worthless after a restart."""
        return self.path / "work"

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the folder against other processes, and make it ready for this one.

        Raises:
            ConfigurationError: another process holds it, or it cannot be written.
            FolderFullError: there is no room.
        """
        with owned_folder(self.path):
            with usable(self.path):
                self.prepare()
            yield

    def prepare(self) -> None:
        """Make the folders, and empty those whose content means nothing after a crash.

        Only for the folder's owner: a running participant's work would be lost.
        """
        shutil.rmtree(self.work, ignore_errors=True)
        for folder in (self.path, self.ledger, self.models, self.cache, self.phi, self.work):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.path, self.models, self.phi):
            remove_leftovers(folder)

    def model(self, digest: Digest) -> Path:
        return self.models / f"{digest}{MODEL_SUFFIX}"

    def has_model(self, digest: Digest) -> bool:
        """Whether a model is there; it gets its name only after its digest was verified."""
        return self.model(digest).exists()

    def keep_only_model(self, digest: Digest) -> None:
        """Delete every other model, whole or partial."""
        for file in self.models.iterdir():
            if not file.name.startswith(digest):
                file.unlink(missing_ok=True)

    def require_room(self, byte_count: int) -> None:
        """Raises OSError unless so much may still be written here, and the ledger beside it."""
        status = os.statvfs(self.path)
        if status.f_bavail * status.f_frsize < byte_count + _ROOM_BESIDE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def result(self, round_id: RoundId) -> Path:
        """Where the worker writes what it trained."""
        return self.work / f"round-{round_id:06d}.f32"

    def study(self, study_id: str) -> "StudyFolder":
        """The folder of one study; study ids are free text."""
        folder = self.study_as_it_is(study_id)
        for each in (folder.sealed, folder.receipts, folder.proofs):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
        for each in (folder.sealed, folder.receipts, folder.proofs, folder.path):
            remove_leftovers(each)
        for each in (folder.path, folder.path.parent, self.path):
            fsync_directory(each)
        return folder

    def study_as_it_is(self, study_id: str) -> "StudyFolder":
        """The folder of one study, which may not be there, for those who only read."""
        return StudyFolder(self.path / "studies" / digest_of(study_id.encode())[:_STUDY_CHARACTERS])

    def studies(self) -> "tuple[StudyFolder, ...]":
        """The folders of all studies that ever began here."""
        return tuple(StudyFolder(each) for each in sorted((self.path / "studies").glob("*")))


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """What is kept of one study beside its ledger."""

    path: Path

    @property
    def sealed(self) -> Path:
        return self.path / "sealed"

    @property
    def receipts(self) -> Path:
        return self.path / "receipts"

    @property
    def proofs(self) -> Path:
        return self.path / "proofs"

    def proof(self, round_id: RoundId) -> Path:
        """Where the proof lies that the update is in the coordinator's log."""
        return self.proofs / f"round-{round_id:06d}{PROOF_SUFFIX}"

    def update(self, round_id: RoundId) -> Path:
        return self.sealed / f"round-{round_id:06d}.f32"

    def manifest(self, round_id: RoundId) -> Path:
        return self.sealed / f"round-{round_id:06d}.manifest.json"

    def take_result(self, result: Path, round_id: RoundId) -> Path:
        """Move a training result here, durably."""
        final = self.update(round_id)
        with result.open("rb") as file:
            os.fsync(file.fileno())
        result.rename(final)
        fsync_directory(self.sealed)
        return final

    def write_manifest(self, round_id: RoundId, envelope: Envelope) -> None:
        write_atomically(self.manifest(round_id), [encode_envelope(envelope)])

    def read_manifest(self, round_id: RoundId) -> Envelope:
        """Raises OSError where it is missing, InvalidInputError where it is not an envelope."""
        return parse_envelope(self.manifest(round_id).read_bytes())

    def write_plan(self, envelope: Envelope) -> None:
        """Keep the signed plan as evidence."""
        write_atomically(self.path / "plan.json", [encode_envelope(envelope)])

    def write_receipt(self, round_id: RoundId, envelope: Envelope) -> None:
        """Keep the coordinator's receipt as evidence."""
        write_atomically(self.receipts / f"round-{round_id:06d}.json", [encode_envelope(envelope)])

    def evidence(self) -> tuple[Evidence, ...]:
        """Which rounds the files beside the ledger show to have been charged."""
        receipts = (_receipt_evidence(file) for file in sorted(self.receipts.glob("*.json")))
        sealed = {_round_of(file) for file in self.sealed.glob("round-*")}
        return (*receipts, *(Evidence(round_id, None) for round_id in sorted(sealed)))

    def discard_others(self, keep: RoundId | None) -> None:
        """Delete sealed files of every round but one.

        Raises:
            OSError: of the first that cannot be deleted; the others are.
        """
        kept = set() if keep is None else {self.update(keep), self.manifest(keep)}
        failed: list[OSError] = []
        for file in self.sealed.iterdir():
            if file not in kept:
                try:
                    file.unlink(missing_ok=True)
                except OSError as error:
                    failed.append(error)
        if failed:
            raise failed[0]


def _round_of(file: Path) -> RoundId:
    return RoundId(int(file.name.split(".")[0].removeprefix("round-")))


def _receipt_evidence(file: Path) -> Evidence:
    """What a receipt shows; a damaged one still shows its round."""
    try:
        # Its signature was verified when it arrived, and the key may have been replaced since.
        # Here it can only raise doubts about the ledger, never put any to rest.
        receipt = parse_receipt(parse_envelope(file.read_bytes()).payload)
    except InvalidInputError:
        return Evidence(_round_of(file), None)
    return Evidence(receipt.round_id, receipt.update_digest)
