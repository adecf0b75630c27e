"""What is missing from a log is told by an order in it, or was taken."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import pytest

from matl.log.gaps import Gaps
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


NEW = 100
"""Where the first order lies."""


def order(event: str, month: str = "2019-01", **facts: Any) -> dict[str, Any]:
    """An order as it is on record, of seven years unless ``facts`` say otherwise."""
    known = {"at": "2026-11-28T12:00:00.000Z", "retention_years": 7, "compliance": "hipaa"}
    return {"event": event, "month": month, **known, "gone": [], "erased": {}, **facts}


def dropped(*gone: list[int], **facts: Any) -> dict[str, Any]:
    return order("month_dropped", gone=list(gone), **facts)


def erased(month: str = "2019-01", **facts: Any) -> dict[str, Any]:
    return order("month_key_erased", month, **facts)


def gaps(gone: Iterable[int], *told: dict[str, Any]) -> Gaps:
    found = Gaps()
    for index in gone:
        found.gone(index)
    for index, facts in enumerate(told, start=NEW):
        found.told(index, facts)
    return found


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ([], []),
        ([0, 1, 2], [dropped([0, 2])]),
        ([0, 1, 2, 3, 4], [dropped([0, 2]), dropped([3, 4])]),
        # The first order was in a month that was dropped by the second, which repeats it.
        ([0, 1, 2, 7, 8], [dropped([0, 2], [7, 8])]),
        # A clock went back: 0, 1 and 3 are of one month, and 2 of the next.
        ([0, 1, 3], [dropped([0, 1], [3, 3])]),
        ([0, 1, 2, 3], [dropped([0, 1], [3, 3]), dropped([0, 3])]),
        ([0, 1], [erased("2019-02", gone=[[0, 1]])]),
    ],
)
def test_months_that_were_dropped_by_order_are_accounted_for(
    gone: list[int], told: list[dict[str, Any]]
) -> None:
    gaps(gone, *told).check(held=())


@pytest.mark.parametrize(
    ("gone", "told", "first"),
    [
        ([5], [], 5),
        ([0, 1, 2, 3], [dropped([0, 2])], 3),
        ([0, 1, 2, 9], [dropped([0, 2])], 9),
        ([0, 1, 2, 3, 4], [dropped([0, 1]), dropped([3, 4])], 2),
        # As many as were dropped, and others; before them, and behind.
        ([0, 7], [dropped([7, 8])], 0),
        ([1, 2, 9], [dropped([0, 2])], 9),
        # No order tells of what comes after it.
        ([NEW + 5], [dropped([NEW + 5, NEW + 5])], NEW + 5),
        # An entry of another event, and an order that does not say all.
        ([5], [order("happened", gone=[[5, 5]])], 5),
        ([5], [{"event": "month_dropped", "month": "2019-01", "gone": [[5, 5]]}], 5),
    ],
)
def test_the_first_entry_that_no_order_accounts_for_is_named(
    gone: list[int], told: list[dict[str, Any]], first: int
) -> None:
    with pytest.raises(LogDamagedError, match=f"entry {first} is gone") as caught:
        gaps(gone, *told).check(held=())
    assert caught.value.first == first


@pytest.mark.parametrize(
    ("told", "held", "is_sound"),
    [
        ([], [], False),
        ([erased()], [], True),
        ([erased("2019-02")], [], False),
        # The order was put away itself; the next one repeats it.
        ([erased("2019-02", erased={"2019-01": 5})], [], True),
        ([erased("2019-02", erased={"2019-01": 4})], [], False),
        ([dropped(erased={"2019-01": NEW + 9})], [], False),
        # Made since the keys were read.
        ([], ["2019-01.1"], True),
    ],
)
def test_a_key_is_missing_by_order_alone(
    told: list[dict[str, Any]], held: Collection[str], *, is_sound: bool
) -> None:
    found = Gaps()
    found.sealed(replace(LEAF, index=4))
    for index, facts in enumerate(told, start=NEW):
        found.told(index, facts)
    if is_sound:
        found.check(held=held)
    else:
        with pytest.raises(LogDamagedError, match=r"entry 4 cannot be read: data key 2019-01\.1"):
            found.check(held=held)


@pytest.mark.hostile
@pytest.mark.parametrize("event", ["month_dropped", "month_key_erased"])
def test_an_order_that_cannot_be_read_excuses_nothing_and_is_told_of(event: str) -> None:
    junk = replace(LEAF, index=NEW, at="2026-11-28T12:00:00.000Z", event=event, key="2026-11.9")
    found = gaps([5])
    found.sealed(junk)
    with pytest.raises(LogDamagedError, match="entry 5 is gone"):
        found.check(held=())
    found = gaps([])
    found.sealed(junk)
    with pytest.raises(LogDamagedError, match=f"entry {NEW} cannot be read"):
        found.check(held=())


@pytest.mark.hostile
def test_an_erased_month_excuses_no_leaf_that_was_added_after_its_order() -> None:
    found = gaps([], erased())
    found.sealed(replace(LEAF, index=NEW + 1))
    with pytest.raises(LogDamagedError, match=f"entry {NEW + 1} cannot be read"):
        found.check(held=())


@pytest.mark.parametrize("event", ["month_dropped", "month_key_erased"])
def test_an_order_before_the_end_of_the_years_that_it_names_is_damage(event: str) -> None:
    gaps([], order(event, at="2026-02-01T00:00:00.000Z")).check(held=())
    with pytest.raises(LogDamagedError, match="before the 7 years of retention") as caught:
        gaps([], order(event, at="2026-01-31T23:59:59.999Z"))
    assert caught.value.first == NEW
    for odd in ({"at": "then"}, {"month": "2019"}, {"retention_years": 9000}):
        with pytest.raises(LogDamagedError):
            gaps([], order(event) | odd)


def test_fewer_years_than_hipaa_asks_for_are_warned_of() -> None:
    assert gaps([], dropped(retention_years=6)).warnings() == []
    (warning,) = gaps([], dropped(retention_years=5, compliance="none")).warnings()
    assert f"entry {NEW}" in warning
    assert "after 5 years, under compliance 'none': HIPAA asks for 6" in warning
