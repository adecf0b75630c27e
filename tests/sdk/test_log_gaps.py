"""What is missing from a log is told by an order in it, or was taken."""

from collections.abc import Collection, Iterable
from dataclasses import replace

import pytest

from matl.log_gaps import Gaps
from matl_common.ids import digest_of
from matl_common.tlog.leaf import Leaf
from matl_common.tlog.verification import LogDamagedError

LEAF = Leaf(
    origin="test.matl.internal/log",
    index=0,
    at="2019-01-31T00:00:00.000Z",
    event="a",
    node=None,
    round=None,
    plaintext=digest_of(b"text"),
    ciphertext=digest_of(b"payload"),
    key="2019-01.1",
)


def dropped(*, entries: int, last: int) -> dict[str, object]:
    return {"event": "month_dropped", "entries": entries, "last_index": last}


def gaps(gone: Iterable[int], *told: dict[str, object]) -> Gaps:
    found = Gaps()
    for index in gone:
        found.gone(index)
    for facts in told:
        found.told(facts)
    return found


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ([], []),
        ([0, 1, 2], [dropped(entries=3, last=2)]),
        ([0, 1, 2, 3, 4], [dropped(entries=3, last=2), dropped(entries=2, last=4)]),
        # The first order was in a month that was dropped by the second.
        ([0, 1, 2, 7, 8], [dropped(entries=2, last=8)]),
        # A clock went back: 0, 1 and 3 are of one month, and 2 of the next.
        ([0, 1, 2, 3], [dropped(entries=3, last=3), dropped(entries=1, last=2)]),
        ([0, 1, 3], [dropped(entries=3, last=3)]),
    ],
)
def test_months_that_were_dropped_by_order_are_accounted_for(
    gone: list[int], told: list[dict[str, object]]
) -> None:
    gaps(gone, *told).check(held=())


@pytest.mark.parametrize(
    ("gone", "told", "first"),
    [
        ([5], [], 5),
        ([0, 1, 2, 3], [dropped(entries=3, last=2)], 3),
        ([0, 1, 2, 9], [dropped(entries=3, last=2)], 9),
        ([0, 1, 2, 3, 4], [dropped(entries=2, last=1), dropped(entries=2, last=4)], 2),
    ],
)
def test_the_first_entry_that_no_order_accounts_for_is_named(
    gone: list[int], told: list[dict[str, object]], first: int
) -> None:
    with pytest.raises(LogDamagedError, match=f"entry {first} is gone") as caught:
        gaps(gone, *told).check(held=())
    assert caught.value.first == first


@pytest.mark.parametrize(
    ("told", "orders", "held", "is_sound"),
    [
        ([], [], [], False),
        ([{"event": "month_key_erased", "month": "2019-01"}], [], [], True),
        ([{"event": "month_key_erased", "month": "2019-02"}], [], [], False),
        # Made since the keys were read.
        ([], [], ["2019-01.1"], True),
        # The order stands there, and cannot be read itself.
        ([], ["month_key_erased"], [], True),
        ([], ["b"], [], False),
    ],
)
def test_a_key_is_missing_by_order_alone(
    told: list[dict[str, object]], orders: list[str], held: Collection[str], *, is_sound: bool
) -> None:
    found = gaps([], *told)
    found.sealed(replace(LEAF, index=4))
    for event in orders:
        found.sealed(replace(LEAF, index=6, event=event))
    if is_sound:
        found.check(held=held)
    else:
        with pytest.raises(LogDamagedError, match=r"entry 4 cannot be read: data key 2019-01\.1"):
            found.check(held=held)
