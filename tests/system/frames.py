"""HTTP/2 frames by hand over mutual TLS, for what no library would send.

RFC 9113 for the frames, RFC 7541 for the headers, of which only literals are written.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from matl_common.identity.tls import TlsFiles
from tests.system.federation import COORDINATOR_NAME

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_FRAME_BYTES = 16_384
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
WINDOW_UPDATE, CONTINUATION = 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL = 8
INITIAL_WINDOW_SIZE = 4
FIRST_WINDOW_BYTES = 65_535
WAIT_SECONDS = 30.0

Frame = tuple[int, int, int, bytes]
"""Kind, flags, stream and payload."""


def frame(kind: int, *, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """One frame (RFC 9113, 4.1)."""
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes([kind, flags])
        + struct.pack(">I", stream)
        + payload
    )


def header_block(headers: Mapping[str, str]) -> bytes:
    """Headers as literals without indexing (RFC 7541, 6.2.2); texts below 127 bytes."""
    block = b""
    for name, value in headers.items():
        assert len(name) < 127
        assert len(value) < 127
        block += b"\x00" + bytes([len(name)]) + name.encode()
        block += bytes([len(value)]) + value.encode()
    return block


def message(data: bytes, *, compressed: bool = False, length: int | None = None) -> bytes:
    """A gRPC message with its prefix, which may lie about the length."""
    return struct.pack(">?I", compressed, len(data) if length is None else length) + data


class RawConnection:
    """One TLS connection that has said hello in HTTP/2 and nothing else."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._socket = connection
        self._buffer = b""
        self._read: list[Frame] = []
        # By stream; 0 is the connection (RFC 9113, 6.9).
        self._window = {0: FIRST_WINDOW_BYTES}
        self._first_window = FIRST_WINDOW_BYTES
        # No dynamic table at our side, so that every header comes as a literal.
        no_table = struct.pack(">HI", 1, 0)
        self.send(PREFACE + frame(SETTINGS, payload=no_table))

    def send(self, data: bytes) -> None:
        """Write bytes as they are.

        Raises:
            OSError: the other side has gone.
        """
        self._socket.sendall(data)

    def open_call(
        self,
        path: str,
        *,
        stream: int,
        encoding: str = "",
        ends: bool = False,
        more_headers: bool = False,
    ) -> None:
        """Begin a gRPC call, whose headers are not all told yet where there are more."""
        headers = {
            ":method": "POST",
            ":scheme": "https",
            ":path": path,
            ":authority": COORDINATOR_NAME.server_name,
            "te": "trailers",
            "content-type": "application/grpc",
            **({"grpc-encoding": encoding} if encoding else {}),
        }
        flags = END_HEADERS * (not more_headers) | END_STREAM * ends
        self.send(frame(HEADERS, flags=flags, stream=stream, payload=header_block(headers)))

    def send_data(self, data: bytes, *, stream: int, ends: bool = True) -> None:
        """Data of a call, in frames as long as may be, while the other side has room and listens.

        What comes meanwhile is kept for ``frames``.
        """
        for at in range(0, len(data), MAX_FRAME_BYTES):
            piece = data[at : at + MAX_FRAME_BYTES]
            while self._room(stream) < len(piece):
                came = self._next_frame()
                if came is None:
                    return
                self._read.append(came)
                if came[2] == stream and (came[0] == RST_STREAM or came[1] & END_STREAM):
                    return
            last = ends and at + len(piece) == len(data)
            self.send(frame(DATA, flags=END_STREAM * last, stream=stream, payload=piece))
            self._window[0] -= len(piece)
            self._window[stream] = self._window.get(stream, 0) - len(piece)

    def frames(self) -> Iterator[Frame]:
        """Kind, flags, stream and payload of what comes, until the other side closes."""
        while self._read:
            yield self._read.pop(0)
        while (came := self._next_frame()) is not None:
            yield came

    def _room(self, stream: int) -> int:
        """How many bytes of a call the other side takes now.

        A stream's window is kept as what it differs by from the first.
        """
        return min(self._window[0], self._first_window + self._window.get(stream, 0))

    def _next_frame(self) -> Frame | None:
        with suppress(ConnectionError, ssl.SSLError):
            head = self._take(9)
            if head is None:
                return None
            (length,) = struct.unpack(">I", b"\0" + head[:3])
            payload = self._take(length)
            if payload is None:
                return None
            (stream,) = struct.unpack(">I", head[5:9])
            if head[3] == WINDOW_UPDATE:
                (more,) = struct.unpack(">I", payload)
                self._window[stream] = self._window.get(stream, 0) + more
            elif head[3] == SETTINGS:
                for name, value in struct.iter_unpack(">HI", payload):
                    if name == INITIAL_WINDOW_SIZE:
                        self._first_window = value
            return head[3], head[4], stream, payload
        return None

    def grpc_status(self, *, stream: int) -> int | None:
        """The status a call ends with; ``None`` where the connection ends first."""
        for kind, _, number, payload in self.frames():
            if kind == HEADERS and number == stream and b"grpc-status" in payload:
                _, _, rest = payload.partition(b"grpc-status")
                return int(rest[1 : 1 + rest[0]])
        return None

    def wait_to_be_sent_away(self) -> None:
        """Read until the other side says GOAWAY, or closes.

        Raises:
            TimeoutError: it does neither.
        """
        for kind, _, _, _ in self.frames():
            if kind == GOAWAY:
                return

    def _take(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            block = self._socket.recv(1 << 16)
            if not block:
                return None
            self._buffer += block
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken


@contextmanager
def raw_connection(port: int, files: TlsFiles) -> Iterator[RawConnection]:
    """Yield a connection to a coordinator on loopback with a node's certificate."""
    context = ssl.create_default_context(cafile=str(files.trusted_authority))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(files.certificate_chain, files.private_key)
    context.set_alpn_protocols(["h2"])
    plain = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
    with context.wrap_socket(plain, server_hostname=COORDINATOR_NAME.server_name) as secured:
        yield RawConnection(secured)
