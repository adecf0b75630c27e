"""164.312(e): nothing weaker than TLS 1.3 is spoken, and nothing in the clear."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

from sqlalchemy import make_url, text

from matl.compliance.control import BrokenControlError, Outcome, passed
from matl.compliance.site import Site, answering, at_coordinator
from matl.doctor.handshake import shown_certificate
from matl_common.host_port import split_address
from matl_coordinator.store.database import reading

SECONDS: Final = 10.0
_OLD: Final = {"TLS 1.0": 0x0301, "TLS 1.1": 0x0302, "TLS 1.2": 0x0303}
_HANDSHAKE: Final = 22
_ALERT: Final = 21
_SERVER_HELLO: Final = 2
# Every suite with ECDHE, DHE or RSA that a server of those days might choose (RFC 5246, 5288,
# 5289, 7905, 4492), and the two that every TLS 1.2 stack of today has.
_SUITES: Final = (
    *(0xC02B, 0xC02C, 0xC02F, 0xC030, 0xCCA8, 0xCCA9, 0xC023, 0xC024, 0xC027, 0xC028),
    *(0xC009, 0xC00A, 0xC013, 0xC014, 0x009C, 0x009D, 0x009E, 0x009F, 0x003C, 0x003D),
    *(0x002F, 0x0035, 0x0033, 0x0039, 0x000A, 0xC008, 0xC012),
)
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS: Final = struct.pack(">I", 0)[1:] + bytes((4, 0)) + struct.pack(">I", 0)
_SETTINGS_FRAME: Final = 4


def tls(site: Site) -> Outcome:
    """Offer each old version alone, with everything it may want, and expect no ServerHello."""
    here = answering(site)
    for version, number in _OLD.items():
        answer = _answer(here.address, client_hello(number, server_name=here.name.server_name))
        if is_server_hello(answer):
            raise BrokenControlError(
                f"{here.address} speaks {version}",
                "see what stands before the coordinator: it refuses that itself",
            )
    shown = shown_certificate(here.address, name=here.name, trusted=None)
    return passed(
        f"{here.address}: no ServerHello to {', '.join(_OLD)} with {len(_SUITES)} suites each; TLS "
        f"1.3 shows certificate {shown.serial_number:x}"
    )


def plaintext(site: Site) -> Outcome:
    """Speak HTTP/2 without TLS, and expect no HTTP/2 back."""
    here = answering(site)
    check_metrics(here.config.listen.metrics)
    answer = _answer(here.address, _PREFACE + _SETTINGS)
    if len(answer) >= 4 and answer[3] == _SETTINGS_FRAME and answer[0] != _ALERT:
        raise BrokenControlError(
            f"{here.address} speaks HTTP/2 in the clear",
            "see what stands before the coordinator: it speaks TLS alone",
        )
    if answer.startswith(b"HTTP/"):
        raise BrokenControlError(
            f"{here.address} answers HTTP in the clear",
            "see what stands before the coordinator: it speaks TLS alone",
        )
    how = "closes the connection" if not answer else "answers with a TLS alert"
    return passed(f"{here.address} {how} when HTTP/2 comes without TLS")


def check_metrics(address: str) -> None:
    """See that metrics, which are served in the clear, stay on this machine. Pure.

    Args:
        address: where they are served; empty where they are not.

    Raises:
        BrokenControlError: others can read them.
    """
    if not address:
        return
    host, _ = split_address(address)
    try:
        is_here = ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost"
    if not is_here:
        raise BrokenControlError(
            f"metrics are served in the clear at {address}",
            "set listen.metrics to a port of 127.0.0.1, and collect them there or through a proxy "
            "that speaks TLS",
        )


def database(site: Site) -> Outcome:
    """Ask the database how this connection came."""
    here = at_coordinator(site)
    if not here.config.is_on_postgres:
        return passed("the database is a file of this machine")
    with reading(here.log.engine) as connection:
        query = text(
            "SELECT ssl, version, host(inet_server_addr()) AS address FROM pg_stat_ssl "
            "WHERE pid = pg_backend_pid()"
        )
        found = connection.execute(query).one()
    mode = make_url(here.config.database_url).query.get("sslmode")
    return judge_database(
        address=found.address, version=found.version if found.ssl else None, mode=str(mode or "")
    )


def judge_database(*, address: str | None, version: str | None, mode: str) -> Outcome:
    """What to say of a connection. Pure.

    Args:
        address: of the server; ``None`` for a Unix socket.
        version: of TLS; ``None`` without.
        mode: libpq's ``sslmode``.

    Raises:
        BrokenControlError: others could read it, or stand in for the database.
    """
    if address is None:
        return passed("a Unix socket of this machine")
    if ip_address(address).is_loopback:
        return passed(f"loopback ({address}): it does not leave this machine")
    if version is None:
        raise BrokenControlError(
            f"the connection to {address} is not encrypted",
            "add sslmode=verify-full and sslrootcert to the database's URL",
        )
    if mode != "verify-full":
        raise BrokenControlError(
            f"the connection to {address} is encrypted ({version}), but with sslmode "
            f"{mode or 'unset'} whoever answers there is believed",
            "set sslmode=verify-full and sslrootcert in the database's URL",
        )
    return passed(f"{version} to {address}, sslmode verify-full")


def client_hello(version: int, *, server_name: str) -> bytes:
    """A record with the ClientHello of one version (RFC 5246, section 7.4.1.2).

    Without the extension ``supported_versions`` it cannot be taken for TLS 1.3.
    """
    name = server_name.encode()
    extensions = b"".join(
        _extension(number, body)
        for number, body in (
            (0, _block(2, bytes((0,)) + _block(2, name))),
            (10, _block(2, _numbers((29, 23, 24)))),
            (11, _block(1, bytes((0,)))),
            (13, _block(2, _numbers((0x0403, 0x0503, 0x0804, 0x0401, 0x0501, 0x0203, 0x0201)))),
            (16, _block(2, _block(1, b"h2"))),
        )
    )
    body = b"".join(
        (
            struct.pack(">H", version),
            os.urandom(32),
            _block(1, b""),
            _block(2, _numbers(_SUITES)),
            _block(1, bytes((0,))),
            _block(2, extensions),
        )
    )
    handshake = bytes((1,)) + _block(3, body)
    return struct.pack(">BH", _HANDSHAKE, min(version, 0x0301)) + _block(2, handshake)


def is_server_hello(answer: bytes) -> bool:
    """Whether a server has begun to speak the version that it was offered. Pure."""
    return len(answer) > 5 and answer[0] == _HANDSHAKE and answer[5] == _SERVER_HELLO


def _answer(address: str, said: bytes) -> bytes:
    """The first bytes that come back; empty where the connection is closed instead."""
    with socket.create_connection(split_address(address), timeout=SECONDS) as connection:
        try:
            connection.sendall(said)
            return connection.recv(1024)
        except (ConnectionError, TimeoutError):
            return b""


def _numbers(numbers: Iterable[int]) -> bytes:
    return b"".join(struct.pack(">H", each) for each in numbers)


def _block(length_bytes: int, content: bytes) -> bytes:
    return len(content).to_bytes(length_bytes, "big") + content


def _extension(number: int, body: bytes) -> bytes:
    return struct.pack(">H", number) + _block(2, body)
