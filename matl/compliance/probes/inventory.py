"""What the proposed rule adds: an inventory, a map of the network, and reports with a date."""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from matl.compliance.control import BrokenControlError, NotTestedError, Outcome, passed
from matl.compliance.probes.attested import upload
from matl.compliance.site import Site
from matl_common.host_port import EVERYWHERE, split_address

_LOCK: Final = Path(__file__).resolve().parents[3] / "constraints.txt"
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
    try:
        locked = parse_lock(path.read_text(encoding="utf-8"))
    except InvalidRequirement as error:
        raise NotTestedError(
            f"{path.name} is no list of requirements: {error}", "write it anew: pip freeze"
        ) from error
    installed = {
        canonicalize_name(each.metadata["Name"]): each.version
        for each in distributions()
        if each.metadata["Name"]
    }
    different = [
        f"{name} {version} (locked: {locked.get(name, 'not at all')})"
        for name, version in sorted(installed.items())
        if name not in _INSTALLERS and not is_as_locked(name, version, locked)
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


def parse_lock(text: str) -> Mapping[str, SpecifierSet]:
    """What this platform is to install, by normalised name (PEP 508)."""
    pinned = (line.partition("#")[0].strip() for line in text.splitlines())
    found = [Requirement(line) for line in pinned if line]
    return {
        canonicalize_name(each.name): each.specifier
        for each in found
        if each.marker is None or each.marker.evaluate()
    }


def is_as_locked(name: str, version: str, locked: Mapping[str, SpecifierSet]) -> bool:
    """Whether an installed version is the locked one, of whatever build (PEP 440). Pure."""
    return name in locked and locked[name].contains(version, prereleases=True)


def undeclared(
    listening: Iterable[tuple[str, int]], declared: Iterable[str]
) -> list[tuple[str, int]]:
    """What other machines can reach and nobody declared. Pure.

    Args:
        listening: addresses and ports.
        declared: ``host:port``; 0.0.0.0 and :: stand for every address.
    """
    known = [split_address(each) for each in declared]
    every = {port for host, port in known if host in EVERYWHERE}
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
