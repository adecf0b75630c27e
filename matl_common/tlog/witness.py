"""What a witness answers to a checkpoint, as a value.

The rules are those of C2SP tlog-witness for ``add-checkpoint``, in its order but for one:
two different checkpoints of one size are a fork whatever else was sent with them. Before
this is called, the log's signature has been verified (``open_checkpoint``); after
``ACCEPTED``, the caller replaces its last checkpoint by the new one, provided that it is
still the last, makes that durable, and *only then* cosigns.

Specification: https://c2sp.org/tlog-witness.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.tlog.checkpoint import Checkpoint
from matl_common.tlog.merkle import EMPTY_ROOT, verify_consistency


class Verdict(Enum):
    """What became of a checkpoint, with the status that tlog-witness gives it.

    ``FORK`` is proven to anyone by the two signed checkpoints alone. ``ROLLBACK`` and
    ``BAD_PROOF`` rest on the witness's word: a log that cannot show that it kept its
    leaves, or that says it has fewer, may also have been asked by somebody else.
    """

    ACCEPTED = "accepted"  # 200
    CONFLICT = "conflict"  # 409: the witness is at another size; send a proof from there
    BAD_PROOF = "bad proof"  # 422
    ROLLBACK = "rollback"  # 400: the log itself says that it shrank
    FORK = "fork"  # 422: two histories of one size


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and its reason.

    Attributes:
        verdict: what to do.
        reason: why, for people.
        size: size of the witness's last checkpoint, 0 if it has none; the answer to a
            ``CONFLICT``.
    """

    verdict: Verdict
    reason: str
    size: int


def decide(
    last: Checkpoint | None, *, old_size: int, proof: Sequence[bytes], new: Checkpoint
) -> Decision:
    """Decide whether to cosign a checkpoint.

    Args:
        last: the last checkpoint this witness cosigned for the log, as it was persisted;
            None at first contact, when any tree is accepted.
        old_size: the size the log believes the witness is at.
        proof: consistency proof from ``old_size`` to the new size; empty from 0.
        new: the log's checkpoint, its signature verified.

    Raises:
        InvalidInputError: the two checkpoints are of different logs.
    """
    if last is not None and last.origin != new.origin:
        raise InvalidInputError(f"a checkpoint of {new.origin!r} does not follow {last.origin!r}")
    size = last.size if last else 0
    if last is not None and new.size == last.size and new.root != last.root:
        return Decision(Verdict.FORK, f"two different roots were signed for size {size}", size)
    if old_size > new.size:
        return Decision(
            Verdict.ROLLBACK, f"the log went from {old_size} leaves back to {new.size}", size
        )
    if old_size != size:
        return Decision(
            Verdict.CONFLICT, f"the proof begins at size {old_size}, the witness is at {size}", size
        )
    if new.size == 0 and new.root != EMPTY_ROOT:
        return Decision(Verdict.BAD_PROOF, "an empty log has another root hash", size)
    try:
        _check_extends(last, proof, new)
    except IntegrityError as error:
        return Decision(Verdict.BAD_PROOF, str(error), size)
    return Decision(Verdict.ACCEPTED, f"size {new.size} extends size {size}", size)


def _check_extends(last: Checkpoint | None, proof: Sequence[bytes], new: Checkpoint) -> None:
    if last is not None and last.size > 0:
        verify_consistency(
            old_size=last.size,
            new_size=new.size,
            old_root=last.root,
            new_root=new.root,
            proof=proof,
        )
    elif proof:
        raise IntegrityError("from the empty tree there is nothing to prove")
