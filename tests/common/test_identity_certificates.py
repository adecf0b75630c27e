"""Keys, certificates and what is read back from them."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.certificates import (
    COORDINATOR_ROLES,
    PARTICIPANT_ROLES,
    CertificateAuthority,
    Role,
    SpiffeId,
    create_authority,
    issue_certificate,
    parse_peer_certificate,
    parse_spiffe_id,
)
from matl_common.identity.keys import (
    generate_private_key,
    load_private_key,
    parse_public_key,
    permission_warning,
    private_key_pem,
    public_key_pem,
    spki_pin,
)
from matl_common.ids import FederationId, NodeId
from matl_common.signing import keyid_of

pytestmark = pytest.mark.certificates

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=30)
FEDERATION = FederationId("dr-study")
KEY = generate_private_key()


def authority(roles: frozenset[Role]) -> CertificateAuthority:
    return create_authority("test", roles=roles, not_before=NOW, not_after=LATER)


PARTICIPANTS = authority(PARTICIPANT_ROLES)
COORDINATORS = authority(COORDINATOR_ROLES)


def named(role: Role, node_id: str = "hospital_a") -> SpiffeId:
    return SpiffeId(FEDERATION, role, NodeId(node_id))


def pem_with(*names: x509.GeneralName, is_authority: bool | None = False) -> bytes:
    """A certificate as somebody else's authority might issue it; None says nothing of it."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hospital_a")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(KEY.public_key())
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(LATER)
    )
    if is_authority is not None:
        constraints = x509.BasicConstraints(ca=is_authority, path_length=None)
        builder = builder.add_extension(constraints, critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize("role", sorted(PARTICIPANT_ROLES))
def test_a_peers_certificate_is_read_back_as_it_was_issued(role: Role) -> None:
    issued = issue_certificate(
        PARTICIPANTS, KEY.public_key(), named(role), not_before=NOW, not_after=LATER
    )
    peer = parse_peer_certificate(issued.public_bytes(Encoding.PEM))
    assert peer.spiffe_id == named(role)
    assert (peer.role, peer.node_id) == (role, "hospital_a")
    assert peer.pin == spki_pin(KEY) == spki_pin(issued) == keyid_of(KEY.public_key())
    assert (peer.serial, peer.not_after) == (issued.serial_number, LATER)
    usage = issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_coordinators_certificate_serves_under_its_names() -> None:
    issued = issue_certificate(
        COORDINATORS,
        KEY.public_key(),
        named(Role.COORDINATOR),
        not_before=NOW,
        not_after=LATER,
        server_names=["localhost", "::1"],
    )
    names = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [
        "hospital-a.dr-study.matl.internal",
        "localhost",
    ]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["::1"]
    usage = issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("issuer", "role"),
    [
        (PARTICIPANTS, Role.COORDINATOR),
        (COORDINATORS, Role.PARTICIPANT),
        (COORDINATORS, Role.OPERATOR),
    ],
)
def test_an_authority_certifies_no_role_of_the_other_hierarchy(
    issuer: CertificateAuthority, role: Role
) -> None:
    with pytest.raises(ConfigurationError, match="separate authorities"):
        issue_certificate(issuer, KEY.public_key(), named(role), not_before=NOW, not_after=LATER)


def test_a_client_gets_no_server_names() -> None:
    with pytest.raises(ConfigurationError, match="does not serve"):
        issue_certificate(
            PARTICIPANTS,
            KEY.public_key(),
            named(Role.PARTICIPANT),
            not_before=NOW,
            not_after=LATER,
            server_names=["localhost"],
        )


@pytest.mark.hostile
@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://dr-study/participant",
        "spiffe://dr-study/participant/a/b",
        "spiffe://dr-study/admin/a",
        "spiffe://DR/participant/a",
        "spiffe://dr-study/participant/A",
        "https://dr-study/participant/a",
        "spiffe://dr-study/participant/a\n",
    ],
)
def test_a_uri_that_names_no_node_is_refused(uri: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_spiffe_id(uri)


def test_a_spiffe_id_is_read_back_as_it_is_written() -> None:
    spiffe_id = named(Role.OPERATOR)
    assert str(spiffe_id) == "spiffe://dr-study/operator/hospital_a"
    assert parse_spiffe_id(str(spiffe_id)) == spiffe_id


URI = x509.UniformResourceIdentifier("spiffe://dr-study/participant/hospital_a")
OTHER_URI = x509.UniformResourceIdentifier("spiffe://dr-study/participant/hospital_b")


def test_the_uri_alone_names_a_node() -> None:
    peer = parse_peer_certificate(pem_with(URI, x509.DNSName("hospital_b")))
    assert peer.node_id == "hospital_a"


def test_a_certificate_without_basic_constraints_is_no_authoritys() -> None:
    peer = parse_peer_certificate(pem_with(URI, is_authority=None))
    assert peer.node_id == "hospital_a"


@pytest.mark.hostile
@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        pem_with(),
        pem_with(is_authority=None),
        pem_with(x509.DNSName("hospital_a")),
        pem_with(URI, OTHER_URI),
        pem_with(x509.UniformResourceIdentifier("spiffe://dr-study/root/hospital_a")),
        pem_with(URI, is_authority=True),
    ],
)
def test_a_certificate_that_names_no_node_is_refused(pem: bytes) -> None:
    with pytest.raises(InvalidInputError):
        parse_peer_certificate(pem)


@pytest.mark.hostile
def test_an_oversized_certificate_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(InvalidInputError, match="exceeds"):
        parse_peer_certificate(pem_with(URI) + b" " * 20_000)


@pytest.mark.hostile
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_a_certificate_with_any_bit_flipped_is_read_or_refused_as_invalid_input() -> None:
    der = ssl.PEM_cert_to_DER_cert(pem_with(URI).decode())
    refused = 0
    for bit in range(8 * len(der)):
        flipped = bytearray(der)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            # TLS has verified the signature, before a name is read.
            parse_peer_certificate(ssl.DER_cert_to_PEM_cert(bytes(flipped)).encode())
        except InvalidInputError:
            refused += 1
    assert refused > 1000


@pytest.mark.hostile
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_as_invalid_input(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        parse_peer_certificate(data)
    with pytest.raises(InvalidInputError):
        parse_public_key(data)


def test_keys_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(private_key_pem(KEY))
    assert spki_pin(load_private_key(path)) == spki_pin(KEY)
    assert parse_public_key(public_key_pem(KEY.public_key())) == KEY.public_key()


def test_keys_on_other_curves_are_refused(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    path = tmp_path / "key"
    path.write_bytes(private_key_pem(key))
    with pytest.raises(ConfigurationError, match="P-256"):
        load_private_key(path)
    with pytest.raises(InvalidInputError, match="P-256"):
        parse_public_key(public_key_pem(key.public_key()))


def test_a_missing_key_file_says_what_to_check(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="check the path"):
        load_private_key(tmp_path / "absent")


def test_loose_permissions_are_named_with_their_remedy(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch()
    path.chmod(0o600)
    assert permission_warning(path) is None
    for mode in (0o640, 0o604, 0o610):
        path.chmod(mode)
        assert "chmod 600" in str(permission_warning(path))
