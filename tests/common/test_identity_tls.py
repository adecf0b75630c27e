"""Mutual TLS between a real gRPC server and real clients on loopback."""

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from matl_common.errors import ConfigurationError
from matl_common.identity.allowlist import Allowlist, RefusalReason, load_allowlist
from matl_common.identity.certificates import (
    COORDINATOR_ROLES,
    PARTICIPANT_ROLES,
    CertificateAuthority,
    Role,
    SpiffeId,
    create_authority,
    issue_certificate,
)
from matl_common.identity.development import (
    DevelopmentFederation,
    Enrolment,
    create_development_keys,
)
from matl_common.identity.keys import (
    TLS_CURVES,
    generate_private_key,
    load_private_key,
    private_key_pem,
)
from matl_common.identity.node_folder import NodeFolder
from matl_common.identity.tls import (
    MAX_MESSAGE_BYTES,
    AuthenticatedContext,
    PeerRefusedError,
    ServerIdentity,
    TlsFiles,
    channel_credentials,
    channel_options,
    peer_certificate,
    server_credentials,
    server_options,
)
from matl_common.ids import FederationId, NodeId

pytestmark = pytest.mark.certificates

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
FEDERATION = FederationId("dr-study")
A, B = NodeId("hospital_a"), NodeId("hospital_b")
COORDINATOR = SpiffeId(FEDERATION, Role.COORDINATOR, A)
METHOD = "/matl.test.Identity/WhoAmI"
TIMEOUT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Federation:
    folder: Path
    coordinator: NodeFolder
    participant: NodeFolder

    @property
    def allowlist(self) -> Allowlist:
        return load_allowlist(self.coordinator.allowlist)

    def authority(self, side: str, roles: frozenset[Role]) -> CertificateAuthority:
        certificate = (self.folder / f"{side}-ca.crt").read_bytes()
        return CertificateAuthority(
            x509.load_pem_x509_certificate(certificate),
            load_private_key(self.folder / f"{side}-ca.key"),
            roles,
        )


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    folder = tmp_path_factory.mktemp("tls") / "keys"
    wanted = DevelopmentFederation(FEDERATION, coordinator=A, participants={B: Enrolment(100)})
    nodes = create_development_keys(folder, wanted, now=NOW)
    return Federation(folder, nodes[A], nodes[B])


def who_am_i(allowlist: Allowlist) -> Callable[[bytes, AuthenticatedContext], Awaitable[bytes]]:
    """A method that answers with what the allow-list says of its caller."""

    async def answer(request: bytes, context: AuthenticatedContext) -> bytes:
        del request
        peer = peer_certificate(context)
        match allowlist.authenticate(peer, now=datetime.now(UTC)):
            case RefusalReason() as reason:
                return reason.encode()
            case node:
                version = next(iter(context.auth_context()["ssl_tls_version"]))
                return f"{node.node_id} {version.decode()}".encode()

    return answer


def unchanged(message: bytes) -> bytes:
    return message


@asynccontextmanager
async def serving(credentials: grpc.ServerCredentials, allowlist: Allowlist) -> AsyncIterator[int]:
    server = grpc.aio.server(options=server_options())
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
        who_am_i(allowlist)
    )
    service = grpc.method_handlers_generic_handler("matl.test.Identity", {"WhoAmI": method})
    server.add_generic_rpc_handlers((service,))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def call(
    port: int,
    credentials: grpc.ChannelCredentials,
    *,
    request: bytes = b"",
    coordinator: SpiffeId = COORDINATOR,
) -> str:
    channel = grpc.aio.secure_channel(
        f"127.0.0.1:{port}", credentials, options=channel_options(coordinator)
    )
    async with channel:
        answer = await channel.unary_unary(METHOD, unchanged, unchanged)(
            request, timeout=TIMEOUT_SECONDS
        )
        return answer.decode()


def ask(
    federation: Federation,
    credentials: grpc.ChannelCredentials,
    *,
    server: TlsFiles | None = None,
    request: bytes = b"",
    coordinator: SpiffeId = COORDINATOR,
) -> str:
    """Serve, call once, and return the answer."""

    async def scenario() -> str:
        files = server or federation.coordinator.tls
        async with serving(server_credentials(files), federation.allowlist) as port:
            return await call(port, credentials, request=request, coordinator=coordinator)

    return asyncio.run(scenario())


def issued_files(
    folder: Path,
    issuer: CertificateAuthority,
    spiffe_id: SpiffeId,
    *,
    trusted: Path,
    not_before: datetime = NOW - DAY,
    not_after: datetime = NOW + DAY,
    curve: type[ec.EllipticCurve] = ec.SECP256R1,
) -> TlsFiles:
    """A node's TLS files with a new key."""
    key = generate_private_key(curve)
    certificate = issue_certificate(
        issuer, key.public_key(), spiffe_id, not_before=not_before, not_after=not_after
    )
    (folder / "tls.key").write_bytes(private_key_pem(key))
    (folder / "tls.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    return TlsFiles(folder / "tls.key", folder / "tls.crt", trusted)


def participant(node: NodeId = B) -> SpiffeId:
    return SpiffeId(FEDERATION, Role.PARTICIPANT, node)


def assert_refused_at_the_handshake(error: grpc.aio.AioRpcError) -> None:
    assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_an_enrolled_pair_talks_over_tls_1_3(federation: Federation) -> None:
    credentials = channel_credentials(federation.participant.tls)
    assert ask(federation, credentials) == "hospital_b TLSv1.3"


def test_a_pair_with_p_384_keys_talks_over_tls_1_3(federation: Federation, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    server = issued_files(
        tmp_path / "server",
        federation.authority("coordinator", COORDINATOR_ROLES),
        COORDINATOR,
        trusted=federation.coordinator.tls.trusted_authority,
        curve=ec.SECP384R1,
    )
    client = issued_files(
        tmp_path,
        federation.authority("participant", PARTICIPANT_ROLES),
        participant(),
        trusted=federation.participant.tls.trusted_authority,
        curve=ec.SECP384R1,
    )
    # Known to TLS and not to the allow-list, which is asked only then.
    assert ask(federation, channel_credentials(client), server=server) == "pin_mismatch"


@pytest.mark.hostile
def test_a_client_without_a_certificate_is_refused(federation: Federation) -> None:
    root = federation.participant.tls.trusted_authority.read_bytes()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        ask(federation, grpc.ssl_channel_credentials(root_certificates=root))
    assert_refused_at_the_handshake(refused.value)


@pytest.mark.hostile
@pytest.mark.parametrize("side", ["stranger", "coordinator"])
def test_a_client_of_another_authority_is_refused(
    federation: Federation, tmp_path: Path, side: str
) -> None:
    if side == "stranger":
        issuer = create_authority(
            "stranger", roles=PARTICIPANT_ROLES, not_before=NOW - DAY, not_after=NOW + DAY
        )
    else:
        issuer = federation.authority("coordinator", PARTICIPANT_ROLES)
    trusted = federation.participant.tls.trusted_authority
    files = issued_files(tmp_path, issuer, participant(), trusted=trusted)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        ask(federation, channel_credentials(files))
    assert_refused_at_the_handshake(refused.value)


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("not_before", "not_after"),
    [(NOW - 2 * DAY, NOW - DAY), (NOW + DAY, NOW + 2 * DAY)],
    ids=["expired", "not yet valid"],
)
def test_a_certificate_outside_its_validity_is_refused(
    federation: Federation, tmp_path: Path, not_before: datetime, not_after: datetime
) -> None:
    files = issued_files(
        tmp_path,
        federation.authority("participant", PARTICIPANT_ROLES),
        participant(),
        trusted=federation.participant.tls.trusted_authority,
        not_before=not_before,
        not_after=not_after,
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        ask(federation, channel_credentials(files))
    assert_refused_at_the_handshake(refused.value)


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("spiffe_id", "reason"),
    [
        (participant(), RefusalReason.PIN_MISMATCH),
        (participant(NodeId("hospital_z")), RefusalReason.UNLISTED),
        (SpiffeId(FEDERATION, Role.OPERATOR, B), RefusalReason.WRONG_ROLE),
        (
            SpiffeId(FederationId("other"), Role.PARTICIPANT, B),
            RefusalReason.WRONG_FEDERATION,
        ),
    ],
)
def test_a_certificate_that_tls_accepts_is_still_refused_by_the_allowlist(
    federation: Federation, tmp_path: Path, spiffe_id: SpiffeId, reason: RefusalReason
) -> None:
    files = issued_files(
        tmp_path,
        federation.authority("participant", PARTICIPANT_ROLES),
        spiffe_id,
        trusted=federation.participant.tls.trusted_authority,
    )
    assert ask(federation, channel_credentials(files)) == reason


@pytest.mark.hostile
def test_a_false_coordinator_certified_by_the_participants_authority_is_refused(
    federation: Federation, tmp_path: Path
) -> None:
    forged = issued_files(
        tmp_path,
        federation.authority("participant", COORDINATOR_ROLES),
        COORDINATOR,
        trusted=federation.coordinator.tls.trusted_authority,
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        ask(federation, channel_credentials(federation.participant.tls), server=forged)
    assert_refused_at_the_handshake(refused.value)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "other",
    [
        SpiffeId(FEDERATION, Role.COORDINATOR, NodeId("hospital_c")),
        SpiffeId(FederationId("other"), Role.COORDINATOR, A),
    ],
)
def test_a_client_refuses_the_coordinator_of_another_name(
    federation: Federation, other: SpiffeId
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        ask(federation, channel_credentials(federation.participant.tls), coordinator=other)
    assert_refused_at_the_handshake(refused.value)


@pytest.mark.hostile
def test_a_message_over_the_limit_is_refused(federation: Federation) -> None:
    credentials = channel_credentials(federation.participant.tls)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        ask(federation, credentials, request=bytes(MAX_MESSAGE_BYTES + 1))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("options", [server_options(), channel_options(COORDINATOR)])
def test_messages_are_never_unlimited(options: tuple[tuple[str, int | str], ...]) -> None:
    limits = dict(options)
    assert len(limits) == len(options)
    for name in ("grpc.max_receive_message_length", "grpc.max_send_message_length"):
        assert limits[name] == MAX_MESSAGE_BYTES


@pytest.mark.hostile
@pytest.mark.parametrize("curve", TLS_CURVES)
@pytest.mark.parametrize(
    ("version", "negotiated"),
    [(ssl.TLSVersion.TLSv1_2, None), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")],
)
def test_only_tls_1_3_can_be_negotiated(
    federation: Federation,
    tmp_path: Path,
    curve: type[ec.EllipticCurve],
    version: ssl.TLSVersion,
    negotiated: str | None,
) -> None:
    server = issued_files(
        tmp_path,
        federation.authority("coordinator", COORDINATOR_ROLES),
        COORDINATOR,
        trusted=federation.coordinator.tls.trusted_authority,
        curve=curve,
    )
    files = federation.participant.tls
    trust = ssl.create_default_context(cafile=str(files.trusted_authority))
    trust.load_cert_chain(files.certificate_chain, files.private_key)
    trust.maximum_version = version
    trust.set_alpn_protocols(["h2"])

    def handshake(port: int) -> str | None:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as plain,
            trust.wrap_socket(plain, server_hostname=COORDINATOR.server_name) as secure,
        ):
            return secure.version()

    async def scenario() -> str | None:
        async with serving(server_credentials(server), federation.allowlist) as port:
            try:
                return await asyncio.to_thread(handshake, port)
            except (ssl.SSLError, ConnectionError):
                return None

    assert asyncio.run(scenario()) == negotiated


@pytest.mark.hostile
@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"ssl_tls_version": [b"TLSv1.2"], "x509_pem_cert": [b"CERTIFICATE"]},
        {"x509_pem_cert": [b"CERTIFICATE"]},
        {"ssl_tls_version": [b"TLSv1.3"]},
        {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [b"garbage"]},
        {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [b"CERTIFICATE", b"CERTIFICATE"]},
    ],
)
def test_a_connection_that_identifies_no_node_is_refused(
    federation: Federation, properties: dict[str, list[bytes]]
) -> None:
    pem = federation.participant.tls.certificate_chain.read_bytes()

    @dataclass(frozen=True)
    class Connection:
        properties: Mapping[str, list[bytes]]

        def auth_context(self) -> Mapping[str, list[bytes]]:
            return self.properties

    held = {
        name: [value.replace(b"CERTIFICATE", pem) for value in values]
        for name, values in properties.items()
    }
    with pytest.raises(PeerRefusedError):
        peer_certificate(Connection(held))
    good = {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [pem]}
    assert peer_certificate(Connection(good)).node_id == B


def test_grpc_is_given_a_certificate_once_and_not_at_every_handshake(
    federation: Federation, tmp_path: Path
) -> None:
    # From every answer it makes credentials anew, and frees those that others are about to use.
    files = TlsFiles(*(tmp_path / name for name in ("key", "chain", "authority")))
    put_in_place(federation.coordinator.tls, files)
    identity = ServerIdentity(files)
    assert not identity.renew()
    assert identity.news() is None
    put_in_place(federation.participant.tls, files)
    assert identity.renew()
    assert identity.news() is not None
    assert identity.news() is None


def put_in_place(found: TlsFiles, files: TlsFiles) -> None:
    for source, target in zip(astuple(found), astuple(files), strict=True):
        shutil.copyfile(source, target)


def test_a_certificate_of_another_key_is_refused_before_serving(federation: Federation) -> None:
    files = TlsFiles(
        federation.participant.tls.private_key,
        federation.coordinator.tls.certificate_chain,
        federation.coordinator.tls.trusted_authority,
    )
    with pytest.raises(ConfigurationError, match="belong together"):
        server_credentials(files)


def test_a_missing_certificate_says_what_to_give(federation: Federation, tmp_path: Path) -> None:
    tls = federation.participant.tls
    files = TlsFiles(tls.private_key, tmp_path / "absent", tls.trusted_authority)
    with pytest.raises(ConfigurationError, match="PEM file"):
        channel_credentials(files)


def test_a_certificate_file_with_any_bit_flipped_is_a_configuration_error(
    federation: Federation, tmp_path: Path
) -> None:
    files = federation.coordinator.tls
    der = ssl.PEM_cert_to_DER_cert(files.certificate_chain.read_text())
    damaged = replace(files, certificate_chain=tmp_path / "tls.crt")
    refused = 0
    # Each of 37 bits: all of a byte's, in a fraction of the time.
    for bit in range(0, 8 * len(der), 37):
        flipped = bytearray(der)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.certificate_chain.write_text(ssl.DER_cert_to_PEM_cert(bytes(flipped)))
        try:
            server_credentials(damaged)
        except ConfigurationError:
            refused += 1
    # Those that still hold the key's certificate are refused by whoever looks at the signature.
    assert refused > 30


def test_credentials_are_refused_where_grpc_was_imported_too_early(federation: Federation) -> None:
    tls = federation.coordinator.tls
    program = (
        "import sys, pathlib\n"
        "{imports}\n"
        "from matl_common.identity.tls import TlsFiles, server_credentials\n"
        "server_credentials(TlsFiles(*map(pathlib.Path, sys.argv[1:])))\n"
    )
    outcomes = {}
    environment = {k: v for k, v in os.environ.items() if k != "GRPC_SSL_CIPHER_SUITES"}
    for imports in ("import grpc, matl_common", "import matl_common, grpc"):
        outcomes[imports] = subprocess.run(
            [
                sys.executable,
                "-c",
                program.format(imports=imports),
                tls.private_key,
                tls.certificate_chain,
                tls.trusted_authority,
            ],
            env=environment,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
    assert "TLS 1.2" in outcomes["import grpc, matl_common"].stderr
    assert outcomes["import matl_common, grpc"].returncode == 0
