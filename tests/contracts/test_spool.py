"""What every ``ports.Spool`` and ``ports.UpdateSink`` promises."""

from collections.abc import Callable

import pytest

from matl_common.ids import NodeId, RoundId
from matl_common.tensors import CHUNK_BYTES
from matl_common.tlog.merkle import leaf_hash
from matl_coordinator.ports import Spool, SpoolError, SpoolFullError, UpdateSink

OpenSpool = Callable[[int], Spool]
ROUND, NODE = RoundId(3), NodeId("hospital_a")
AMPLE = 1 << 30
CHUNKS = (b"a" * CHUNK_BYTES, b"b" * CHUNK_BYTES, b"c" * 10)
BYTES = sum(map(len, CHUNKS))


def hashes(chunks: tuple[bytes, ...] = CHUNKS) -> bytes:
    return b"".join(map(leaf_hash, chunks))


def open_sink(spool: Spool, node: NodeId = NODE, number: RoundId = ROUND) -> UpdateSink:
    return spool.open(number, node, byte_count=BYTES, chunk_hashes=hashes())


def fill(sink: UpdateSink) -> None:
    for index in range(sink.received_chunks, len(CHUNKS)):
        sink.append(index, CHUNKS[index])


def test_a_complete_update_is_the_chunks_in_order(open_spool: OpenSpool) -> None:
    spool = open_spool(AMPLE)
    sink = open_sink(spool)
    assert sink.received_chunks == 0
    fill(sink)
    assert sink.received_chunks == 3
    path = sink.finish()
    sink.close()
    assert path == spool.path(ROUND, NODE)
    assert path.read_bytes() == b"".join(CHUNKS)


def test_an_incomplete_update_has_no_path(open_spool: OpenSpool) -> None:
    spool = open_spool(AMPLE)
    sink = open_sink(spool)
    sink.append(0, CHUNKS[0])
    with pytest.raises(SpoolError):
        sink.finish()
    with pytest.raises(SpoolError):
        spool.path(ROUND, NODE)
    assert sink.received_chunks == 1


@pytest.mark.parametrize(
    ("index", "data"),
    [
        (0, CHUNKS[0]),
        (2, CHUNKS[2]),
        (-1, CHUNKS[1]),
        (1, CHUNKS[0]),
        (1, CHUNKS[1][:-1]),
        (1, CHUNKS[1] + b"x"),
        (1, b""),
    ],
    ids=["again", "skipped", "negative", "other bytes", "short", "long", "empty"],
)
def test_a_wrong_chunk_is_refused_and_changes_nothing(
    open_spool: OpenSpool, index: int, data: bytes
) -> None:
    sink = open_sink(open_spool(AMPLE))
    sink.append(0, CHUNKS[0])
    with pytest.raises(SpoolError):
        sink.append(index, data)
    assert sink.received_chunks == 1
    fill(sink)
    assert sink.finish().read_bytes() == b"".join(CHUNKS)


def test_nothing_follows_the_last_chunk(open_spool: OpenSpool) -> None:
    sink = open_sink(open_spool(AMPLE))
    fill(sink)
    for data in (b"", b"d" * 10, CHUNKS[2]):
        with pytest.raises(SpoolError):
            sink.append(3, data)
    assert sink.finish().stat().st_size == BYTES


def test_synced_chunks_outlive_the_process(open_spool: OpenSpool) -> None:
    sink = open_sink(open_spool(AMPLE))
    sink.append(0, CHUNKS[0])
    sink.append(1, CHUNKS[1])
    assert sink.sync() == 2
    resumed = open_sink(open_spool(AMPLE))
    assert resumed.received_chunks == 2
    fill(resumed)
    assert resumed.finish().read_bytes() == b"".join(CHUNKS)


def test_a_complete_update_outlives_the_process(open_spool: OpenSpool) -> None:
    sink = open_sink(open_spool(AMPLE))
    fill(sink)
    sink.finish()
    spool = open_spool(AMPLE)
    assert spool.path(ROUND, NODE).read_bytes() == b"".join(CHUNKS)
    again = open_sink(spool)
    assert again.received_chunks == 3
    assert again.finish() == spool.path(ROUND, NODE)
    assert again.finish().read_bytes() == b"".join(CHUNKS)


def test_a_reopened_update_goes_on_where_it_was_closed(open_spool: OpenSpool) -> None:
    spool = open_spool(AMPLE)
    sink = open_sink(spool)
    sink.append(0, CHUNKS[0])
    sink.sync()
    sink.close()
    assert open_sink(spool).received_chunks == 1


def test_only_chunks_that_match_the_new_declaration_are_kept(open_spool: OpenSpool) -> None:
    sink = open_sink(open_spool(AMPLE))
    fill(sink)
    sink.finish()
    other = (CHUNKS[0], b"x" * CHUNK_BYTES, b"y")
    spool = open_spool(AMPLE)
    sink = spool.open(ROUND, NODE, byte_count=2 * CHUNK_BYTES + 1, chunk_hashes=hashes(other))
    assert sink.received_chunks == 1
    with pytest.raises(SpoolError):
        spool.path(ROUND, NODE)
    sink.append(1, other[1])
    sink.append(2, other[2])
    assert sink.finish().read_bytes() == b"".join(other)


def test_a_second_sink_for_a_node_and_round_is_refused(open_spool: OpenSpool) -> None:
    spool = open_spool(AMPLE)
    sink = open_sink(spool)
    with pytest.raises(SpoolError):
        open_sink(spool)
    open_sink(spool, NodeId("hospital_b"))
    open_sink(spool, NODE, RoundId(4))
    sink.append(0, CHUNKS[0])
    sink.close()
    open_sink(spool)


def test_a_closed_sink_takes_nothing(open_spool: OpenSpool) -> None:
    sink = open_sink(open_spool(AMPLE))
    sink.append(0, CHUNKS[0])
    sink.close()
    sink.close()
    for call in (lambda: sink.append(1, CHUNKS[1]), sink.sync, sink.finish):
        with pytest.raises(SpoolError):
            call()


def test_whole_updates_are_reserved_before_a_byte_arrives(open_spool: OpenSpool) -> None:
    spool = open_spool(2 * BYTES)
    first = open_sink(spool, NodeId("a"))
    open_sink(spool, NodeId("b"))
    with pytest.raises(SpoolFullError):
        open_sink(spool, NodeId("c"))
    # Closing frees nothing: the update may go on.
    first.close()
    with pytest.raises(SpoolFullError):
        open_sink(spool, NodeId("c"))
    open_sink(spool, NodeId("a"))


def test_a_refused_declaration_takes_no_room(open_spool: OpenSpool) -> None:
    spool = open_spool(BYTES)
    with pytest.raises(SpoolFullError):
        spool.open(ROUND, NODE, byte_count=BYTES + 1, chunk_hashes=hashes())
    open_sink(spool, NodeId("b"))


def test_what_an_earlier_process_left_counts_against_the_quota(open_spool: OpenSpool) -> None:
    sink = open_sink(open_spool(BYTES))
    fill(sink)
    sink.finish()
    with pytest.raises(SpoolFullError):
        open_sink(open_spool(BYTES), NodeId("b"))


@pytest.mark.parametrize(
    ("byte_count", "chunk_hashes"),
    [(0, b""), (-1, b""), (BYTES, hashes()[:-1]), (BYTES, hashes() + bytes(32)), (1 << 60, b"")],
)
def test_sizes_that_contradict_each_other_are_refused(
    open_spool: OpenSpool, byte_count: int, chunk_hashes: bytes
) -> None:
    with pytest.raises(SpoolError):
        open_spool(AMPLE).open(ROUND, NODE, byte_count=byte_count, chunk_hashes=chunk_hashes)


def test_discarding_removes_earlier_rounds_only(open_spool: OpenSpool) -> None:
    spool = open_spool(3 * BYTES)
    sinks = {number: open_sink(spool, NODE, RoundId(number)) for number in (2, 10, 11)}
    for sink in sinks.values():
        fill(sink)
        sink.finish()
    notes = {number: spool.scratch(RoundId(number)) / "row" for number in (1, 2, 10)}
    for note in notes.values():
        note.write_bytes(b"row")
    spool.discard_before(RoundId(10))
    assert [number for number, note in notes.items() if note.exists()] == [10]
    with pytest.raises(SpoolError):
        spool.path(RoundId(2), NODE)
    assert spool.path(RoundId(10), NODE).exists()
    # Its room is free again; and the sink that was open in it is of no use.
    open_sink(spool, NODE, RoundId(12))
    with pytest.raises(SpoolError):
        sinks[2].sync()
    spool.discard_before(RoundId(10))


def test_a_sink_of_a_discarded_round_does_not_close_its_successor(open_spool: OpenSpool) -> None:
    spool = open_spool(AMPLE)
    old = open_sink(spool)
    spool.discard_before(RoundId(ROUND + 1))
    new = open_sink(spool)
    old.close()
    with pytest.raises(SpoolError):
        open_sink(spool)
    fill(new)
    assert new.finish().read_bytes() == b"".join(CHUNKS)


def test_scratch_is_cleared_without_touching_updates(open_spool: OpenSpool) -> None:
    spool = open_spool(AMPLE)
    sink = open_sink(spool)
    fill(sink)
    path = sink.finish()
    sink.close()
    row = spool.scratch(ROUND) / "row"
    row.write_bytes(b"row")
    spool.clear_scratch(ROUND)
    spool.clear_scratch(ROUND)
    assert not row.parent.exists()
    assert path.read_bytes() == b"".join(CHUNKS)
    assert spool.scratch(ROUND).is_dir()


def test_scratch_stays_while_the_round_does(open_spool: OpenSpool) -> None:
    spool = open_spool(AMPLE)
    folder = spool.scratch(ROUND)
    (folder / "row").write_bytes(b"row")
    assert spool.scratch(ROUND) == folder
    spool.discard_before(ROUND)
    assert (folder / "row").read_bytes() == b"row"


def test_a_chunk_of_another_length_is_refused_though_its_hash_was_declared(
    open_spool: OpenSpool,
) -> None:
    short = (b"a" * 10, b"b" * (CHUNK_BYTES + 1), b"c" * 9)
    sink = open_spool(AMPLE).open(ROUND, NODE, byte_count=BYTES, chunk_hashes=hashes(short))
    with pytest.raises(SpoolError):
        sink.append(0, short[0])
    assert sink.received_chunks == 0
