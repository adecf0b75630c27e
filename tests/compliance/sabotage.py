"""Ways to break one control of a live federation, each undone at the end of its block."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import grpc

from matl.compliance.site import CoordinatorSite
from matl_common.identity.keys import generate_private_key, private_key_pem
from matl_common.identity.tls import ServerIdentity, server_options
from matl_coordinator.config import load_config
from tests.compliance.live import Live
from tests.postgres import execute

Change = Callable[[CoordinatorSite], CoordinatorSite]
"""What a saboteur makes of what is audited, where that is not the federation itself."""


def unchanged(site: CoordinatorSite) -> CoordinatorSite:
    return site


@contextmanager
def a_server_that_lets_everybody_in(live: Live, *, cuts: bool = True) -> Iterator[Change]:
    """mTLS by the coordinator's own files, and no guard behind it."""
    config = load_config(live.config_file)
    server = grpc.server(futures.ThreadPoolExecutor(16), options=server_options())
    server.add_generic_rpc_handlers((_Anything(config.limits.idle_seconds, cuts=cuts),))
    identity = ServerIdentity(config.identity.tls)
    port = server.add_secure_port("127.0.0.1:0", identity.credentials)
    server.start()
    try:
        yield lambda site: at_address(site, port)
    finally:
        server.stop(None).wait()


class _Anything(grpc.GenericRpcHandler):
    """Answers every call with nothing; cuts silent ones as the coordinator does, or does not."""

    def __init__(self, idle_seconds: float, *, cuts: bool) -> None:
        self._idle_seconds = idle_seconds
        self._cuts = cuts

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if "Reflection" in handler_call_details.method:
            return grpc.stream_stream_rpc_method_handler(self._silent)
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")

    def _silent(self, requests: Any, context: Any) -> Iterator[bytes]:
        threading.Event().wait(self._idle_seconds)
        if not self._cuts:
            return
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "nothing came")
        yield b""


def at_address(site: CoordinatorSite, port: int) -> CoordinatorSite:
    listen = site.config.listen.model_copy(update={"address": f"127.0.0.1:{port}"})
    return replace(site, config=site.config.model_copy(update={"listen": listen}))


@contextmanager
def front(live: Live, answer: Callable[[bytes], bytes | None]) -> Iterator[Change]:
    """A proxy that answers some first bytes by itself and passes on all others."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as open_ends:
        port: int = listener.getsockname()[1]

        def accept() -> None:
            with suppress(OSError):
                while True:
                    near, _ = listener.accept()
                    open_ends.enter_context(closing(near))
                    threading.Thread(target=serve, args=(near,), daemon=True).start()

        def serve(near: socket.socket) -> None:
            with suppress(OSError):
                first = near.recv(65536)
                if (said := answer(first)) is not None:
                    near.sendall(said)
                    near.close()
                    return
                far = socket.create_connection(("127.0.0.1", live.federation.port))
                far.sendall(first)
                threading.Thread(target=pump, args=(far, near), daemon=True).start()
                pump(near, far)

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield lambda site: at_address(site, port)
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while block := source.recv(65536):
            sink.sendall(block)
    for each in (source, sink):
        # A close alone says nothing while another thread reads.
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            each.close()


def a_proxy_that_speaks_tls_1_2(live: Live) -> Any:
    """It answers a ClientHello without ``supported_versions`` with a ServerHello."""
    hello = b"\x16\x03\x03\x00\x04\x02\x00\x00\x00"
    return front(live, lambda first: hello if is_old(first) else None)


def is_old(first: bytes) -> bool:
    # supported_versions with TLS 1.3 in it is what tells a ClientHello of today.
    return first[:1] == b"\x16" and b"\x03\x04" not in first[5:]


def a_proxy_that_speaks_http_2(live: Live) -> Any:
    settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    return front(live, lambda first: settings if first.startswith(b"PRI ") else None)


@contextmanager
def written(path: Path, content: bytes) -> Iterator[Change]:
    """A file with other content, or one that was not there."""
    before = path.read_bytes() if path.exists() else None
    mode = path.stat().st_mode if path.exists() else 0o600
    path.parent.mkdir(exist_ok=True)
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_bytes(content)
    try:
        yield unchanged
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
            path.chmod(mode)


def flipped(path: Path) -> Any:
    """A file with one bit changed."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    return written(path, bytes(content))


def a_private_key_in_the_state_folder(live: Live) -> Any:
    path = live.federation.coordinator_state / "models" / "left.pem"
    return written(path, private_key_pem(generate_private_key()))


def a_changed_model(live: Live) -> Any:
    models = live.federation.coordinator_state / "models"
    released = live.released_model
    return flipped(models / f"{released}.safetensors")


def a_changed_backup(live: Live) -> Any:
    return flipped(live.federation.folder / "backups" / "newest" / "database.sqlite")


@contextmanager
def a_key_that_others_read(live: Live) -> Iterator[Change]:
    path = load_config(live.config_file).identity.signing_key
    assert isinstance(path, Path)
    path.chmod(0o644)
    try:
        yield unchanged
    finally:
        path.chmod(0o600)


@contextmanager
def statements(live: Live, do: str, undo: str) -> Iterator[Change]:
    """Run as the database's superuser."""
    execute(live.admin_url, do)
    try:
        yield unchanged
    finally:
        execute(live.admin_url, undo)


def a_reader_who_may_write(live: Live) -> Any:
    return statements(
        live,
        "GRANT UPDATE ON log_checkpoints TO matl_log_reader",
        "REVOKE UPDATE ON log_checkpoints FROM matl_log_reader",
    )


def a_round_without_entries(live: Live) -> Any:
    return statements(
        live,
        "INSERT INTO rounds (round_id, phase, document) "
        "SELECT 99, 'released', document FROM rounds WHERE round_id = 1",
        "DELETE FROM rounds WHERE round_id = 99",
    )


@contextmanager
def a_changed_hash(live: Live) -> Iterator[Change]:
    """As a superuser who disarms the guards first, and arms them again."""
    off = "ALTER EVENT TRIGGER matl_log_keep_guards DISABLE"
    on = "ALTER EVENT TRIGGER matl_log_keep_guards ENABLE ALWAYS"
    flip = (
        "UPDATE log_nodes SET hash = set_byte(hash, 0, get_byte(hash, 0) # 1) "
        "WHERE level = 0 AND node_index = 4"
    )

    def change() -> None:
        execute(live.admin_url, off)
        execute(live.admin_url, "ALTER TABLE log_nodes DISABLE TRIGGER log_keep_rows")
        execute(live.admin_url, flip)
        execute(live.admin_url, "ALTER TABLE log_nodes ENABLE ALWAYS TRIGGER log_keep_rows")
        execute(live.admin_url, on)

    change()
    try:
        yield unchanged
    finally:
        change()


@contextmanager
def other_log_settings(live: Live, **settings: Any) -> Iterator[Change]:
    def change(site: CoordinatorSite) -> CoordinatorSite:
        log = site.config.log.model_copy(update=settings)
        return replace(site, config=site.config.model_copy(update={"log": log}))

    yield change


@contextmanager
def other_registry(live: Live, old: str, new: str) -> Iterator[Change]:
    text = live.registry_file.read_text()
    assert old in text
    with written(live.registry_file, text.replace(old, new).encode()):
        yield unchanged


def an_agreement_that_has_expired(live: Live) -> Any:
    text = live.registry_file.read_text()
    at = text.index('node = "hospital_b"')
    expires = text[text.index("expires = ", at) :].splitlines()[0]
    changed = text[:at] + text[at:].replace(expires, "expires = 2026-06-01", 1)
    return written(live.registry_file, changed.encode())


def an_old_upload(live: Live) -> Any:
    text = live.registry_file.read_text()
    at = text.index('kind = "vulnerability-scan"')
    signed = text[text.index("signed = ", at) :].splitlines()[0]
    changed = text[:at] + text[at:].replace(signed, "signed = 2025-01-01", 1)
    return written(live.registry_file, changed.encode())


def a_patients_data(live: Live) -> Any:
    content = b"image_id,ssn\nimage_000,219-09-9998\n"
    return written(live.federation.images / "holdout" / "extra.csv", content)


@contextmanager
def a_socket_nobody_declared(live: Live) -> Iterator[Change]:
    # 0.0.0.0:8080, listening, as proc(5) has it.
    line = "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n"
    table = live.processes / "net" / "tcp"
    with written(table, (table.read_text() + line).encode()):
        yield unchanged


def another_version_than_locked(live: Live) -> Any:
    lines = lock_lines()
    return written(live.lock_file, "\n".join([*lines[1:], "numpy==0.0.1"]).encode())


def lock_lines() -> list[str]:
    found = {each.metadata["Name"]: each.version for each in distributions()}
    return sorted(f"{name}=={version}" for name, version in found.items() if name)


@contextmanager
def a_dashboard_for_everybody(live: Live) -> Iterator[Change]:
    """One that was even declared as reachable."""
    declared = '[network]\nlistening = ["0.0.0.0:8080"]\n'
    told = f'{declared}[probes]\ndashboard = "127.0.0.1:8080"\n'
    with a_socket_nobody_declared(live), other_registry(live, "[probes]\n", told):
        yield unchanged
