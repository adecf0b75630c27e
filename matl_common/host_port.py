"""``host:port``, where an IPv6 host stands in brackets."""

from __future__ import annotations

EVERYWHERE = frozenset({"0.0.0.0", "::", ""})  # compared with, not listened on
"""Hosts that stand for every address of a machine."""
_LOOPBACK = {"::": "::1"}


def split_address(address: str) -> tuple[str, int]:
    """Host, without brackets, and port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """What ``split_address`` takes apart."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def dialled_from_here(listening: str) -> str:
    """Where what listens there is reached from its own machine."""
    host, port = split_address(listening)
    return join_address(_LOOPBACK.get(host, "127.0.0.1") if host in EVERYWHERE else host, port)
