"""What a witness answers to a checkpoint."""

from itertools import product

import pytest

from matl_common.errors import InvalidInputError
from matl_common.tlog.checkpoint import Checkpoint
from matl_common.tlog.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    grow,
    leaf_hash,
    merkle_root,
)
from matl_common.tlog.witness import Decision, Verdict, decide

ORIGIN = "dr-study.matl.internal/log"
LARGEST = 12
LEAVES = [leaf_hash(bytes([number])) for number in range(LARGEST)]
_, RUNS = grow(Frontier(), LEAVES)
NODES = {
    (run.level, index): value for run in RUNS for index, value in enumerate(run.hashes, run.first)
}
SIZES = range(LARGEST + 1)


def checkpoint(size: int) -> Checkpoint:
    return Checkpoint(ORIGIN, size, merkle_root(LEAVES[:size]))


def forked(size: int) -> Checkpoint:
    """A checkpoint of another history, whose first leaf differs."""
    return Checkpoint(ORIGIN, size, merkle_root([leaf_hash(b"other"), *LEAVES[1:size]]))


def proof(old: int, new: int) -> list[bytes]:
    if not 1 <= old <= new:
        return []
    return consistency_proof(old, new, lambda level, index: NODES[level, index])


def answer(last: Checkpoint | None, old: int, new: Checkpoint) -> Verdict:
    return decide(last, old_size=old, proof=proof(old, new.size), new=new).verdict


def test_every_honest_step_is_accepted() -> None:
    for old, new in product(SIZES, SIZES):
        if old <= new:
            assert answer(checkpoint(old), old, checkpoint(new)) is Verdict.ACCEPTED, (old, new)


def test_at_first_contact_any_tree_is_accepted_without_a_proof() -> None:
    for size in SIZES:
        assert answer(None, 0, checkpoint(size)) is Verdict.ACCEPTED
    made_up = [leaf_hash(b"")]
    assert decide(None, old_size=0, proof=made_up, new=checkpoint(3)).verdict is Verdict.BAD_PROOF


def test_whoever_is_wrong_about_the_witness_is_told_its_size() -> None:
    for last, old, new in product((None, *SIZES), SIZES, SIZES):
        known = 0 if last is None else last
        if old in (known, new) or old > new:
            continue
        held = None if last is None else checkpoint(last)
        decision = decide(held, old_size=old, proof=proof(old, new), new=checkpoint(new))
        assert (decision.verdict, decision.size) == (Verdict.CONFLICT, known), (last, old, new)


def test_a_log_that_says_it_shrank_is_rolled_back() -> None:
    for last, new in product(SIZES, SIZES):
        if new < last:
            assert answer(checkpoint(last), last, checkpoint(new)) is Verdict.ROLLBACK, (last, new)


def test_an_old_checkpoint_that_was_overtaken_on_its_way_is_no_rollback() -> None:
    assert answer(checkpoint(9), 4, checkpoint(7)) is Verdict.CONFLICT


def test_two_roots_of_one_size_are_a_fork_whatever_is_sent_with_them() -> None:
    for size, old in product(range(1, LARGEST + 1), SIZES):
        assert answer(checkpoint(size), old, forked(size)) is Verdict.FORK, (size, old)
        decision = decide(checkpoint(size), old_size=size, proof=LEAVES, new=forked(size))
        assert decision.verdict is Verdict.FORK


def test_no_proof_leads_into_another_history() -> None:
    for old, new in product(range(1, LARGEST + 1), SIZES):
        if old < new:
            assert answer(checkpoint(old), old, forked(new)) is Verdict.BAD_PROOF, (old, new)


@pytest.mark.parametrize("wrong", [[], proof(4, 9), [*proof(5, 9), LEAVES[0]], [b"short"]])
def test_a_proof_of_something_else_is_a_bad_proof(wrong: list[bytes]) -> None:
    decision = decide(checkpoint(5), old_size=5, proof=wrong, new=checkpoint(9))
    assert decision.verdict is Verdict.BAD_PROOF
    assert decision.size == 5
    assert decision.reason


def test_a_proof_from_a_tree_to_itself_is_empty() -> None:
    again = decide(checkpoint(5), old_size=5, proof=LEAVES[:1], new=checkpoint(5))
    assert again.verdict is Verdict.BAD_PROOF


def test_an_empty_log_has_the_empty_root() -> None:
    assert checkpoint(0).root == EMPTY_ROOT
    wrong = Checkpoint(ORIGIN, 0, LEAVES[0])
    assert answer(None, 0, wrong) is Verdict.BAD_PROOF
    assert answer(checkpoint(0), 0, wrong) is Verdict.FORK


def test_checkpoints_of_two_logs_are_not_compared() -> None:
    other = Checkpoint("other.example/log", 9, checkpoint(9).root)
    with pytest.raises(InvalidInputError):
        decide(checkpoint(5), old_size=5, proof=proof(5, 9), new=other)


def test_a_decision_says_why() -> None:
    decision = decide(checkpoint(5), old_size=5, proof=proof(5, 9), new=checkpoint(9))
    assert decision == Decision(Verdict.ACCEPTED, "size 9 extends size 5", 5)
