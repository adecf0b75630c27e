"""Chunks and model blocks, which are read in place, against protobuf's reading of them."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from matl_common.errors import InvalidInputError
from matl_common.wire import federation_pb2 as pb
from matl_common.wire.chunks import Numbered, format_block, format_push, parse_block, parse_push
from tests.fuzz.target import Target

Plain = tuple[int, bytes] | str | None


def plain(found: Numbered | str | None) -> Plain:
    """Without the memory it lies in."""
    return (found.number, bytes(found.data)) if isinstance(found, Numbered) else found


def _push_by_protobuf(message: bytes) -> Plain:
    parsed = pb.PushChunksRequest.FromString(message)
    if parsed.WhichOneof("part") == "chunk":
        return parsed.chunk.index, parsed.chunk.data
    return parsed.update_digest if parsed.HasField("update_digest") else None


def _block_by_protobuf(message: bytes) -> Plain:
    parsed = pb.ModelBlock.FromString(message)
    return parsed.offset, parsed.data


def agrees(message: bytes) -> int:
    """How many of the two kinds of message these bytes are; ours and protobuf's answer agree."""
    read = 0
    for ours, protobuf in ((parse_push, _push_by_protobuf), (parse_block, _block_by_protobuf)):
        try:
            expected = protobuf(message)
        except DecodeError:
            try:
                ours(message)
            except DecodeError:
                continue
            raise AssertionError(f"{ours.__name__} reads what protobuf does not") from None
        assert plain(ours(message)) == expected
        read += 1
    return read


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Fields of either kind, and what a few changed bytes make of them."""
    number = draw(st.integers(0, 2**35))
    made = draw(st.sampled_from((format_push, format_block)))(number, draw(st.binary(max_size=200)))
    damaged = bytearray(made + draw(st.binary(max_size=3)))
    for _ in range(draw(st.integers(0, 3))):
        damaged[draw(st.integers(0, len(damaged) - 1))] = draw(st.integers(0, 255))
    return bytes(damaged)


def _run(data: bytes) -> None:
    if not agrees(data):
        raise InvalidInputError("neither a chunk nor a block")


TARGET = Target(
    run=_run,
    seeds=[
        format_push(0, b"chunk"),
        format_push(97, b"chunk"),
        format_block(3 << 20, b"block"),
        pb.PushChunksRequest(update_digest="0" * 64).SerializeToString(),
    ],
)
