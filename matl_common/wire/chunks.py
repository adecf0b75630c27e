"""Chunks and model blocks as messages, without the copies that protobuf makes of a megabyte.

Both are a number and bytes, in fields 1 and 2. A message in the one form that this module and
protobuf write is read in place; every other form that protobuf accepts is left to protobuf, so
that what is accepted, and what it means, is the same.
"""

from dataclasses import dataclass
from typing import Final

from matl_common.wire import federation_pb2 as pb

# Field number and wire type, as in "Encoding" of the protobuf documentation: 0 a varint, 2 bytes.
_NUMBER: Final = 1 << 3 | 0
_BYTES: Final = 2 << 3 | 2
SLOWEST_BYTES_PER_SECOND: Final = 16 << 10
"""The slowest link that counts as alive, for both ends of it."""
_SHORT_VARINT: Final = 4
"""Bytes of the longest varint that is read here: below 2^28, so that nothing overflows."""


def transfer_seconds(byte_count: int) -> float:
    """How long so many bytes may be on their way."""
    return byte_count / SLOWEST_BYTES_PER_SECOND


@dataclass(frozen=True, slots=True)
class Numbered:
    """A chunk with its index, or a block with its offset."""

    number: int
    data: bytes | memoryview


def parse_push(message: bytes) -> Numbered | str | None:
    """A chunk, the digest of the update that chunks follow of, or neither.

    Raises:
        google.protobuf.message.DecodeError: it is not a ``PushChunksRequest``.
    """
    begin = _data_begins(message, 0)
    if begin is not None and (found := _numbered(message, begin)) is not None:
        return found
    parsed = pb.PushChunksRequest.FromString(message)
    match parsed.WhichOneof("part"):
        case "chunk":
            return Numbered(parsed.chunk.index, parsed.chunk.data)
        case "update_digest":
            return parsed.update_digest
    return None


def format_push(index: int, data: bytes) -> bytes:
    """A ``PushChunksRequest`` with a chunk."""
    head = _head(index, len(data))
    return b"".join((bytes((_BYTES,)), _varint(len(head) + len(data)), head, data))


def parse_block(message: bytes) -> Numbered:
    """A ``ModelBlock``.

    Raises:
        google.protobuf.message.DecodeError: it is not one.
    """
    found = _numbered(message, 0)
    if found is not None:
        return found
    parsed = pb.ModelBlock.FromString(message)
    return Numbered(parsed.offset, parsed.data)


def format_block(offset: int, data: bytes | memoryview) -> bytes:
    """A ``ModelBlock``."""
    return b"".join((_head(offset, len(data)), data))


def _head(number: int, length: int) -> bytes:
    """What comes before the bytes; a zero is left out, as protobuf does."""
    told = bytes((_NUMBER,)) + _varint(number) if number else b""
    return told + bytes((_BYTES,)) + _varint(length)


def _numbered(message: bytes, begin: int) -> Numbered | None:
    """A number, if it is not zero, and then bytes up to the message's end; or another form."""
    number = 0
    if message[begin : begin + 1] == bytes((_NUMBER,)):
        read = _read_varint(message, begin + 1)
        if read is None:
            return None
        number, begin = read
    data = _data_begins(message, begin)
    return None if data is None else Numbered(number, memoryview(message)[data:])


def _data_begins(message: bytes, begin: int) -> int | None:
    """Where the bytes of a field 2 begin that fills the message from ``begin`` to its end."""
    if message[begin : begin + 1] != bytes((_BYTES,)):
        return None
    read = _read_varint(message, begin + 1)
    if read is None or read[1] + read[0] != len(message):
        return None
    return read[1]


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _read_varint(message: bytes, begin: int) -> tuple[int, int] | None:
    """A short varint and where it ends."""
    value = 0
    for place, byte in enumerate(message[begin : begin + _SHORT_VARINT]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, begin + place + 1
    return None
