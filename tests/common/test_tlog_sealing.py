import itertools
import json
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.ids import digest_of
from matl_common.tlog.entry import Entry, entry_of, parse_entry
from matl_common.tlog.leaf import (
    MAX_LEAF_BYTES,
    SALT_BYTES,
    Leaf,
    check_disclosure,
    encode_leaf,
    parse_leaf,
)
from matl_common.tlog.sealing import (
    DATA_KEY_BYTES,
    RANDOM_BYTES,
    DataKey,
    Sealed,
    check_payload,
    data_key,
    open_sealed,
    seal,
)

ORIGIN = "test.matl.internal/log"
KEY = data_key("2026-11.1", bytes(range(DATA_KEY_BYTES)))
ENTRY = entry_of(
    {
        "event": "update_admitted",
        "at": "2026-11-28T12:00:00.000Z",
        "node": "hospital_c",
        "round": 3,
        "norm": 0.5,
    }
)


def sealed(entry: Entry = ENTRY, *, index: int = 7, key: DataKey = KEY) -> Sealed:
    return seal(entry, origin=ORIGIN, index=index, key=key, random=os.urandom(RANDOM_BYTES))


def test_an_entry_comes_back_and_its_leaf_tells_only_what_readers_filter_by() -> None:
    it = sealed()
    leaf = parse_leaf(it.leaf)
    assert open_sealed(leaf, it.payload, KEY).data == ENTRY.data
    assert (leaf.origin, leaf.index, leaf.at, leaf.key) == (ORIGIN, 7, ENTRY.at, KEY.name)
    assert (leaf.event, leaf.node, leaf.round) == ("update_admitted", "hospital_c", 3)
    assert leaf.month == "2026-11"
    assert b"norm" not in it.leaf + it.payload


def test_an_entry_about_nobody_says_nobody() -> None:
    entry = entry_of({"event": "study_paused", "at": ENTRY.at})
    leaf = parse_leaf(sealed(entry).leaf)
    assert (leaf.node, leaf.round) == (None, None)
    assert not {"node", "round"} & json.loads(encode_leaf(leaf)).keys()


def test_the_same_entry_at_the_same_index_is_another_leaf_each_time() -> None:
    first, second = sealed(), sealed()
    assert first.payload != second.payload
    assert parse_leaf(first.leaf).plaintext != parse_leaf(second.leaf).plaintext


@pytest.mark.parametrize("position", range(0, 160, 13))
def test_a_payload_with_a_changed_byte_is_refused_with_and_without_the_key(position: int) -> None:
    it = sealed()
    leaf = parse_leaf(it.leaf)
    changed = bytearray(it.payload)
    changed[position % len(changed)] ^= 1
    with pytest.raises(IntegrityError, match="payload of leaf 7"):
        check_payload(leaf, bytes(changed))
    # Even a leaf made for the changed payload: then the cipher's tag refuses.
    forged = replace(leaf, ciphertext=digest_of(bytes(changed)))
    with pytest.raises(IntegrityError, match="does not open"):
        open_sealed(forged, bytes(changed), KEY)


@pytest.mark.parametrize(
    "moved",
    [{"index": 8}, {"origin": "other"}, {"at": "2026-11-28T12:00:00.001Z"}, {"key": "2026-11.2"}],
)
def test_a_payload_opens_at_its_own_place_only(moved: dict[str, object]) -> None:
    it = sealed()
    with pytest.raises(IntegrityError, match="does not open"):
        open_sealed(replace(parse_leaf(it.leaf), **moved), it.payload, KEY)  # type: ignore[arg-type]


def test_a_payload_does_not_open_with_another_key() -> None:
    it = sealed()
    with pytest.raises(IntegrityError, match="does not open"):
        open_sealed(parse_leaf(it.leaf), it.payload, data_key(KEY.name, bytes(DATA_KEY_BYTES)))


def test_a_ciphertext_that_opens_to_another_text_is_refused() -> None:
    # Whoever holds keys could make one (AES-GCM is not key-committing); the leaf settles it.
    honest, other = sealed(), sealed(entry_of({"event": "x", "at": ENTRY.at}))
    lying = replace(parse_leaf(other.leaf), plaintext=parse_leaf(honest.leaf).plaintext)
    with pytest.raises(IntegrityError, match="does not commit to this entry"):
        open_sealed(lying, other.payload, KEY)


def test_a_single_entry_can_be_shown_without_its_key() -> None:
    it = sealed()
    leaf = parse_leaf(it.leaf)
    opened = open_sealed(leaf, it.payload, KEY)
    check_disclosure(leaf, salt=opened.salt, plaintext=opened.data)
    for salt, data in [
        (opened.salt, opened.data + b" "),
        (bytes(SALT_BYTES), opened.data),
        # A byte moved from one to the other hashes alike, and is refused by its length.
        (opened.salt + opened.data[:1], opened.data[1:]),
    ]:
        with pytest.raises(IntegrityError):
            check_disclosure(leaf, salt=salt, plaintext=data)


GOOD = json.loads(sealed().leaf)


def canonical(facts: dict[str, object]) -> bytes:
    return json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("v", 1),
        ("v", True),
        ("index", -1),
        ("index", True),
        ("index", "7"),
        ("index", 1 << 53),
        ("round", 1 << 53),
        ("at", "2026-11-28"),
        ("at", "2026-13-28T12:00:00.000Z"),
        ("plaintext", "00"),
        ("ciphertext", None),
        ("node", None),
        ("node", 3),
        ("round", None),
        ("round", True),
        ("event", 1),
        ("key", None),
        ("extra", 1),
        ("event", "x" * MAX_LEAF_BYTES),
    ],
)
def test_a_leaf_with_anything_else_in_it_is_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidInputError):
        parse_leaf(canonical(GOOD | {name: value}))


@pytest.mark.parametrize(
    ("found", "put"),
    [
        (b'{"at"', b'{ "at"'),
        (b'"index":7', b'"index":7.0'),
        (b'"v":2', b'"v":2.0'),
        (b'"v":2', b'"v":2,"v":2'),
        (b'"v":2', b'"v":2,"node":null'),
        (b'"event":"', b'"event":"\\u0061'),
        (b'"event":"', b'"event":"\\ud800'),
        (b'"event":"', b'"event":"\\u0009'),
        (b'"event":"', b'"event":"\\u001F'),
        (b'"event":"', b'"event":"\\/'),
        (b'"event":"', b'"event":"\t'),
        (b'"event":"', b'"event":"\xff'),
        (b'"index":7', b'"index":07'),
        (b'"index":7', b'"index":-0'),
        (b'"at":"2026', '"at":"\u0662026'.encode()),
        (b"}", b"}\n"),
    ],
)
def test_a_leaf_in_another_encoding_is_refused(found: bytes, put: bytes) -> None:
    good = canonical(GOOD)
    assert found in good
    parse_leaf(good)
    with pytest.raises(InvalidInputError):
        parse_leaf(good.replace(found, put))


@pytest.mark.parametrize("missing", sorted(GOOD.keys() - {"node", "round"}))
def test_a_leaf_without_one_of_its_names_is_refused(missing: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_leaf(canonical({name: fact for name, fact in GOOD.items() if name != missing}))


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_no_leaf_and_break_nothing(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        parse_leaf(data)


leaves = st.builds(
    Leaf,
    origin=st.text(st.characters(codec="utf-8"), max_size=40),
    index=st.integers(0, (1 << 53) - 1),
    at=st.just(ENTRY.at),
    event=st.text(st.characters(codec="utf-8"), max_size=40),
    node=st.none() | st.text(st.characters(codec="utf-8"), max_size=40),
    round=st.none() | st.integers(0, 1 << 40),
    plaintext=st.binary().map(digest_of),
    ciphertext=st.binary().map(digest_of),
    key=st.text(st.characters(codec="utf-8"), max_size=20),
)


@given(leaves)
def test_every_leaf_comes_back_as_it_was(leaf: Leaf) -> None:
    assert parse_leaf(encode_leaf(leaf)) == leaf
    # And in the one form that every document of the log has.
    parse_entry(encode_leaf(leaf))


@pytest.mark.parametrize(
    "facts",
    [
        {"event": "x"},
        {"at": ENTRY.at},
        {"event": 1, "at": ENTRY.at},
        {"event": "x", "at": ENTRY.at, "node": 1},
        {"event": "x", "at": ENTRY.at, "round": "1"},
        {"event": "x" * 201, "at": ENTRY.at},
    ],
)
def test_an_entry_without_what_its_leaf_needs_is_refused(facts: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match="what happened and when"):
        entry_of(facts)


def test_random_bytes_make_both_salt_and_nonce() -> None:
    drawn = [
        bytes([n]) * SALT_BYTES + bytes([m]) * 12 for n, m in itertools.product((1, 2), (3, 4))
    ]
    made = [seal(ENTRY, origin=ORIGIN, index=0, key=KEY, random=each) for each in drawn]
    assert len({each.payload[:12] for each in made}) == 2
    assert len({parse_leaf(each.leaf).plaintext for each in made}) == 2
