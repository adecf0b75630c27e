"""Canonical audit entries."""

import math
from enum import StrEnum

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import InvalidInputError
from matl_common.tlog.entry import MAX_DEPTH, MAX_ENTRY_BYTES, encode_entry, parse_entry

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


class Kind(StrEnum):
    ROUND = "round"


def nested(levels: int) -> dict[str, object]:
    entry: dict[str, object] = {}
    for _ in range(levels - 1):
        entry = {"a": entry}
    return entry


def test_an_entry_is_sorted_compact_utf8() -> None:
    entry = {"b": [1, 2.5, None, True], "a": "é\n", "ä": {}}
    assert encode_entry(entry) == '{"a":"é\\n","b":[1,2.5,null,true],"ä":{}}'.encode()


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4))
def test_an_entry_is_read_back_as_it_was_written(entry: dict[str, object]) -> None:
    try:
        encoded = encode_entry(entry)
    except InvalidInputError:
        return
    assert parse_entry(encoded) == entry
    assert encode_entry(dict(reversed(entry.items()))) == encoded


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        2**53,
        b"bytes",
        {1: "a"},
        {None: "a"},
        {"a"},
        np.float64(1.0),
        np.int64(1),
        Kind.ROUND,
        "\ud800",
        object(),
    ],
)
def test_a_value_without_one_encoding_is_refused(value: object) -> None:
    with pytest.raises(InvalidInputError):
        encode_entry({"value": value})
    with pytest.raises(InvalidInputError):
        encode_entry({"value": [{"inner": value}]})


def test_depth_and_size_are_bounded() -> None:
    assert parse_entry(encode_entry(nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    with pytest.raises(InvalidInputError, match="nested"):
        encode_entry(nested(MAX_DEPTH + 1))
    with pytest.raises(InvalidInputError, match="bytes"):
        encode_entry({"a": "x" * MAX_ENTRY_BYTES})


@pytest.mark.hostile
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"1",
        b'{"a": 1}',
        b'{"b":1,"a":1}',
        b'{"a":1,"a":1}',
        b'{"a":NaN}',
        b'{"a":1e400}',
        b'{"a":1.50}',
        b'{"a":"\\u0061"}',
        b'{"a":"\\ud800"}',
        b"\xff",
        b'{"a":1}\n',
        b"[" * 60_000,
        b" " * (MAX_ENTRY_BYTES + 1),
    ],
)
def test_bytes_that_are_not_canonical_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        parse_entry(data)
