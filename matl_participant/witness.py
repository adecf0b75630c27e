"""The hospital as a witness of the coordinator's log: cosigns what extends what it cosigned.

A pass asks for the checkpoint to cosign, and ``matl_common.tlog.witness`` decides about it. The
order of writes is the point: a checkpoint is durable as the last one *before* it is signed.
Then each update that the coordinator has receipted is looked for in the log, once a checkpoint
covers it, and the proof is stored; where a later checkpoint has more cosignatures, it takes the
place of the one before.

A log that forked, went back, or cannot show what it must, ends the passes with evidence on disk.
A coordinator that cannot be reached only delays them, and so does one whose machine has shown no
evidence where that is required: it is asked nothing and told nothing until it has. Runs on the
engine's event loop, beside it; when a pass begins depends on the clock and the network, never on
data.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from matl_common.clock import utc_now
from matl_common.errors import ConfigurationError, IntegrityError, InvalidInputError
from matl_common.identity.held_keys import Ed25519Key, load_ed25519_key
from matl_common.identity.keys import load_verifier_key
from matl_common.identity.pkcs11.session import TokenError
from matl_common.ids import FederationId, NodeId
from matl_common.log_evidence import Kind, LogEvidence, claim_of
from matl_common.tlog.checkpoint import SignedCheckpoint
from matl_common.tlog.cosignature import cosign, verified_cosignatures, witness_key
from matl_common.tlog.names import log_origin, witness_name
from matl_common.tlog.note import Note, NoteSignature, VerifierKey
from matl_common.tlog.proof import TlogProof
from matl_common.tlog.submission import Shown, Worth, encode_shown, judge
from matl_common.tlog.witness import Verdict, decide
from matl_participant.client import (
    CallError,
    NotAllowedError,
    RefusedError,
    UntrustedCoordinatorError,
)
from matl_participant.config import Config
from matl_participant.core.session import backoff
from matl_participant.files import StateFolder
from matl_participant.log_client import LogClient, Offer
from matl_participant.log_files import (
    EvidenceFolder,
    Submission,
    WitnessStateError,
    read_proof,
    submissions,
    write_proof,
)
from matl_participant.reports import Reports

PROOF_TRIES = 10
PROOF_PATIENCE = timedelta(hours=1)
"""A receipted update that was asked for in vain as often, for as long, is taken for lost."""

_CLOSING_INTERVAL = timedelta(seconds=1)
_FOUND = {
    Verdict.FORK: Kind.FORK,
    Verdict.ROLLBACK: Kind.ROLLBACK,
    Verdict.BAD_PROOF: Kind.INCONSISTENT,
}
# What the world may do to a pass, which is then repeated. Evidence and damage are not here.
_TRANSIENT = (CallError, UntrustedCoordinatorError, InvalidInputError, TokenError, OSError)


class _HeldError(Exception):
    """Nothing may be said to the coordinator now."""


class Kept(Protocol):
    """Where the last checkpoint is; see ``log_files.KeptCheckpoint``."""

    def read(self) -> SignedCheckpoint | None:
        """The last checkpoint, if there is one."""

    def replace(self, *, expected: SignedCheckpoint | None, new: SignedCheckpoint) -> None:
        """Make ``new`` the last one, durably, if ``expected`` still is."""


@dataclass(frozen=True, slots=True)
class WitnessKeys:
    """What a witness signs with, and which log it believes."""

    log: VerifierKey
    own: VerifierKey
    signer: Ed25519Key


def load_witness_keys(config: Config) -> WitnessKeys | None:
    """The keys named in the configuration; ``None`` for a hospital that does not witness.

    Raises:
        ConfigurationError: a file is missing, or holds another key than it should.
        TokenError: the token of the witness key cannot be reached.
    """
    place, log_file = config.identity.witness_key, config.coordinator.log_key
    if place is None or log_file is None:
        return None
    federation = FederationId(config.coordinator.name.federation)
    key = load_ed25519_key(place)
    own = witness_key(witness_name(federation, config.node_id), key.public_key)
    return WitnessKeys(_load_log_key(log_file, federation), own, key)


def _load_log_key(path: Path, federation: FederationId) -> VerifierKey:
    wanted = log_origin(federation)
    try:
        key = load_verifier_key(path)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"coordinator.log_key: {error}; put the one line there that the coordinator's operator "
            f"publishes, {wanted}+<id>+<key>"
        ) from error
    if key.name != wanted:
        raise ConfigurationError(
            f"coordinator.log_key is the key of {key.name!r}; this federation's log is {wanted!r}"
        )
    return key


@dataclass(slots=True)
class _Vain:
    """Questions for one submission that were not answered as they should be, in a row."""

    since: datetime
    tries: int = 0


@dataclass(slots=True)
class Witness:
    """One hospital's witness. ``run`` is one task; the engine owns it."""

    keys: WitnessKeys
    client: LogClient
    """For ``_log`` alone, which asks first whether it may be used."""
    state: StateFolder
    kept: Kept
    node_id: NodeId
    federation: FederationId
    interval: timedelta
    reports: Reports
    chance: Callable[[], float]
    clock: Callable[[], datetime] = utc_now
    _stored: dict[str, int] = field(default_factory=dict, init=False)
    """Signature lines in each stored proof; what a better one is compared with."""
    _vain: dict[str, _Vain] = field(default_factory=dict, init=False)
    _may_speak: Callable[[], bool] = field(default=lambda: False, init=False)
    _is_cosigned: bool = field(default=False, init=False)
    """The last checkpoint bears our cosignature, or the log has taken it."""
    _closing: bool = field(default=False, init=False)
    _last_words: int | None = field(default=None, init=False)
    """Size of the log after which nothing of our study is expected; known when closing."""
    _woken: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _settled: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    async def run(self, *, may_speak: Callable[[], bool]) -> str:
        """Witness until the log must not be trusted any more; says why. Else never returns.

        Args:
            may_speak: whether the coordinator may be spoken to, asked before each call; ``wake``
                says that it may again.

        Raises:
            WitnessStateError: the last checkpoint on disk cannot be relied upon, or evidence
                was found and cannot be written.
        """
        self._may_speak, failures = may_speak, 0
        while True:
            found = None
            try:
                found = await self._pass()
                failures = 0
            except _HeldError:
                # Not a failure, and not to be told: whoever holds us says why.
                failures = 0
            except _TRANSIENT as error:
                failures += 1
                self.reports.witnessing_failed(error, failures=failures)
            if found is not None:
                return self._stopped_by(*found)
            await self._pause(failures)

    def _stopped_by(self, evidence: LogEvidence, subject: str) -> str:
        folder = EvidenceFolder(self.state)
        try:
            file = folder.keep(evidence, subject=subject)
        except OSError as error:
            raise WitnessStateError(
                f"the log misbehaved ({evidence.kind.value}: {evidence.why}), and the evidence "
                f"cannot be written to state_dir: {error.strerror}; make room there"
            ) from error
        self.reports.log_misbehaved(evidence, file.name)
        return _why(file.name)

    def wake(self) -> None:
        """Begin a pass now, or after the one under way."""
        self._woken.set()

    @property
    def _log(self) -> LogClient:
        if not self._may_speak():
            raise _HeldError
        return self.client

    async def settle(self) -> None:
        """Return when the log has our cosignature of all that there is now, and our proofs.

        May never happen; the caller bounds its wait.
        """
        self._closing = True
        self.wake()
        await self._settled.wait()

    async def _pause(self, failures: int) -> None:
        wait = min(self.interval, _CLOSING_INTERVAL) if self._closing else self.interval
        if failures:
            wait = max(wait, backoff(failures, chance=self.chance()))
        with suppress(TimeoutError):
            async with asyncio.timeout(wait.total_seconds()):
                await self._woken.wait()
        # Not before: who is woken during a pass has another one after it.
        self._woken.clear()

    async def _pass(self) -> tuple[LogEvidence, str] | None:
        last = self.kept.read()
        size = last.checkpoint.size if last else 0
        offer = await self._log.checkpoint(old_size=size)
        new = offer.signed.checkpoint
        decision = decide(
            last.checkpoint if last else None, old_size=size, proof=offer.proof, new=new
        )
        if decision.verdict is not Verdict.ACCEPTED:
            return self._against(last, offer, decision.verdict, decision.reason)
        if last is None or new != last.checkpoint:
            self.kept.replace(expected=last, new=offer.signed)
        note = await self._cosigned(offer.signed)
        found = await self._prove_all(SignedCheckpoint(new, note))
        if found is None and self._closing:
            await self._close(new.size)
        return found

    async def _cosigned(self, signed: SignedCheckpoint) -> Note:
        """Cosign a checkpoint that is kept already; returns its note with our line."""
        checkpoint, note = signed.checkpoint, signed.note
        if self._has_our_line(note):
            self._is_cosigned = True
            self.reports.cosigned(checkpoint.size)
            return note
        self._is_cosigned = False
        now = int(self.clock().timestamp())
        # A token may take its time, or be across a network.
        line = await asyncio.to_thread(
            cosign, checkpoint, self.keys.own, self.keys.signer, unix_seconds=now
        )
        try:
            await self._log.add_cosignature(size=checkpoint.size, line=line)
        except (RefusedError, NotAllowedError) as error:
            # Another checkpoint has taken its place, or our key is not enrolled.
            self.reports.cosignature_refused(error, size=checkpoint.size)
        else:
            self._is_cosigned = True
            self.reports.cosigned(checkpoint.size)
        return _with_line(note, line)

    def _has_our_line(self, note: Note) -> bool:
        try:
            return bool(verified_cosignatures(note, [self.keys.own]))
        except IntegrityError as error:
            raise UntrustedCoordinatorError(
                f"the log shows a cosignature as ours that is not: {error}"
            ) from error

    async def _prove_all(self, signed: SignedCheckpoint) -> tuple[LogEvidence, str] | None:
        """Look for every submission whose proof is missing, or would be better now."""
        owed = 0
        for each in submissions(self.state, self.federation):
            stored = self._stored_lines(each)
            if stored >= len(signed.note.signatures):
                continue
            # Also one that was proven: in the history that is followed by now it may not be.
            if EvidenceFolder(self.state).is_settled(each.subject):
                continue
            found = await self._prove(each, signed)
            if found is not None:
                return found
            owed += self._stored_lines(each) == 0
        self.reports.proofs_owed(owed)
        return None

    async def _prove(
        self, each: Submission, signed: SignedCheckpoint
    ) -> tuple[LogEvidence, str] | None:
        claim, size = claim_of(each.receipt), signed.checkpoint.size
        if claim.index >= size:
            why = f"no checkpoint covers leaf {claim.index}; the newest is of {size} leaves"
            return self._in_vain(each, signed, why)
        try:
            shown = await self._log.inclusion(claim.index, size=size)
        except RefusedError as error:
            return self._in_vain(each, signed, str(error))
        except CallError as error:
            # It answered a moment ago, so this counts; but the rest of the pass waits, too.
            if found := self._in_vain(each, signed, str(error)):
                return found
            raise
        judgement = judge(claim, shown, signed.checkpoint)
        match judgement.worth:
            case Worth.HOLDS:
                self._store(each, signed, shown)
                return None
            case Worth.WITHHELD:
                return self._in_vain(each, signed, judgement.reason, shown=shown)
            case Worth.BROKEN:
                kind = Kind.UNPROVED
            case Worth.CONTRADICTED:
                kind = Kind.CONTRADICTED
        return self._of_submission(kind, each, signed, judgement.reason, shown=shown)

    def _store(self, each: Submission, signed: SignedCheckpoint, shown: Shown) -> None:
        proof = TlogProof(each.receipt.log_index, shown.path, signed.note, encode_shown(shown))
        write_proof(each, proof)
        first = not self._stored.get(each.subject)
        self._stored[each.subject] = len(signed.note.signatures)
        self._vain.pop(each.subject, None)
        if first:
            self.reports.proof_stored(each.receipt, size=signed.checkpoint.size)

    def _stored_lines(self, each: Submission) -> int:
        if each.subject not in self._stored:
            proof = read_proof(each)
            self._stored[each.subject] = 0 if proof is None else len(proof.checkpoint.signatures)
        return self._stored[each.subject]

    def _in_vain(
        self, each: Submission, signed: SignedCheckpoint, why: str, *, shown: Shown | None = None
    ) -> tuple[LogEvidence, str] | None:
        if self._stored_lines(each):
            # It was proven once, which is enough; this would only have been a better proof.
            return None
        now = self.clock()
        vain = self._vain.setdefault(each.subject, _Vain(since=now))
        vain.tries += 1
        waited = now - vain.since
        if vain.tries < PROOF_TRIES or waited < PROOF_PATIENCE:
            self.reports.proof_awaited(each.receipt, why=why, tries=vain.tries)
            return None
        reason = f"asked {vain.tries} times since {vain.since.isoformat()}: {why}"
        return self._of_submission(Kind.UNPROVED, each, signed, reason, shown=shown)

    async def _close(self, size: int) -> None:
        """See whether our part is done: all there was when we began to close is cosigned."""
        if self._last_words is None:
            self._last_words = await self._log.size()
        is_proven = all(
            self._stored_lines(each) or EvidenceFolder(self.state).is_settled(each.subject)
            for each in submissions(self.state, self.federation)
        )
        if self._is_cosigned and is_proven and size >= self._last_words:
            self._settled.set()

    def _against(
        self, last: SignedCheckpoint | None, offer: Offer, verdict: Verdict, why: str
    ) -> tuple[LogEvidence, str]:
        """Evidence that what was offered does not extend what we cosigned."""
        first = last or offer.signed
        sizes = f"{first.checkpoint.size}-{offer.signed.checkpoint.size}"
        evidence = LogEvidence(
            kind=_FOUND[verdict],
            why=why,
            node_id=self.node_id,
            found_at=self.clock(),
            checkpoints=(first.note, offer.signed.note),
            proof=tuple(offer.proof),
        )
        return evidence, sizes

    def _of_submission(
        self,
        kind: Kind,
        each: Submission,
        signed: SignedCheckpoint,
        why: str,
        *,
        shown: Shown | None,
    ) -> tuple[LogEvidence, str]:
        evidence = LogEvidence(
            kind=kind,
            why=why,
            node_id=self.node_id,
            found_at=self.clock(),
            checkpoints=(signed.note,),
            receipt=each.envelope,
            shown=shown,
        )
        return evidence, each.subject


def why_distrusted(folder: EvidenceFolder) -> str | None:
    """Say which evidence against the log nobody has dealt with, or nothing."""
    names = [each.name for each in folder.standing()]
    return _why(", ".join(names)) if names else None


def _why(names: str) -> str:
    return (
        f"the coordinator's log is not to be trusted: {names} in state_dir/log-evidence shows why. "
        "Check it with `matl audit evidence`, and show it to the other hospitals. Once it is "
        "explained, move it to log-evidence/settled to go on; see docs/log.md"
    )


def _with_line(note: Note, line: NoteSignature) -> Note:
    return Note(note.text, (*note.signatures, line))
