"""Chunks and blocks that are read in place say what protobuf says of them."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from matl_common.tensors import CHUNK_BYTES
from matl_common.wire import federation_pb2 as pb
from matl_common.wire.chunks import (
    Numbered,
    format_block,
    format_push,
    parse_block,
    parse_push,
    transfer_seconds,
)
from matl_participant.client import Timeouts
from tests.fuzz import chunk

NUMBERS = st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1))
LENGTHS = (0, 1, 127, 128, 16_383, 16_384, 1 << 20)


def test_a_chunk_may_take_as_long_as_the_slowest_link_that_counts_as_alive() -> None:
    assert transfer_seconds(CHUNK_BYTES) == 64.0
    assert Timeouts(call_seconds=30.0).transfer_seconds(CHUNK_BYTES) == 94.0


@given(index=NUMBERS, data=st.binary(max_size=300))
def test_chunks_and_blocks_are_written_as_protobuf_does(index: int, data: bytes) -> None:
    block = pb.ModelBlock(offset=index, data=data).SerializeToString()
    push = pb.PushChunksRequest(chunk=pb.Chunk(index=index, data=data)).SerializeToString()
    # protobuf leaves out what is empty; nobody sends that.
    if data:
        assert format_block(index, data) == block
        assert format_push(index, data) == push
    for written in (push, format_push(index, data)):
        assert chunk.plain(parse_push(written)) == (index, data)
    for written in (block, format_block(index, data)):
        assert chunk.plain(parse_block(written)) == (index, data)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("number", [0, 1, 127, 128, 2**28 - 1, 2**28, 2**32 - 1])
def test_every_length_of_a_number_is_read(number: int, length: int) -> None:
    data = bytes(length)
    assert chunk.plain(parse_push(format_push(number, data))) == (number, data)
    assert chunk.plain(parse_block(format_block(number, data))) == (number, data)


def test_the_bytes_of_a_chunk_are_not_copied() -> None:
    message = format_push(7, b"x" * 1000)
    found = parse_push(message)
    assert isinstance(found, Numbered)
    assert isinstance(found.data, memoryview)
    assert found.data.obj is message


def test_the_first_message_is_a_name_and_an_empty_one_is_nothing() -> None:
    name = pb.PushChunksRequest(update_digest="0" * 64).SerializeToString()
    assert parse_push(name) == "0" * 64
    assert parse_push(b"") is None


@given(chunk.messages())
# Fields twice, in the other order, unknown, longer than they need be, or cut off.
@example(b"\x12\x06\x08\x01\x12\x00\x08\x02")
@example(b"\x12\x06\x12\x02ab\x08\x02")
@example(b"\x12\x05\x12\x01a\x18\x01")
@example(b"\x12\x06\x08\x81\x00\x12\x01a")
@example(b"\x12\x84\x00\x12\x02ab")
@example(b"\x12\x05\x12\x02ab")
@example(b"\x12\x04\x12\x02ab\x12\x03\x12\x01c")
@example(b"\x0a\x01a\x12\x03\x12\x01c")
@example(b"\x12\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\x08\x81\x80\x80\x80\x10\x12\x01a")
def test_whatever_comes_means_what_it_means_to_protobuf(message: bytes) -> None:
    chunk.agrees(message)


def test_what_protobuf_does_not_read_nobody_does() -> None:
    for parse in (parse_push, parse_block):
        with pytest.raises(DecodeError):
            parse(b"\x12\x05\x12")
