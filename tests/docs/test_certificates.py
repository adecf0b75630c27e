"""The certificates made by the documentation's commands federate."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from matl_common.identity.allowlist import Allowlist, RefusalReason, load_allowlist
from matl_common.identity.certificates import SpiffeId, parse_spiffe_id
from matl_common.identity.held_keys import load_ed25519_key, load_p256_key, load_tls_key
from matl_common.identity.keys import (
    parse_public_key,
    spki_pin,
)
from matl_common.identity.tls import (
    AuthenticatedContext,
    TlsFiles,
    TlsPlace,
    channel_credentials,
    channel_options,
    peer_certificate,
    server_credentials,
    server_options,
)
from matl_common.ids import NodeId
from matl_common.tlog.checkpoint import log_key
from matl_coordinator import config as coordinator_config
from matl_participant import config as participant_config
from matl_participant.witness import load_witness_keys

pytestmark = [
    pytest.mark.certificates,
    pytest.mark.skipif(
        None in (shutil.which("openssl"), shutil.which("bash")),
        reason="the documented commands need openssl and bash",
    ),
]

DOCS = Path(__file__).parents[2] / "docs"
METHOD = "/matl.test.Identity/WhoAmI"
TIMEOUT_SECONDS = 10
COORDINATOR_TOML, _, PARTICIPANT_TOML, _ = re.findall(
    r"```toml\n(.*?)```", (DOCS / "configuration.md").read_text("utf-8"), re.DOTALL
)


def commands(text: str) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


SETUP, RENEWAL = map(
    commands, (DOCS / "certificates-openssl.md").read_text("utf-8").split("\n## Renewal\n")
)
*PREPARE_RENEWAL, FINISH_RENEWAL = RENEWAL


@dataclass(frozen=True, slots=True)
class Documented:
    """A folder in which the documented commands ran, read through the documented TOML."""

    folder: Path
    coordinator: coordinator_config.Config
    participant: participant_config.Config

    @property
    def allowlist(self) -> Allowlist:
        return load_allowlist(self.coordinator.federation.allowlist)

    @property
    def coordinator_id(self) -> SpiffeId:
        return parse_spiffe_id(self.participant.coordinator.spiffe_id)

    @property
    def operator_tls(self) -> TlsPlace:
        folder = self.folder / "operator_a"
        return TlsFiles(folder / "tls.key", folder / "tls.crt", folder / "coordinator-ca.crt")


def run(folder: Path, blocks: list[str]) -> None:
    finished = subprocess.run(
        ["bash", "-o", "pipefail"],
        input="\n".join(blocks),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr


def follow(folder: Path, *, coordinator: str = "coordinator", renewal: bool = False) -> Documented:
    """Run the commands for a coordinator of this name, with the steps before a key's swap."""
    blocks = [*SETUP, *PREPARE_RENEWAL] if renewal else list(SETUP)
    named = [
        re.sub("^coordinator=.*$", f"coordinator={coordinator}", block, flags=re.MULTILINE)
        for block in blocks
    ]
    run(folder, named)
    spiffe = "spiffe://dr-study/coordinator/"
    ours = folder / "coordinator" / "coordinator.toml"
    theirs = folder / "hospital_b" / "participant.toml"
    ours.write_text(
        COORDINATOR_TOML.replace('node_id = "coordinator"', f'node_id = "{coordinator}"'), "utf-8"
    )
    theirs.write_text(
        PARTICIPANT_TOML.replace(f"{spiffe}coordinator", f"{spiffe}{coordinator}"), "utf-8"
    )
    return Documented(
        folder,
        coordinator_config.load_config(ours, environment={}),
        participant_config.load_config(theirs, environment={}),
    )


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Documented:
    return follow(tmp_path_factory.mktemp("documented"))


def unchanged(message: bytes) -> bytes:
    return message


def who_am_i(allowlist: Allowlist) -> Callable[[bytes, AuthenticatedContext], Awaitable[bytes]]:
    """A method that answers with what the allow-list says of its caller."""

    async def answer(request: bytes, context: AuthenticatedContext) -> bytes:
        del request
        match allowlist.authenticate(peer_certificate(context), now=datetime.now(UTC)):
            case RefusalReason() as reason:
                return reason.encode()
            case node:
                return f"{node.role} {node.node_id}".encode()

    return answer


def ask(server: TlsPlace, client: TlsPlace, *, allowlist: Allowlist, coordinator: SpiffeId) -> str:
    """Serve, call once over mutual TLS, and return who the server says has called."""

    async def scenario() -> str:
        daemon = grpc.aio.server(options=server_options())
        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
            who_am_i(allowlist)
        )
        service = grpc.method_handlers_generic_handler("matl.test.Identity", {"WhoAmI": method})
        daemon.add_generic_rpc_handlers((service,))
        port = daemon.add_secure_port("127.0.0.1:0", server_credentials(server))
        await daemon.start()
        channel = grpc.aio.secure_channel(
            f"127.0.0.1:{port}", channel_credentials(client), options=channel_options(coordinator)
        )
        try:
            async with channel:
                call = channel.unary_unary(METHOD, unchanged, unchanged)
                return (await call(b"", timeout=TIMEOUT_SECONDS)).decode()
        finally:
            await daemon.stop(None)

    return asyncio.run(scenario())


def ask_coordinator(documented: Documented, client: TlsPlace) -> str:
    return ask(
        documented.coordinator.identity.tls,
        client,
        allowlist=documented.allowlist,
        coordinator=documented.coordinator_id,
    )


def test_coordinator_participant_and_operator_accept_one_another(documented: Documented) -> None:
    assert ask_coordinator(documented, documented.participant.tls) == "participant hospital_b"
    assert ask_coordinator(documented, documented.operator_tls) == "operator operator_a"


def test_a_coordinator_with_an_underscore_in_its_name_is_accepted(tmp_path: Path) -> None:
    documented = follow(tmp_path, coordinator="hospital_a")
    assert documented.coordinator_id.node_id == "hospital_a"
    assert ask_coordinator(documented, documented.participant.tls) == "participant hospital_b"


@pytest.mark.hostile
def test_a_participants_certificate_cannot_stand_for_the_coordinators(
    documented: Documented,
) -> None:
    participant = documented.participant.tls
    authority = documented.coordinator.identity.participant_authority
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        ask(
            replace(participant, trusted_authority=authority),
            participant,
            allowlist=documented.allowlist,
            coordinator=documented.coordinator_id,
        )
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_signing_keys_are_those_that_the_others_hold(documented: Documented) -> None:
    enrolled = documented.allowlist.lookup(NodeId("hospital_b"))
    assert enrolled is not None
    assert enrolled.signing_keyid == spki_pin(
        load_p256_key(documented.participant.identity.signing_key).public_key
    )
    published = parse_public_key(documented.participant.coordinator.signing_key.read_bytes())
    assert spki_pin(published) == spki_pin(
        load_p256_key(documented.coordinator.identity.signing_key).public_key
    )


def test_the_log_and_its_witness_know_each_other(documented: Documented) -> None:
    witness = load_witness_keys(documented.participant)
    assert witness is not None
    enrolled = documented.allowlist.lookup(NodeId("hospital_b"))
    assert enrolled is not None
    assert enrolled.witness_key == witness.own
    log = load_ed25519_key(documented.coordinator.identity.log_key)
    assert witness.log == log_key(witness.log.name, log.public_key)


def test_private_keys_are_their_owners_alone(documented: Documented) -> None:
    keys = list(documented.folder.rglob("*.key"))
    assert len(keys) == 10
    assert all(path.stat().st_mode & 0o077 == 0 for path in keys)


def test_certificates_are_valid_as_long_as_documented(documented: Documented) -> None:
    for path, days in (("authorities/participant-ca.crt", 1825), ("hospital_b/tls.crt", 365)):
        certificate = x509.load_pem_x509_certificate((documented.folder / path).read_bytes())
        validity = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        assert validity == timedelta(days=days)


def test_both_keys_are_accepted_during_a_replacement(tmp_path: Path) -> None:
    documented = follow(tmp_path, renewal=True)
    tls = documented.participant.tls
    old_pin = load_tls_key(tls.private_key).keyid
    assert ask_coordinator(documented, tls) == "participant hospital_b"
    run(tmp_path, [FINISH_RENEWAL])
    assert load_tls_key(tls.private_key).keyid != old_pin
    assert ask_coordinator(documented, tls) == "participant hospital_b"


def test_two_authorities_in_one_file_are_both_trusted(
    documented: Documented, tmp_path: Path
) -> None:
    pair = (documented, follow(tmp_path))
    coordinators, participants = tmp_path / "coordinators.crt", tmp_path / "participants.crt"
    for path, authorities in (
        (coordinators, [each.participant.coordinator.authority for each in pair]),
        (participants, [each.coordinator.identity.participant_authority for each in pair]),
    ):
        path.write_bytes(b"".join(authority.read_bytes() for authority in authorities))
    for each in pair:
        answer = ask(
            replace(each.coordinator.identity.tls, trusted_authority=participants),
            replace(each.participant.tls, trusted_authority=coordinators),
            allowlist=each.allowlist,
            coordinator=each.coordinator_id,
        )
        assert answer == "participant hospital_b"
