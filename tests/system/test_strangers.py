"""Who is not let in, on a live coordinator in the middle of a round."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

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
from tests.system.diagnosis import broken, diagnosis
from tests.system.federation import (
    COORDINATOR_NAME,
    EXTRA_HOSPITALS,
    FEDERATION,
    HOSPITALS,
    OPERATOR,
    Federation,
    Material,
    found_federation,
    logged_events,
)
from tests.system.processes import Daemon, until
from tests.system.story import finish, of, start_hospitals

pytestmark = [pytest.mark.system, pytest.mark.certificates]
PERMISSION_DENIED, UNAVAILABLE = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE
KNOWN, ABSENT, UNKNOWN = HOSPITALS[0], EXTRA_HOSPITALS[0], NodeId("hospital_z")
HELLO, HEALTH = "/matl.v1.FederationService/Hello", "/grpc.health.v1.Health/Check"


COUNTED = r'^matl_refused_peers_total\{reason="(\w+)"\} (\S+)$'


@dataclass(frozen=True)
class Refusal:
    """How somebody is not let in: in the handshake, or by the allow-list in a call."""

    reason: str
    node: NodeId | None = None
    method: str | None = None

    @property
    def entry(self) -> tuple[object, ...]:
        """What the log says of it."""
        event = "handshake_refused" if self.method is None else "access_denied"
        return event, self.reason, self.node, self.method


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

    def noted(self) -> tuple[Counter[str], Counter[tuple[object, ...]]]:
        """Refusals by reason as metrics count them, and by their facts as the log has them."""
        with urlopen(f"http://127.0.0.1:{self.federation.metrics_port}/metrics") as answer:
            counted = re.findall(COUNTED, answer.read().decode(), re.MULTILINE)
        with self.federation.operator() as operator:
            entries = [json.loads(each) for each in operator.newest_log_entries()]
        return (
            Counter({reason: int(float(count)) for reason, count in counted}),
            Counter(
                tuple(each.get(fact) for fact in ("event", "reason", "node", "method"))
                for each in entries
                if each["event"] in {"handshake_refused", "access_denied"}
            ),
        )

    @contextmanager
    def expecting(self, *refusals: Refusal) -> Iterator[None]:
        """The block causes these refusals, each counted and logged, and no other one."""
        counted, logged = self.noted()
        wanted = (
            counted + Counter(each.reason for each in refusals),
            logged + Counter(each.entry for each in refusals),
        )
        yield
        until(
            lambda: self.noted() == wanted,
            what=f"{refusals} and no other refusal, but {self.noted()} in place of {wanted}",
        )
        assert self.phase() == "1 collecting"

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
    three = dict.fromkeys(("quorum", "minimum_participants", "maximum_participants"), 3)
    everybody = found_federation(
        tmp_path_factory.mktemp("strangers"),
        material,
        hospitals=(*HOSPITALS, ABSENT),
        study={"rounds": 1},
        rounds=three,
    )
    federation = replace(everybody, hospitals=HOSPITALS)
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


def test_the_files_these_tests_start_from_are_let_in(live: Live) -> None:
    options = channel_options(COORDINATOR_NAME)
    credentials = channel_credentials(live.files())
    with grpc.secure_channel(live.federation.address, credentials, options=options) as channel:
        hello(channel)


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


FOR_SERVERS = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
FOR_AGREEMENT_ALONE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=True,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def for_another_use(live: Live, use: x509.ExtensionType) -> TlsFiles:
    """A hospital's certificate, but for what its key may be used for."""
    files = live.files()
    issued = x509.load_pem_x509_certificate(files.certificate_chain.read_bytes())
    changed = with_extension(issued, use, live.authority().private_key)
    files.certificate_chain.write_bytes(changed.public_bytes(Encoding.PEM))
    return files


def with_extension(
    issued: x509.Certificate, extension: x509.ExtensionType, key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    """A certificate signed anew with another extension in place of the one of its kind."""
    builder = x509.CertificateBuilder(
        issued.issuer,
        issued.subject,
        issued.public_key(),
        issued.serial_number,
        issued.not_valid_before_utc,
        issued.not_valid_after_utc,
    )
    for each in issued.extensions:
        value = extension if each.oid == extension.oid else each.value
        builder = builder.add_extension(value, each.critical)
    return builder.sign(key, SHA256())


def without_certificate(live: Live) -> TlsFiles:
    files = live.files()
    files.certificate_chain.unlink()
    return files


@dataclass(frozen=True)
class Row:
    """A row of the certificate matrix: who is not let in, how, and what the doctor says of it."""

    make: Callable[[Live], TlsFiles]
    reason: str
    at_hospital: tuple[str, str]
    """The link that the hospital's doctor names, and words of what it says."""
    at_coordinator: tuple[str, str]
    """The same of the coordinator's, shown the certificate."""
    in_handshake: bool = True
    node: NodeId = KNOWN

    def refusal(self, method: str = HELLO) -> Refusal:
        """How it is refused when it calls a method."""
        if self.in_handshake:
            return Refusal(self.reason)
        return Refusal(self.reason, self.node, method)


MATRIX: dict[str, Row] = {
    "none": Row(
        without_certificate,
        "no_certificate",
        ("certificate", "cannot read"),
        ("peer's certificate", "cannot read"),
    ),
    "another authority": Row(
        lambda live: live.files(authority=other_authority()),
        "wrong_authority",
        ("handshake", "participants' authority"),
        ("peer's authority", "did not issue"),
    ),
    "the coordinators' authority": Row(
        lambda live: live.files(authority=live.authority("coordinator")),
        "wrong_authority",
        ("handshake", "participants' authority"),
        ("peer's authority", "did not issue"),
    ),
    "a hospital that certifies another": Row(
        minted,
        "wrong_authority",
        ("handshake", "participants' authority"),
        ("peer's authority", "did not issue"),
    ),
    "for a server": Row(
        lambda live: for_another_use(live, FOR_SERVERS),
        "wrong_purpose",
        ("certificate", "lacks clientAuth"),
        ("peer's certificate", "lacks clientAuth"),
    ),
    "expired": Row(
        lambda live: live.files(starts=timedelta(days=-2), ends=timedelta(minutes=-1)),
        "expired",
        ("certificate", "expired at"),
        ("peer's certificate", "expired at"),
    ),
    "not yet valid": Row(
        lambda live: live.files(starts=timedelta(hours=1)),
        "not_yet_valid",
        ("certificate", "not valid before"),
        ("peer's certificate", "not valid before"),
    ),
    "unlisted": Row(
        lambda live: live.files(node=UNKNOWN),
        "unlisted",
        ("enrolment", "unlisted"),
        ("peer's enrolment", "unlisted"),
        in_handshake=False,
        node=UNKNOWN,
    ),
    "right name, another key": Row(
        lambda live: live.files(key=generate_private_key()),
        "pin_mismatch",
        ("enrolment", "pin_mismatch"),
        ("peer's enrolment", "pin_mismatch"),
        in_handshake=False,
    ),
    "right name and key, another role": Row(
        lambda live: live.files(role=Role.OPERATOR),
        "wrong_role",
        ("name", "operator"),
        ("peer's enrolment", "wrong_role"),
        in_handshake=False,
    ),
    "another federation": Row(
        lambda live: live.files(federation="other-study"),
        "wrong_federation",
        ("name", "other-study"),
        ("peer's enrolment", "wrong_federation"),
        in_handshake=False,
    ),
}
"""Revocation in mid-stream is the row that ``test_enrolment`` has."""


def credentials_of(live: Live, files: TlsFiles) -> grpc.ChannelCredentials:
    if files.certificate_chain.exists():
        return channel_credentials(files)
    return grpc.ssl_channel_credentials(files.trusted_authority.read_bytes())


@pytest.mark.parametrize("case", MATRIX)
def test_who_does_not_belong_is_refused_counted_and_logged_once(live: Live, case: str) -> None:
    row = MATRIX[case]
    with live.expecting(row.refusal()):
        code = code_of(live, credentials_of(live, row.make(live)), hello)
    assert code is (UNAVAILABLE if row.in_handshake else PERMISSION_DENIED)


@pytest.mark.parametrize(
    ("node", "call", "method"),
    [
        (OPERATOR, hello, HELLO),
        (KNOWN, status, "/matl.v1.OperationsService/GetStatus"),
    ],
)
def test_each_role_may_call_its_own_service_only(
    live: Live, node: NodeId, call: Callable[[grpc.Channel], None], method: str
) -> None:
    credentials = channel_credentials(live.federation.keys[node].tls)
    with live.expecting(Refusal("role_not_allowed", node, method)):
        assert code_of(live, credentials, call) is PERMISSION_DENIED


def hospital_config(live: Live, files: TlsFiles, node: NodeId = KNOWN) -> Path:
    """A hospital's configuration with other TLS files."""
    enrolled = node if node in live.federation.keys else KNOWN
    mine = live.federation.keys[enrolled]
    text = live.federation.participant_config(enrolled, address="", changes={}).read_text()
    for old, new in (
        (mine.tls.private_key, files.private_key),
        (mine.tls.certificate_chain, files.certificate_chain),
        (f'node_id = "{enrolled}"', f'node_id = "{node}"'),
    ):
        text = text.replace(str(old), str(new))
    config = live.folder / "participant.toml"
    config.write_text(text)
    return config


@pytest.mark.parametrize("case", MATRIX)
def test_the_hospitals_doctor_names_the_link_and_is_refused_as_its_daemon_is(
    live: Live, case: str
) -> None:
    row = MATRIX[case]
    files = row.make(live)
    files.private_key.chmod(0o600)
    link, text = row.at_hospital
    # What it finds on its own machine it shows to nobody.
    refused = [row.refusal(HEALTH)] if link in {"handshake", "enrolment"} else []
    with live.expecting(*refused):
        links = diagnosis(hospital_config(live, files, row.node))
    assert broken(links) == [link]
    assert text in links[link]["found"]
    if row.reason == "unlisted":
        assert "matl pki request --replace-keys" in links[link]["remedy"]


def test_either_doctor_says_that_a_key_is_not_for_signing(live: Live) -> None:
    # No row of the matrix: gRPC itself does not take such a certificate for its own.
    files = for_another_use(live, FOR_AGREEMENT_ALONE)
    files.private_key.chmod(0o600)
    for link, links in (
        ("certificate", diagnosis(hospital_config(live, files))),
        (
            "peer's certificate",
            diagnosis(live.federation.coordinator_config, "--peer", str(files.certificate_chain)),
        ),
    ):
        assert broken(links) == [link]
        assert "lacks digitalSignature" in links[link]["found"]


@pytest.mark.parametrize("case", MATRIX)
def test_the_coordinators_doctor_says_why_a_node_is_not_let_in(live: Live, case: str) -> None:
    row = MATRIX[case]
    peer = row.make(live).certificate_chain
    link, text = row.at_coordinator
    links = diagnosis(live.federation.coordinator_config, "--peer", str(peer))
    assert broken(links) == [link]
    assert text in links[link]["found"]


def test_the_doctor_notices_a_certificate_of_another_key(live: Live) -> None:
    files = live.files()
    files.private_key.write_bytes(private_key_pem(generate_private_key()))
    files.private_key.chmod(0o600)
    links = diagnosis(hospital_config(live, files))
    assert broken(links) == ["certificate"]
    assert "another key" in links["certificate"]["found"]


def test_where_nothing_is_wrong_the_doctor_finds_nothing_and_no_alarm_is_raised(
    live: Live,
) -> None:
    stranger = grpc.ssl_channel_credentials(
        live.federation.keys[KNOWN].tls.trusted_authority.read_bytes()
    )
    # A stranger without a certificate counts, and the coordinator's own probe, without one, not.
    with live.expecting(Refusal("no_certificate")):
        for config, count in (
            (live.federation.coordinator_config, 13),
            (hospital_config(live, live.federation.keys[KNOWN].tls), 15),
        ):
            links = diagnosis(config)
            assert [each["status"] for each in links.values()] == ["ok"] * count, links
        assert code_of(live, stranger, hello) is UNAVAILABLE


def test_the_doctor_does_not_make_a_hospital_present_whose_daemon_is_down(live: Live) -> None:
    links = diagnosis(hospital_config(live, live.federation.keys[ABSENT].tls, node=ABSENT))
    assert not broken(links)
    with live.federation.operator() as operator:
        seen = {each.node_id: each.last_seen for each in operator.participants()}
        assert operator.status().active_participants == len(HOSPITALS)
    assert seen[ABSENT] is None
    assert all(seen[node] for node in HOSPITALS)


def test_the_doctor_says_that_a_coordinator_shows_no_evidence(live: Live) -> None:
    config = hospital_config(live, live.federation.keys[KNOWN].tls)
    policy = live.folder / "policy.toml"
    policy.write_text("[sev_snp]\nmeasurements = []\nminimum_tcb = {}\n")
    config.write_text(f'{config.read_text()}[attestation]\npolicy = "{policy}"\n')
    links = diagnosis(config)
    assert broken(links) == ["attestation"]
    assert "not attested (MODE2)" in links["attestation"]["found"]
    # A hospital that demands evidence says nothing without it.
    assert links["coordinator's signing key"]["status"] == "skipped"


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
    # A front end for a hospital; see coordinator/test_front_ends.py.
    "matl.v1.IngestService/Receive": set(),
    "grpc.health.v1.Health/Check": BOTH,
    "grpc.health.v1.Health/Watch": BOTH,
    "grpc.health.v1.Health/List": BOTH,
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": BOTH,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": BOTH,
}
"""Every method that is served, and who may call it: written down once more, to be compared."""


def test_the_table_below_has_every_method_that_the_server_knows() -> None:
    assert {f"/{method}" for method in METHODS} == set(ROLES)


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
