"""A log as the static files of C2SP tlog-tiles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import InvalidInputError
from matl_common.tlog.leaf import MAX_LEAF_BYTES
from matl_common.tlog.merkle import (
    Frontier,
    consistency_proof,
    grow,
    inclusion_proof,
    leaf_hash,
    merkle_root,
    root_from,
)
from matl_common.tlog.tiles import (
    MAX_BUNDLED_BYTES,
    EntryBundle,
    HashTile,
    encode_bundle,
    encode_tile,
    entry_bundles,
    hash_tiles,
    parse_bundle,
    parse_path,
    parse_tile,
    tree_in_tiles,
)

# Past 256 full tiles of leaves, so that there are three levels of tiles.
SIZE = 256 * 256 + 300
LEAVES = [leaf_hash(number.to_bytes(4)) for number in range(SIZE)]
FRONTIER, RUNS = grow(Frontier(), LEAVES)
LEVELS = [run.hashes for run in RUNS]


def read_stored(level: int, index: int) -> bytes:
    return LEVELS[level][index]


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (HashTile(0, 0), "tile/0/000"),
        (HashTile(63, 999, 1), "tile/63/999.p/1"),
        (HashTile(1, 1000), "tile/1/x001/000"),
        # The example of the specification.
        (HashTile(2, 1234067), "tile/2/x001/x234/067"),
        (HashTile(0, 2**55 - 1), "tile/0/x036/x028/x797/x018/x963/967"),
        (EntryBundle(0, 255), "tile/entries/000.p/255"),
        (EntryBundle(1234067), "tile/entries/x001/x234/067"),
    ],
)
def test_paths_are_those_of_the_specification(tile: HashTile | EntryBundle, path: str) -> None:
    assert tile.path == path
    assert parse_path(path) == tile


@given(st.integers(0, 63), st.integers(0, 2**55 - 1), st.integers(1, 256))
def test_a_path_is_read_back_as_it_was_written(level: int, index: int, width: int) -> None:
    for tile in (HashTile(level, index, width), EntryBundle(index, width)):
        assert parse_path(tile.path) == tile


@pytest.mark.hostile
@pytest.mark.parametrize(
    "path",
    [
        "",
        "checkpoint",
        "tile/0",
        "tile/0/0",
        "tile/0/0000",
        "tile/00/000",
        "tile/64/000",
        "tile/0/x000/000",
        "tile/0/001/000",
        "tile/0/x001/x000",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/257",
        "tile/entries/000.p/999",
        "tile/0/000.p/01",
        "tile/0/000.p",
        "tile/0/000\n",
        "tile/0/\u0660\u0660\u0660",
        "tile/data/000",
        "/tile/0/000",
        "tile/0/../000",
        "tile/0/x999/x999/x999/x999/x999/x999/999",
    ],
)
def test_another_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_path(path)


@pytest.mark.hostile
@given(st.text(max_size=60) | st.from_regex(r"tile/[0-9x./p]{1,30}", fullmatch=True))
def test_an_arbitrary_path_is_refused_in_one_way_only(path: str) -> None:
    try:
        tile = parse_path(path)
    except InvalidInputError:
        return
    assert tile.path == path


def test_a_tree_has_the_tiles_of_the_specifications_example() -> None:
    tiles = list(hash_tiles(70_000))
    assert [tile for tile in tiles if tile.width < 256] == [
        HashTile(0, 273, 112),
        HashTile(1, 1, 17),
        HashTile(2, 0, 1),
    ]
    assert sum(tile.level == 0 for tile in tiles) == 273 + 1
    assert sum(tile.level == 1 for tile in tiles) == 1 + 1
    assert list(hash_tiles(256)) == [HashTile(0, 0), HashTile(1, 0, 1)]
    assert list(hash_tiles(0)) == []
    assert len(list(entry_bundles(70_000))) == 274


@given(st.lists(st.integers(0, 2000), max_size=6).map(sorted))
def test_what_is_written_step_by_step_is_the_tree_at_every_step(sizes: list[int]) -> None:
    # Each step reads its tiles and bundles at the widths of its own size.
    written: set[HashTile | EntryBundle] = set()
    before = 0
    for size in sizes:
        new = set[HashTile | EntryBundle](hash_tiles(size, since=before))
        new.update(entry_bundles(size, since=before))
        assert not written.intersection(new)
        written.update(new)
        assert written.issuperset([*hash_tiles(size), *entry_bundles(size)])
        before = size


@given(st.integers(1, SIZE) | st.sampled_from([1, 255, 256, 257, 65535, 65536, 65537, SIZE]))
def test_a_tree_read_out_of_its_tiles_has_the_root_and_proofs_of_the_tree(size: int) -> None:
    cache: dict[HashTile, bytes] = {}

    def read_tile(tile: HashTile) -> bytes:
        assert tile in tiles
        return cache.setdefault(tile, encode_tile(tile, read_stored))

    tiles = set(hash_tiles(size))
    read = tree_in_tiles(size, read_tile)
    assert root_from(size, read) == merkle_root(LEAVES[:size])
    index = size * 2 // 3
    assert inclusion_proof(index, size, read) == inclusion_proof(index, size, read_stored)
    old = index + 1
    assert consistency_proof(old, size, read) == consistency_proof(old, size, read_stored)


@pytest.mark.parametrize("address", [(0, 300), (0, -1), (8, 1), (9, 0), (3, 37), (600, 0)])
def test_a_node_the_tree_does_not_have_is_not_read(address: tuple[int, int]) -> None:
    read = tree_in_tiles(300, lambda tile: encode_tile(tile, read_stored))
    with pytest.raises(InvalidInputError):
        read(*address)


def test_a_tile_holds_its_hashes_one_after_the_other() -> None:
    content = encode_tile(HashTile(1, 1, 1), read_stored)
    assert content == merkle_root(LEAVES[65536 : 65536 + 256])
    full = encode_tile(HashTile(0, 3), read_stored)
    assert len(full) == 8192
    assert parse_tile(full, width=256) == tuple(LEAVES[768:1024])
    for data in (full[:-1], full + b"x", b""):
        with pytest.raises(InvalidInputError):
            parse_tile(data, width=256)


@given(st.lists(st.binary(max_size=40), max_size=256))
def test_a_bundle_is_read_back_as_it_was_written(entries: list[bytes]) -> None:
    assert parse_bundle(encode_bundle(entries), width=len(entries)) == tuple(entries)


def test_a_bundle_counts_bytes_in_two_big_endian() -> None:
    assert encode_bundle([b"", b"ab", b"x" * 300]) == b"\0\0\0\2ab\1\x2c" + b"x" * 300


def test_every_entry_fits_into_a_bundle() -> None:
    assert MAX_LEAF_BYTES <= MAX_BUNDLED_BYTES
    encode_bundle([bytes(MAX_BUNDLED_BYTES)])
    for entries in ([bytes(MAX_BUNDLED_BYTES + 1)], [b""] * 257):
        with pytest.raises(InvalidInputError):
            encode_bundle(entries)


@pytest.mark.hostile
@given(st.binary(max_size=100), st.integers(1, 256))
def test_an_arbitrary_bundle_is_refused_in_one_way_only(data: bytes, width: int) -> None:
    try:
        entries = parse_bundle(data, width=width)
    except InvalidInputError:
        return
    assert len(entries) == width
    assert encode_bundle(entries) == data


@pytest.mark.hostile
@pytest.mark.parametrize("data", [b"\0", b"\0\5abcd", b"\0\1a\0", b"\0\1a", b"\0\0\0\0\0\0", b""])
def test_a_bundle_that_is_cut_short_or_too_long_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        parse_bundle(data, width=2)
