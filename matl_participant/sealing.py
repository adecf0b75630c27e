"""From a training result to a sealed update, and back from disk after a restart.

The order is the point: what may fail and be repeated, signing in a token, comes before anything
is moved; the bytes are durable before the signed manifest is, and that before the caller writes
SEAL. Nothing here touches the
ledger or the network. Blocking: call it in a thread.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from matl_common.errors import IntegrityError, InvalidInputError, MatlError
from matl_common.ids import Digest
from matl_common.protocol import (
    NoisedCount,
    PrivacySpend,
    PrivacyTerms,
    RoundStart,
    UpdateManifest,
)
from matl_common.signing import Signer
from matl_common.tensors import CHUNK_BYTES, hash_chunks
from matl_common.tlog.merkle import merkle_root
from matl_participant.client import (
    SealedUpdate,
    SignedPlan,
    read_sealed,
    seal_manifest,
)
from matl_participant.core.account import Attempt
from matl_participant.files import StudyFolder

HashesOf = Callable[[Path], list[bytes]]
"""What ``hash_chunks`` says of an update file."""


class ResultUnusableError(MatlError):
    """The worker left no update of the model's size."""


@dataclass(frozen=True, slots=True)
class Seal:
    """A sealed update and what the ledger has to say of it."""

    update: SealedUpdate
    content_digest: Digest


def seal_result(
    result: Path,
    study: StudyFolder,
    *,
    start: RoundStart,
    signed_plan: SignedPlan,
    attempt: Attempt,
    correct: float | None,
    signer: Signer,
    hashes_of: HashesOf = hash_chunks,
) -> Seal:
    """Make a training result durable, and sign what it is.

    A call that failed may be repeated; what it has moved by then is taken from there.

    Args:
        result: of the training worker.
        study: where it is kept.
        start: the round.
        signed_plan: of the study.
        attempt: as charged.
        correct: the noised count of an evaluation, if there was one.
        signer: of the hospital.
        hashes_of: hashes the result, or knows its hashes.

    Raises:
        TokenError: the signer's token is away; the result is still where it was.
        OSError: the disk failed.
        ResultUnusableError: there is no result, it has another size than the model, or there is
            an evaluation in it that was not charged, or none where one was.
    """
    plan, taken = signed_plan.plan, study.update(start.round_id)
    file = result if result.exists() or not taken.exists() else taken
    if not file.exists() or file.stat().st_size != plan.schema.update_bytes:
        raise ResultUnusableError(
            f"the training worker left no update of {plan.schema.update_bytes} bytes for round "
            f"{start.round_id}; see its messages in the log"
        )
    evaluation = _evaluation(correct, attempt, plan.privacy)
    manifest = manifest_of(
        file,
        start=start,
        signed_plan=signed_plan,
        base_model=attempt.base_model,
        steps=attempt.steps,
        evaluation=evaluation,
        hashes_of=hashes_of,
    )
    sealed = seal_manifest(manifest, taken, signer)
    study.take_result(file, start.round_id)
    study.write_manifest(start.round_id, sealed.envelope)
    return Seal(sealed, Digest(manifest.chunk_root.hex()))


def _evaluation(correct: float | None, attempt: Attempt, terms: PrivacyTerms) -> NoisedCount | None:
    if (correct is not None) != bool(attempt.evaluations):
        raise ResultUnusableError(
            f"the training worker of round {attempt.round_id} "
            + ("left out an evaluation that was" if correct is None else "gave an evaluation not")
            + " charged; the software is not of one version"
        )
    if correct is None or terms.evaluation is None:
        return None
    return NoisedCount(correct, terms.evaluation.noise_multiplier)


def manifest_of(
    file: Path,
    *,
    start: RoundStart,
    signed_plan: SignedPlan,
    base_model: Digest,
    steps: int,
    evaluation: NoisedCount | None = None,
    hashes_of: HashesOf = hash_chunks,
) -> UpdateManifest:
    """What is promised of an update file: trained for this round, as the plan asks.

    Nothing in it but ``chunk_root`` and a noised ``evaluation`` depends on data: not when
    training ended, either.
    """
    plan, terms = signed_plan.plan, signed_plan.plan.privacy
    return UpdateManifest(
        federation_id=start.federation_id,
        study_id=start.study_id,
        round_id=start.round_id,
        nonce=start.nonce,
        plan_digest=signed_plan.digest,
        base_model=base_model,
        schema_digest=plan.schema.digest,
        byte_count=plan.schema.update_bytes,
        chunk_bytes=CHUNK_BYTES,
        chunk_root=merkle_root(hashes_of(file)),
        privacy=PrivacySpend(
            terms.noise_multiplier, terms.max_grad_norm, terms.sample_rate, steps, terms.noise
        ),
        expires_at=start.deadline,
        evaluation=evaluation,
    )


def load_sealed(
    study: StudyFolder, attempt: Attempt, public_key: EllipticCurvePublicKey
) -> SealedUpdate | None:
    """Take up the update that the ledger calls sealed, if its files still are it."""
    with suppress(OSError, InvalidInputError, IntegrityError):
        file = study.update(attempt.round_id)
        sealed = read_sealed(study.read_manifest(attempt.round_id), file, public_key)
        if (
            sealed.digest == attempt.update_digest
            and merkle_root(hash_chunks(file)) == sealed.manifest.chunk_root
        ):
            return sealed
    return None
