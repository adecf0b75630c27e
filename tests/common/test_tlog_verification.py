"""Whatever a log's leaves hold, the verifier says so in one way."""

import hashlib
from contextlib import suppress
from itertools import accumulate
from operator import attrgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.tlog.checkpoint import Checkpoint
from matl_common.tlog.entry import encode_entry
from matl_common.tlog.merkle import Frontier, grow, leaf_hash
from matl_common.tlog.verification import LogDamagedError, LogVerifier, StoredLeaf

ORIGIN = "test.matl.internal/log"
PAYLOAD = b"sealed"
AT = "2026-11-28T12:00:00.000Z"
VALUES: st.SearchStrategy[object] = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=5), st.just([])
)


def a_leaf(**facts: object) -> bytes:
    digest = hashlib.sha256(PAYLOAD).hexdigest()
    known = {"v": 2, "origin": ORIGIN, "index": 0, "at": AT, "event": "a", "key": "k"}
    return encode_entry({**known, "plaintext": digest, "ciphertext": digest, **facts})


def add(data: bytes, *, month: str | None = None) -> LogVerifier:
    verifier = LogVerifier(ORIGIN)
    verifier.add([StoredLeaf(0, leaf_hash(data), data, PAYLOAD, month)])
    return verifier


def gone(index: int) -> StoredLeaf:
    return StoredLeaf(index, leaf_hash(b"%d" % index), None, None)


@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_refused_in_one_way_only(data: bytes) -> None:
    with pytest.raises(LogDamagedError):
        add(data)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("at", "event", "index"), VALUES)))
def test_values_of_any_kind_are_refused_in_one_way_only(facts: dict[str, object]) -> None:
    with suppress(LogDamagedError):
        add(a_leaf(**facts))


def test_a_time_that_is_no_text_is_none_of_ours() -> None:
    with pytest.raises(LogDamagedError, match="none that this software writes"):
        add(a_leaf(at=7))


def test_a_leaf_is_filed_under_the_month_that_it_names() -> None:
    add(a_leaf(), month="2026-11")
    with pytest.raises(LogDamagedError, match="entry 0 is filed under 2019-01"):
        add(a_leaf(), month="2019-01")


@pytest.mark.parametrize("facts", [{"index": 1}, {"origin": "another/log"}])
def test_a_leaf_of_another_place_was_moved_here(facts: dict[str, object]) -> None:
    with pytest.raises(LogDamagedError, match="it was moved here"):
        add(a_leaf(**facts))


def test_a_log_whose_name_needs_escapes_is_its_own() -> None:
    data = a_leaf(origin='a"log\n')
    LogVerifier('a"log\n').add([StoredLeaf(0, leaf_hash(data), data, PAYLOAD)])


def test_what_is_gone_stays_gone_whatever_a_later_leaf_is_called() -> None:
    verifier = LogVerifier(ORIGIN)
    assert verifier.finish().first_gone is None
    verifier.add([gone(0), gone(1)])
    order = a_leaf(event="month_dropped", index=2)
    verifier.add([StoredLeaf(2, leaf_hash(order), order, PAYLOAD)])
    verifier.add([gone(3)])
    assert (verifier.finish().first_gone, verifier.finish().dropped) == (0, 3)


def test_checkpoints_among_the_leaves_do_not_break_the_runs_of_nodes() -> None:
    leaves = [gone(index) for index in range(300)]
    frontiers = list(
        accumulate(leaves, lambda so_far, each: grow(so_far, [each.hash])[0], initial=Frontier())
    )
    signed = [Checkpoint(ORIGIN, each.size, each.root()) for each in frontiers[1:]]
    _, expected = grow(Frontier(), [each.hash for each in leaves])
    assert sorted(LogVerifier(ORIGIN, signed).add(leaves), key=attrgetter("level")) == sorted(
        expected, key=attrgetter("level")
    )
