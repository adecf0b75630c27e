"""Who is not let in, on a live coordinator in the middle of a round."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

from matl.cli import app
from matl_common.identity.certificates import (
    PARTICIPANT_ROLES,
    CertificateAuthority,
    Role,
    SpiffeId,
    create_authority,
    issue_certificate,
)
from matl_common.identity.keys import generate_private_key, load_private_key, private_key_pem
from matl_common.identity.tls import TlsFiles, channel_credentials, channel_options
from matl_common.ids import FederationId, NodeId
from matl_common.wire import federation_pb2 as pb
from matl_common.wire import operations_pb2 as ops
from matl_common.wire.federation_pb2_grpc import FederationServiceStub
from matl_common.wire.operations_pb2_grpc import OperationsServiceStub
from matl_coordinator.rpc.guard import ROLES
from tests.system.federation import (
    COORDINATOR_NAME,
    FEDERATION,
    HOSPITALS,
    OPERATOR,
    Event,
    Federation,
    Material,
    found_federation,
    logged_events,
)
from tests.system.processes import Daemon, until
from tests.system.story import finish, of, start_hospitals

pytestmark = [pytest.mark.system, pytest.mark.certificates]
PERMISSION_DENIED, UNAVAILABLE = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE
KNOWN, UNKNOWN = HOSPITALS[0], NodeId("hospital_z")


@dataclass(frozen=True)
class Live:
    """A coordinator that is collecting; the hospitals train until they are told to end."""

    federation: Federation
    coordinator: Daemon
    folder: Path

    def authority(self, side: str = "participant") -> CertificateAuthority:
        """An authority, whose key a development federation keeps, without its scruples."""
        keys = self.federation.folder / "keys"
        certificate = x509.load_pem_x509_certificate((keys / f"{side}-ca.crt").read_bytes())
        return CertificateAuthority(
            certificate, load_private_key(keys / f"{side}-ca.key"), PARTICIPANT_ROLES
        )

    def files(self, **changes: object) -> TlsFiles:
        """A hospital's TLS files, as they should be but for the changes."""
        return issued(self, **changes)  # type: ignore[arg-type]  # keyword arguments passed on

    def phase(self) -> str:
        with self.federation.operator() as operator:
            current = operator.status().current_round
        assert current is not None
        return f"{current.round_id} {current.phase}"


def issued(
    live: Live,
    *,
    node: NodeId = KNOWN,
    role: Role = Role.PARTICIPANT,
    federation: str = FEDERATION,
    authority: CertificateAuthority | None = None,
    key: ec.EllipticCurvePrivateKey | None = None,
    starts: timedelta = timedelta(minutes=-5),
    ends: timedelta = timedelta(days=1),
) -> TlsFiles:
    enrolled = live.federation.keys[KNOWN].tls
    key = key or load_private_key(enrolled.private_key)
    now = datetime.now(UTC)
    certificate = issue_certificate(
        authority or live.authority(),
        key.public_key(),
        SpiffeId(FederationId(federation), role, node),
        not_before=now + starts,
        not_after=now + ends,
    )
    files = TlsFiles(live.folder / "tls.key", live.folder / "tls.crt", enrolled.trusted_authority)
    files.private_key.write_bytes(private_key_pem(key))
    files.certificate_chain.write_bytes(certificate.public_bytes(Encoding.PEM))
    return files


@pytest.fixture(scope="module")
def federation_in_a_round(
    tmp_path_factory: pytest.TempPathFactory, material: Material
) -> Iterator[tuple[Federation, Daemon]]:
    federation = found_federation(
        tmp_path_factory.mktemp("strangers"), material, study={"rounds": 1}
    )
    with ExitStack() as running:
        for node in HOSPITALS:
            federation.control(node).write_text("wait")
        coordinator = running.enter_context(federation.start_coordinator())
        coordinator.wait_for("coordinator_ready")
        hospitals = start_hospitals(federation, running)
        coordinator.wait_for("round_phase", round=1, phase="collecting")
        yield federation, coordinator
        for node in HOSPITALS:
            federation.control(node).unlink()
        # Whoever knocked: the round ends with the hospitals that belong to it.
        finish(federation, coordinator, hospitals)
        events = logged_events(federation)
        (closed,) = of(events, "collection_closed")
        assert set(closed["admitted"]) == set(HOSPITALS)  # type: ignore[call-overload]  # a JSON object
        assert len(of(events, "model_released")) == 1


@pytest.fixture
def live(federation_in_a_round: tuple[Federation, Daemon], tmp_path: Path) -> Live:
    return Live(*federation_in_a_round, tmp_path)


def hello(channel: grpc.Channel) -> None:
    FederationServiceStub(channel).Hello(pb.HelloRequest(version="0"), timeout=30)


def status(channel: grpc.Channel) -> None:
    OperationsServiceStub(channel).GetStatus(ops.GetStatusRequest(), timeout=30)


def code_of(
    live: Live, credentials: grpc.ChannelCredentials, call: Callable[[grpc.Channel], None]
) -> grpc.StatusCode:
    options = channel_options(COORDINATOR_NAME)
    with (
        grpc.secure_channel(live.federation.address, credentials, options=options) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        call(channel)
    return caught.value.code()


def refusals(live: Live, event: str, **facts: object) -> int:
    with live.federation.operator() as operator:
        entries = operator.newest_log_entries()
    return len(of([json.loads(each) for each in entries], event, **facts))


def test_the_files_these_tests_start_from_are_let_in(live: Live) -> None:
    options = channel_options(COORDINATOR_NAME)
    credentials = channel_credentials(live.files())
    with grpc.secure_channel(live.federation.address, credentials, options=options) as channel:
        hello(channel)


STRANGERS: dict[str, tuple[str, Callable[[Live], TlsFiles]]] = {
    "unlisted": ("unlisted", lambda live: live.files(node=UNKNOWN)),
    "right name, another key": (
        "pin_mismatch",
        lambda live: live.files(key=generate_private_key()),
    ),
    "right name and key, another role": (
        "wrong_role",
        lambda live: live.files(role=Role.OPERATOR),
    ),
    "another federation": ("wrong_federation", lambda live: live.files(federation="other-study")),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_a_certificate_of_the_right_authority_is_not_enough(live: Live, case: str) -> None:
    reason, make = STRANGERS[case]
    facts = {"reason": reason, "method": "/matl.v1.FederationService/Hello"}
    before = refusals(live, "access_denied", **facts)
    counted = live.federation.metric("matl_refused_peers_total", reason=reason)
    assert code_of(live, channel_credentials(make(live)), hello) is PERMISSION_DENIED
    assert refusals(live, "access_denied", **facts) == before + 1
    assert live.federation.metric("matl_refused_peers_total", reason=reason) == counted + 1
    assert live.phase() == "1 collecting"


def other_authority() -> CertificateAuthority:
    now = datetime.now(UTC)
    return create_authority(
        "somebody else's authority",
        roles=PARTICIPANT_ROLES,
        not_before=now - timedelta(days=1),
        not_after=now + timedelta(days=1),
    )


def minted(live: Live) -> TlsFiles:
    """A certificate in the name of one hospital that another one signed, with its own behind."""
    other = live.federation.keys[HOSPITALS[1]].tls
    pem = other.certificate_chain.read_bytes()
    issuer = CertificateAuthority(
        x509.load_pem_x509_certificate(pem), load_private_key(other.private_key), PARTICIPANT_ROLES
    )
    files = live.files(authority=issuer, key=generate_private_key())
    files.certificate_chain.write_bytes(files.certificate_chain.read_bytes() + pem)
    return files


HANDSHAKES: dict[str, tuple[str, Callable[[Live], TlsFiles]]] = {
    "expired": (
        "expired",
        lambda live: live.files(starts=timedelta(days=-2), ends=timedelta(minutes=-1)),
    ),
    "not yet valid": ("not_yet_valid", lambda live: live.files(starts=timedelta(hours=1))),
    "another authority": (
        "wrong_authority",
        lambda live: live.files(authority=other_authority()),
    ),
    "the coordinators' authority": (
        "wrong_authority",
        lambda live: live.files(authority=live.authority("coordinator")),
    ),
    "a hospital that certifies another": ("wrong_authority", minted),
}


@pytest.mark.parametrize("case", HANDSHAKES)
def test_tls_refuses_a_bad_certificate_and_the_log_says_why(live: Live, case: str) -> None:
    reason, make = HANDSHAKES[case]
    expect_refused_handshake(live, channel_credentials(make(live)), reason)


def test_tls_refuses_a_peer_without_a_certificate(live: Live) -> None:
    authority = live.federation.keys[KNOWN].tls.trusted_authority.read_bytes()
    expect_refused_handshake(live, grpc.ssl_channel_credentials(authority), "no_certificate")


def expect_refused_handshake(live: Live, credentials: grpc.ChannelCredentials, reason: str) -> None:
    assert code_of(live, credentials, hello) is UNAVAILABLE
    live.coordinator.wait_for("handshake_refused", reason=reason)
    until(
        lambda: refusals(live, "handshake_refused", reason=reason) > 0,
        what="the refused handshake is in the log",
    )
    assert live.federation.metric("matl_refused_peers_total", reason=reason) > 0
    assert live.phase() == "1 collecting"


@pytest.mark.parametrize(
    ("node", "call", "method"),
    [
        (OPERATOR, hello, "/matl.v1.FederationService/Hello"),
        (KNOWN, status, "/matl.v1.OperationsService/GetStatus"),
    ],
)
def test_each_role_may_call_its_own_service_only(
    live: Live, node: NodeId, call: Callable[[grpc.Channel], None], method: str
) -> None:
    counted = live.federation.metric("matl_refused_peers_total", reason="role_not_allowed")
    credentials = channel_credentials(live.federation.keys[node].tls)
    assert code_of(live, credentials, call) is PERMISSION_DENIED
    facts = {"reason": "role_not_allowed", "node": node, "method": method}
    assert refusals(live, "access_denied", **facts) == 1
    after = live.federation.metric("matl_refused_peers_total", reason="role_not_allowed")
    assert after == counted + 1
    assert live.phase() == "1 collecting"


def without_certificate(live: Live) -> TlsFiles:
    files = live.files()
    files.certificate_chain.unlink()
    return files


def without_key(live: Live) -> TlsFiles:
    files = live.files()
    files.private_key.write_bytes(private_key_pem(generate_private_key()))
    return files


# Which link is broken, and what is said of it.
EXPLAINED: dict[str, tuple[str, str, Callable[[Live], TlsFiles]]] = {
    "no certificate": ("certificate", "cannot read", without_certificate),
    "a certificate of another key": ("certificate", "another key", without_key),
    "expired": ("certificate", "expired", HANDSHAKES["expired"][1]),
    "not yet valid": ("certificate", "not valid before", HANDSHAKES["not yet valid"][1]),
    "another authority": (
        "handshake",
        "participants' authority",
        HANDSHAKES["another authority"][1],
    ),
    "the coordinators' authority": (
        "handshake",
        "participants' authority",
        HANDSHAKES["the coordinators' authority"][1],
    ),
    "minted": ("handshake", "authority", minted),
    "unlisted": ("enrolment", "unlisted", STRANGERS["unlisted"][1]),
    "right name, another key": (
        "enrolment",
        "pin_mismatch",
        STRANGERS["right name, another key"][1],
    ),
    "another role": ("name", "operator", STRANGERS["right name and key, another role"][1]),
    "another federation": ("name", "other-study", STRANGERS["another federation"][1]),
}


def diagnosis(live: Live, files: TlsFiles, *, node: NodeId = KNOWN, status: int = 1) -> list[Event]:
    """What ``matl doctor`` says at a hospital with these files."""
    mine = live.federation.keys[KNOWN]
    text = live.federation.participant_config(KNOWN, address="", changes={}).read_text()
    for old, new in (
        (mine.tls.private_key, files.private_key),
        (mine.tls.certificate_chain, files.certificate_chain),
        (f'node_id = "{KNOWN}"', f'node_id = "{node}"'),
    ):
        text = text.replace(str(old), str(new))
    config = live.folder / "participant.toml"
    config.write_text(text)
    result = CliRunner().invoke(app, ["doctor", "--config", str(config), "--json"])
    assert result.exit_code == status, result.output
    links: list[Event] = json.loads(result.output)["links"]
    return links


@pytest.mark.parametrize("case", EXPLAINED)
def test_the_doctor_names_the_link_that_is_broken(live: Live, case: str) -> None:
    link, text, make = EXPLAINED[case]
    files = make(live)
    files.private_key.chmod(0o600)
    links = diagnosis(live, files, node=UNKNOWN if case == "unlisted" else KNOWN)
    broken = [each for each in links if each["status"] == "broken"]
    assert [each["link"] for each in broken] == [link], broken
    assert text in str(broken[0]["found"])
    assert broken[0]["remedy"]


def test_the_doctor_finds_nothing_where_nothing_is_wrong(live: Live) -> None:
    links = diagnosis(live, live.federation.keys[KNOWN].tls, status=0)
    assert {each["status"] for each in links} == {"ok"}
    assert len(links) == 13


def test_the_doctor_at_the_coordinator_says_why_a_node_is_not_let_in(live: Live) -> None:
    config = str(live.federation.folder / "coordinator.toml")
    healthy = CliRunner().invoke(app, ["doctor", "--config", config])
    assert healthy.exit_code == 0, healthy.output
    for case, link in (
        ("unlisted", "peer's enrolment"),
        ("right name, another key", "peer's enrolment"),
        ("expired", "peer's certificate"),
        ("another authority", "peer's authority"),
    ):
        peer = str(EXPLAINED[case][2](live).certificate_chain)
        arguments = ["doctor", "--config", config, "--json", "--peer", peer]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1, result.output
        links = json.loads(result.output)["links"]
        assert [each["link"] for each in links if each["status"] == "broken"] == [link]


HOSPITAL_ONLY, OPERATOR_ONLY = {Role.PARTICIPANT}, {Role.OPERATOR}
BOTH = HOSPITAL_ONLY | OPERATOR_ONLY
METHODS: dict[str, set[Role]] = {
    "matl.v1.FederationService/Hello": HOSPITAL_ONLY,
    "matl.v1.FederationService/AwaitRound": HOSPITAL_ONLY,
    "matl.v1.FederationService/PullModel": HOSPITAL_ONLY,
    "matl.v1.FederationService/OpenUpdate": HOSPITAL_ONLY,
    "matl.v1.FederationService/PushChunks": HOSPITAL_ONLY,
    "matl.v1.FederationService/Attest": HOSPITAL_ONLY,
    "matl.v1.OperationsService/GetStatus": OPERATOR_ONLY,
    "matl.v1.OperationsService/ListRounds": OPERATOR_ONLY,
    "matl.v1.OperationsService/ListParticipants": OPERATOR_ONLY,
    "matl.v1.OperationsService/Pause": OPERATOR_ONLY,
    "matl.v1.OperationsService/Resume": OPERATOR_ONLY,
    "matl.v1.OperationsService/StartRound": OPERATOR_ONLY,
    "matl.v1.OperationsService/Quarantine": OPERATOR_ONLY,
    "matl.v1.OperationsService/Release": OPERATOR_ONLY,
    "matl.v1.OperationsService/Appeal": OPERATOR_ONLY,
    "matl.v1.OperationsService/Deny": OPERATOR_ONLY,
    "matl.v1.AuditService/GetCheckpoint": BOTH,
    "matl.v1.AuditService/ProveInclusion": BOTH,
    "matl.v1.AuditService/ProveConsistency": BOTH,
    "matl.v1.AuditService/ReadLog": BOTH,
    "matl.v1.AuditService/AddCosignature": HOSPITAL_ONLY,
    "matl.v1.AuditService/RecordVerification": OPERATOR_ONLY,
    "grpc.health.v1.Health/Check": BOTH,
    "grpc.health.v1.Health/Watch": BOTH,
    "grpc.health.v1.Health/List": BOTH,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": BOTH,
}
"""Every method that is served, and who may call it: written down once more, to be compared."""


def test_the_table_below_has_every_method_that_the_server_knows() -> None:
    never_served = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    assert {f"/{method}" for method in METHODS} == set(ROLES) - {never_served}


@pytest.mark.parametrize("who", ["participant", "operator", "stranger"])
def test_each_method_answers_the_roles_it_is_for_and_nobody_else(live: Live, who: str) -> None:
    keys = {"participant": KNOWN, "operator": OPERATOR}
    files = live.federation.keys[keys[who]].tls if who in keys else live.files(node=UNKNOWN)
    roles = {Role(who)} if who in keys else set()
    with grpc.secure_channel(
        live.federation.address,
        channel_credentials(files),
        options=channel_options(COORDINATOR_NAME),
    ) as channel:
        answered = {method for method in METHODS if not is_denied(channel, method)}
    assert answered == {method for method, allowed in METHODS.items() if roles & allowed}
    assert live.phase() == "1 collecting"


def is_denied(channel: grpc.Channel, method: str) -> bool:
    """Call with an empty message, whatever the method thinks of it."""
    call = channel.stream_stream(f"/{method}", bytes, bytes)(iter([b""]), timeout=30)
    try:
        next(call, None)
    except grpc.RpcError as error:
        return error.code() is PERMISSION_DENIED
    finally:
        call.cancel()
    return False
