"""Failed TLS handshakes, made visible.

gRPC refuses a peer without a good certificate before any Python code runs and says so
only on the process's standard error. This module reads that stream, turns refused
handshakes into calls of a function, and passes every other line on unchanged.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

VERBOSITY = "INFO"
"""What ``GRPC_VERBOSITY`` must be when gRPC makes its first channel or server."""

MAX_LINE_BYTES = 8192

_REASONS = (
    (re.compile(r"certificate has expired"), "expired"),
    (re.compile(r"certificate is not yet valid"), "not_yet_valid"),
    (re.compile(r"certificate purpose"), "wrong_purpose"),
    (re.compile(r"PEER_DID_NOT_RETURN_A_CERTIFICATE"), "no_certificate"),
    (re.compile(r"CERTIFICATE_VERIFY_FAILED"), "wrong_authority"),
    (re.compile(r"UNSUPPORTED_PROTOCOL|NO_SHARED_CIPHER|PROTOCOL_VERSION"), "not_tls_1_3"),
)
_HANDSHAKE = re.compile(rb"ssl_transport_security\S* Handshake failed")
_CHATTER = re.compile(rb"^[IW]\d{4} .*(is not suitable for production|log\.cc:)")


def handshake_reason(line: bytes) -> str | None:
    """Why a handshake failed, or ``None`` for a line about something else."""
    if not _HANDSHAKE.search(line):
        return None
    text = line.decode(errors="replace")
    for pattern, reason in _REASONS:
        if pattern.search(text):
            return reason
    return "handshake_failed"


@contextmanager
def watched_handshakes(on_refusal: Callable[[str], object]) -> Iterator[None]:
    """Report refused handshakes while the block runs.

    Begin it before the process makes its first channel or server. Takes over file
    descriptor 2 of the process and gives it back; ``on_refusal`` is called from a thread
    of its own.
    """
    os.environ.setdefault("GRPC_VERBOSITY", VERBOSITY)
    original = os.dup(2)
    readable, writable = os.pipe()
    os.dup2(writable, 2)
    os.close(writable)
    reader = threading.Thread(
        target=_relay, args=(readable, original, on_refusal), name="handshakes", daemon=True
    )
    reader.start()
    try:
        yield
    finally:
        os.dup2(original, 2)
        reader.join(timeout=2.0)
        os.close(original)


def _relay(readable: int, original: int, on_refusal: Callable[[str], object]) -> None:
    with os.fdopen(readable, "rb", buffering=0) as stream:
        pending = b""
        while block := stream.read(MAX_LINE_BYTES):
            *lines, pending = (pending + block).split(b"\n")
            for line in lines:
                _handle(line, original, on_refusal)
            if len(pending) > MAX_LINE_BYTES:
                os.write(original, pending)
                pending = b""
        if pending:
            os.write(original, pending)


def _handle(line: bytes, original: int, on_refusal: Callable[[str], object]) -> None:
    reason = handshake_reason(line)
    if reason is not None:
        on_refusal(reason)
    elif not _CHATTER.search(line):
        os.write(original, line + b"\n")
