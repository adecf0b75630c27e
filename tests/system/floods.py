"""Attacks on a coordinator's memory, descriptors and time. Each is bounded, on loopback only."""

from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cache

from matl_common.identity.tls import TlsFiles
from tests.system.frames import (
    CANCEL,
    CONTINUATION,
    PING,
    RST_STREAM,
    WAIT_SECONDS,
    RawConnection,
    frame,
    header_block,
    message,
    raw_connection,
)

MEBIBYTE = 1 << 20
BOMB_MEBIBYTES = 900
TENSORS = 10_000_000
IDLE_STREAMS, IDLE_CONNECTIONS = 200, 5
PINGS = 20_000
RESETS = 2_000
HALF_OPEN = 400
HEADER_BYTES = 16 * MEBIBYTE
BROKEN_OFF, AT_A_TIME, CALLERS = 1_000, 50, 4
SERVICE = "/matl.v1.FederationService/"
INVALID_ARGUMENT, RESOURCE_EXHAUSTED = 3, 8
# The beginning of a TLS record that says it is longer than what ever comes.
PART_OF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00"


@cache
def bomb() -> bytes:
    """900 MiB of zeros as gzip (RFC 1952), in less than 1 MiB."""
    zeros = bytes(MEBIBYTE)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    # After a full flush a block refers to nothing before it, so it may be repeated.
    block = compressor.compress(zeros) + compressor.flush(zlib.Z_FULL_FLUSH)
    checksum = 0
    for _ in range(BOMB_MEBIBYTES):
        checksum = zlib.crc32(zeros, checksum)
    head = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    tail = struct.pack("<II", checksum, BOMB_MEBIBYTES * MEBIBYTE)
    return head + block * BOMB_MEBIBYTES + b"\x03\x00" + tail


def send_compressed(port: int, files: TlsFiles, data: bytes) -> None:
    """Send gzip bytes as one message, and see it refused."""
    with raw_connection(port, files) as connection:
        connection.open_call(SERVICE + "OpenUpdate", stream=1, encoding="gzip")
        connection.send_data(message(data, compressed=True), stream=1)
        _see_refused(connection, INVALID_ARGUMENT, RESOURCE_EXHAUSTED)


def send_bomb(port: int, files: TlsFiles) -> None:
    send_compressed(port, files, bomb())


def send_tiny_tensors(port: int, files: TlsFiles) -> None:
    """Ten million empty submessages, two bytes each."""
    send_compressed(port, files, zlib.compress(b"\x0a\x00" * TENSORS, 9, 31))


def declare_length(port: int, files: TlsFiles) -> None:
    """A message that is said to have 4 GiB."""
    with raw_connection(port, files) as connection:
        connection.open_call(SERVICE + "PushChunks", stream=1)
        connection.send_data(message(bytes(1000), length=0xFFFFFFFF), stream=1, ends=False)
        _see_refused(connection, RESOURCE_EXHAUSTED)


def flood_with_pings(port: int, files: TlsFiles) -> None:
    """See the connection closed for it."""
    with raw_connection(port, files) as connection:
        with suppress(OSError):
            for _ in range(PINGS // 100):
                connection.send(frame(PING, payload=bytes(8)) * 100)
        connection.wait_to_be_sent_away()


def flood_with_resets(port: int, files: TlsFiles) -> None:
    """Open calls and take them back at once (CVE-2023-44487)."""
    cancel = struct.pack(">I", CANCEL)
    with raw_connection(port, files) as connection, suppress(OSError):
        for number in range(RESETS):
            stream = 2 * number + 1
            connection.open_call(SERVICE + "Hello", stream=stream)
            connection.send(frame(RST_STREAM, stream=stream, payload=cancel))


def break_off_handshakes(port: int, files: TlsFiles) -> None:
    """Begin handshakes from several sides, and go away."""

    def call_and_go(_: int) -> None:
        for _ in range(BROKEN_OFF // CALLERS // AT_A_TIME):
            with ExitStack() as opened:
                for _ in range(AT_A_TIME):
                    opened.enter_context(_half_open(port, speaks=True))

    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(call_and_go, range(CALLERS)))


AT_ONCE: Mapping[str, Callable[[int, TlsFiles], None]] = {
    "a gzip bomb": send_bomb,
    "ten million tiny tensors": send_tiny_tensors,
    "a message of 4 GiB": declare_length,
    "a flood of pings": flood_with_pings,
    "a flood of resets": flood_with_resets,
}
"""Attacks that are over when they return, and that a round bears all at once."""

ATTACKS: Mapping[str, Callable[[int, TlsFiles], None]] = {
    **AT_ONCE,
    "a flood of handshakes broken off": break_off_handshakes,
}
"""The same, and one that a round may have to wait for while it lasts."""


@contextmanager
def idle_streams(port: int, files: TlsFiles) -> Iterator[None]:
    """Uploads that were begun and say nothing, on several connections of one hospital."""
    with ExitStack() as opened:
        for _ in range(IDLE_CONNECTIONS):
            connection = opened.enter_context(raw_connection(port, files))
            for number in range(IDLE_STREAMS // IDLE_CONNECTIONS):
                connection.open_call(SERVICE + "PushChunks", stream=2 * number + 1)
        yield


@contextmanager
def endless_headers(port: int, files: TlsFiles) -> Iterator[None]:
    """One call whose headers do not end: 16 MiB of them, and its connection stays open."""
    piece = frame(CONTINUATION, stream=1, payload=header_block({"abcde": "x" * 126})) * 100
    with raw_connection(port, files) as connection:
        connection.open_call(SERVICE + "Hello", stream=1, more_headers=True)
        for _ in range(HEADER_BYTES // len(piece)):
            connection.send(piece)
        yield


@contextmanager
def half_open_handshakes(port: int) -> Iterator[None]:
    """Connections of nobody that never speak, or stop after a few bytes."""
    with ExitStack() as opened:
        for number in range(HALF_OPEN):
            opened.enter_context(_half_open(port, speaks=number % 2 == 1))
        yield


def _see_refused(connection: RawConnection, *codes: int) -> None:
    status = connection.grpc_status(stream=1)
    if status is None:
        raise ConnectionResetError("the coordinator ended the connection")
    assert status in codes, status


def _half_open(port: int, *, speaks: bool) -> socket.socket:
    plain = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
    if speaks:
        plain.sendall(PART_OF_A_HELLO)
    return plain
