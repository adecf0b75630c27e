"""Whom a front end speaks for: the certificate that a caller showed it, in the call's metadata.

The caller has proved to the front end that it holds the certificate's key. The leader believes that
of front ends alone, whom its allow-list names, and asks everything else of the certificate itself:
``guard`` treats its node as if it were connected. What a front end's own callers send as metadata
goes no further than the front end.
"""

from __future__ import annotations

from collections.abc import Iterable

HEADER = "matl-relayed-certificate-bin"
"""Its value is the certificate in PEM, as gRPC has it of the connection."""

Metadata = Iterable[tuple[str, str | bytes]]


def relaying(certificate: bytes) -> tuple[tuple[str, bytes], ...]:
    """The metadata of a call that is made for the holder of a certificate."""
    return ((HEADER, certificate),)


def relayed_certificate(metadata: Metadata | None) -> bytes | None:
    """For whom a call is made, where that is not who is connected; of several, the first."""
    for key, value in metadata or ():
        if key == HEADER:
            return value if isinstance(value, bytes) else value.encode()
    return None
