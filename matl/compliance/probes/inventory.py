"""What the proposed rule adds: an inventory, a map of the network, and reports with a date."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

from matl.compliance.control import BrokenControlError, NotTestedError, Outcome, passed
from matl.compliance.probes.attested import upload
from matl.compliance.site import Site
from matl.doctor_handshake import split_address

_LOCK: Final = Path(__file__).resolve().parents[3] / "constraints.txt"
_PINNED: Final = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;#]+)")
_LISTEN: Final = "0A"
# What builds and installs is no part of what runs.
_INSTALLERS: Final = frozenset({"matl", "pip", "setuptools", "wheel"})

segmentation = partial(upload, kind="segmentation", days=365)
patching = partial(upload, kind="patching", days=31)
vulnerability_scan = partial(upload, kind="vulnerability-scan", days=183)
penetration_test = partial(upload, kind="penetration-test", days=365)


def software(site: Site) -> Outcome:
    """Compare what is installed with what was locked."""
    path = site.registry.places.lock or _LOCK
    if not path.is_file():
        raise NotTestedError(
            "no lock file is at hand", "name it in [places] lock of safeguards.toml"
        )
    locked = parse_lock(path.read_text(encoding="utf-8"))
    installed = {
        _normal(each.metadata["Name"]): each.version
        for each in distributions()
        if each.metadata["Name"]
    }
    different = [
        f"{name} {version} (locked: {locked.get(name, 'not at all')})"
        for name, version in sorted(installed.items())
        if name not in _INSTALLERS and locked.get(name) != version
    ]
    if different:
        more = f", and {len(different) - 5} more" if len(different) > 5 else ""
        raise BrokenControlError(
            f"installed otherwise than locked: {', '.join(different[:5])}{more}",
            f"install anew: pip install -c {path.name}",
        )
    listing = "\n".join(f"{name}=={version}" for name, version in sorted(installed.items()))
    digest = hashlib.sha256(listing.encode()).hexdigest()
    return passed(
        f"{len(installed)} distributions, each as in {path.name} "
        f"(SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}…); the list's own is "
        f"{digest[:16]}…"
    )


def sockets(site: Site) -> Outcome:
    """Compare what listens to other machines with what was declared."""
    listening = sorted(set(open_sockets(site.processes)))
    declared = (*site.listening, *site.registry.network.listening)
    strange = undeclared(listening, declared)
    if strange:
        raise BrokenControlError(
            f"listening and not declared: {', '.join(f'{host}:{port}' for host, port in strange)}",
            "stop what listens there, or declare it in [network] listening of safeguards.toml",
        )
    return passed(
        f"{len(listening)} sockets are open to other machines, all declared"
        if listening
        else "no socket is open to other machines"
    )


def parse_lock(text: str) -> Mapping[str, str]:
    """Versions by normalised name, of the lines ``name==version``. Pure."""
    pinned = (_PINNED.match(line.strip()) for line in text.splitlines())
    return {_normal(found[1]): found[2] for found in pinned if found}


def undeclared(
    listening: Iterable[tuple[str, int]], declared: Iterable[str]
) -> list[tuple[str, int]]:
    """What other machines can reach and nobody declared. Pure.

    Args:
        listening: addresses and ports.
        declared: ``host:port``; 0.0.0.0 and :: stand for every address.
    """
    known = [split_address(each) for each in declared]
    every = {port for host, port in known if host in {"0.0.0.0", "::", ""}}
    return [
        (host, port)
        for host, port in listening
        if not ipaddress.ip_address(host).is_loopback
        and port not in every
        and (host, port) not in known
    ]


def open_sockets(processes: Path) -> Iterator[tuple[str, int]]:
    """Listening TCP sockets by the kernel's own tables (proc(5))."""
    tables = [processes / "net" / name for name in ("tcp", "tcp6")]
    if not any(each.exists() for each in tables):
        raise NotTestedError("the kernel tells nothing of sockets here (no /proc/net/tcp)")
    for path in tables:
        if not path.exists():
            continue
        for line in path.read_text().splitlines()[1:]:
            fields = line.split()
            if len(fields) > 3 and fields[3] == _LISTEN:
                host, _, port = fields[1].partition(":")
                yield _address(host), int(port, 16)


def _address(text: str) -> str:
    """An address as the kernel writes it: words of 32 bits, each in the machine's order."""
    words = b"".join(
        int(text[at : at + 8], 16).to_bytes(4, "little") for at in range(0, len(text), 8)
    )
    family = socket.AF_INET if len(words) == 4 else socket.AF_INET6
    found = ipaddress.ip_address(socket.inet_ntop(family, words))
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
