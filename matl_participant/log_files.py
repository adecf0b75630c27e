"""What a witness keeps: its last checkpoint, proofs of its own updates, evidence.

    log-checkpoint.txt                              the last checkpoint cosigned
    log-evidence/<kind>-<subject>.json              stops the participant while it is there
    log-evidence/settled/                           where an operator moves what was dealt with
    studies/<study>/proofs/round-000001.tlog-proof  of the receipt beside it

When a method that writes returns, its file is durable. Nothing here decides or sends.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from matl_common.durable import fsync_directory, write_atomically
from matl_common.errors import IntegrityError, InvalidInputError, MatlError
from matl_common.ids import FederationId
from matl_common.log_evidence import LogEvidence, encode_evidence
from matl_common.protocol import Receipt
from matl_common.signing import Envelope, parse_envelope
from matl_common.tlog.checkpoint import SignedCheckpoint, open_checkpoint
from matl_common.tlog.note import VerifierKey
from matl_common.tlog.proof import TlogProof, encode_proof, parse_proof
from matl_common.wire.documents import parse_receipt
from matl_participant.files import StateFolder

CHECKPOINT_FILE = "log-checkpoint.txt"
EVIDENCE_FOLDER = "log-evidence"
SETTLED_FOLDER = "settled"


class WitnessStateError(MatlError):
    """The last checkpoint on disk cannot be relied upon; without it nothing is cosigned."""


class KeptCheckpoint:
    """The last checkpoint this hospital cosigned, or was about to."""

    def __init__(self, state: StateFolder, log_key: VerifierKey) -> None:
        self._path = state.path / CHECKPOINT_FILE
        self._log_key = log_key

    def read(self) -> SignedCheckpoint | None:
        """What was kept last; ``None`` if nothing ever was.

        Raises:
            WitnessStateError: it is damaged, or of another log.
            OSError: it cannot be read.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return open_checkpoint(data, [self._log_key])
        except (IntegrityError, InvalidInputError) as error:
            raise WitnessStateError(
                f"{CHECKPOINT_FILE} in state_dir cannot be relied upon: {error}. Restore it from a "
                "backup, an older copy will do; if the log's key was replaced, see docs/log.md"
            ) from error

    def replace(self, *, expected: SignedCheckpoint | None, new: SignedCheckpoint) -> None:
        """Keep ``new``, provided that ``expected`` is still the last.

        Raises:
            WitnessStateError: it is not.
            OSError: the disk did not confirm; the file holds either.
        """
        if self.read() != expected:
            raise WitnessStateError(
                f"{CHECKPOINT_FILE} in state_dir was changed while this participant ran; find out "
                "what else writes there"
            )
        write_atomically(self._path, [new.note.encode()])


@dataclass(frozen=True, slots=True)
class Submission:
    """An update of ours that the coordinator has receipted."""

    receipt: Receipt
    envelope: Envelope
    proof_file: Path

    @property
    def subject(self) -> str:
        """Its name in the name of a file of evidence."""
        return f"{self.proof_file.parent.parent.name}-{self.proof_file.stem}"


def submissions(state: StateFolder, federation: FederationId) -> Iterator[Submission]:
    """Every update receipted in this federation, oldest first; damaged receipts are left out."""
    for study in state.studies():
        for path in sorted(study.receipts.glob("round-*.json")):
            with suppress(InvalidInputError):
                # Verified when it arrived; the key may have been replaced since.
                envelope = parse_envelope(path.read_bytes())
                receipt = parse_receipt(envelope.payload)
                if receipt.federation_id == federation:
                    yield Submission(receipt, envelope, study.proof(receipt.round_id))


def read_proof(submission: Submission) -> TlogProof | None:
    """The stored proof; ``None`` where there is none that can be read."""
    try:
        return parse_proof(submission.proof_file.read_bytes())
    except (FileNotFoundError, InvalidInputError):
        return None


def write_proof(submission: Submission, proof: TlogProof) -> None:
    """Store a proof in place of the one before."""
    folder = submission.proof_file.parent
    folder.mkdir(exist_ok=True, mode=0o700)
    fsync_directory(folder.parent)
    write_atomically(submission.proof_file, [encode_proof(proof)])


@dataclass(frozen=True, slots=True)
class EvidenceFolder:
    """Evidence against the log."""

    state: StateFolder

    @property
    def path(self) -> Path:
        return self.state.path / EVIDENCE_FOLDER

    def keep(self, evidence: LogEvidence, *, subject: str) -> Path:
        """Write evidence; from then on ``standing`` names it, until somebody moves it away."""
        self.path.mkdir(exist_ok=True, mode=0o700)
        fsync_directory(self.state.path)
        file = self.path / f"{evidence.kind.value}-{subject}.json"
        write_atomically(file, [encode_evidence(evidence)])
        return file

    def standing(self) -> tuple[Path, ...]:
        """Evidence that nobody has dealt with."""
        return tuple(sorted(self.path.glob("*.json")))

    def is_settled(self, subject: str) -> bool:
        """Whether an operator has dealt with evidence about this."""
        return any((self.path / SETTLED_FOLDER).glob(f"*-{subject}.json"))
