"""164.312(a)(2)(iii): who says nothing is cut off."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import ip_address
from threading import Event
from typing import Final

import grpc

from matl.compliance.control import BrokenControlError, NotTestedError, Outcome, passed
from matl.compliance.probes.inventory import open_sockets
from matl.compliance.site import CoordinatorSite, Site, answering, at_coordinator
from matl.connection import Connection, OperatorFile
from matl_common.configuration import load
from matl_common.host_port import split_address
from matl_common.identity.certificates import parse_spiffe_id
from matl_common.identity.tls import channel_credentials, channel_options, tls_place

_METHOD: Final = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
_GRACE_SECONDS: Final = 5.0


def logoff(site: Site) -> Outcome:
    """Open a call, say nothing, and wait until the coordinator ends it."""
    here = at_coordinator(site)
    limit, patience = here.config.limits.idle_seconds, here.registry.probes.idle_patience_seconds
    if limit > patience:
        raise NotTestedError(
            f"limits.idle_seconds is {limit:g}, and an audit waits {patience:g} s at most",
            "raise [probes] idle_patience_seconds",
        )
    answering(here)
    wanted = _operator(here)
    began = time.monotonic()
    code = _held(wanted, here.address, seconds=limit + _GRACE_SECONDS)
    seconds = time.monotonic() - began
    if code is not grpc.StatusCode.DEADLINE_EXCEEDED or seconds > limit + _GRACE_SECONDS:
        raise BrokenControlError(
            f"a silent call was not ended after limits.idle_seconds = {limit:g} "
            f"({code.name.lower() if code else 'still open'} after {seconds:.1f} s)",
            "see that what answers at the address is this coordinator",
        )
    return passed(f"a silent call was ended after {seconds:.1f} s (limit {limit:g} s)")


def dashboard(site: Site) -> Outcome:
    """Look who can reach the dashboard; a session of it takes a browser."""
    here = at_coordinator(site)
    address = here.registry.probes.dashboard
    if not address:
        raise NotTestedError(
            "no dashboard is declared", "name it in [probes] dashboard of safeguards.toml"
        )
    _, port = split_address(address)
    for host, listening in open_sockets(here.processes):
        if listening == port and not ip_address(host).is_loopback:
            raise BrokenControlError(
                f"the dashboard's port {port} is open to other machines, at {host}",
                "serve it on 127.0.0.1, and reach it through SSH",
            )
    raise NotTestedError(
        f"port {port} is not open to other machines; that an idle session ends takes a browser, "
        "which an audit does not have"
    )


def _operator(site: CoordinatorSite) -> Connection:
    path = site.registry.probes.operator or site.file.resolve().parent / "operator.toml"
    if not path.exists():
        raise NotTestedError(
            f"there is no {path}, and only who is enrolled can keep a call open",
            "name an operator's file in [probes] operator of safeguards.toml",
        )
    return load(OperatorFile, path, overrides={}).operator


def _held(wanted: Connection, address: str, *, seconds: float) -> grpc.StatusCode | None:
    """How a call without a word ended; ``None`` where it did not."""
    silent = Event()

    def nothing() -> Iterator[bytes]:
        silent.wait(seconds + _GRACE_SECONDS)
        yield from ()

    files = tls_place(wanted.key, wanted.certificate, wanted.authority)
    options = channel_options(parse_spiffe_id(wanted.coordinator))
    with grpc.secure_channel(address, channel_credentials(files), options=options) as channel:
        call = channel.stream_stream(_METHOD, bytes, bytes)(nothing(), timeout=seconds)
        try:
            for _ in call:
                pass
        except grpc.RpcError as error:
            # The deadline of this side has the same code; who is told so was cut by neither.
            details = error.details() or ""
            code: grpc.StatusCode = error.code()
            return None if details == "Deadline Exceeded" else code
        finally:
            silent.set()
            call.cancel()
    return None
