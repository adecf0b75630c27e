"""A server whose TLS keys are in memory and certified, for a day, by a key in a real token."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from matl_common.errors import ConfigurationError
from matl_common.identity.certificates import (
    COORDINATOR_ROLES,
    Role,
    SpiffeId,
    create_authority,
    issue_certificate,
)
from matl_common.identity.ephemeral import LEAF_VALIDITY, LeafIssuer, create_node_authority
from matl_common.identity.held_keys import KeyKind, generate_key, load_tls_key
from matl_common.identity.keys import generate_private_key, spki_pin
from matl_common.identity.pkcs11.session import TokenError
from matl_common.identity.tls import (
    ServerIdentity,
    TlsFiles,
    TokenTls,
    channel_credentials,
)
from matl_common.ids import NodeId
from tests.common.test_identity_tls import (
    COORDINATOR,
    NOW,
    Federation,
    call,
    federation,
    serving,
    unchanged,
)
from tests.softhsm import TokenFolder

__all__ = ["federation"]

pytestmark = pytest.mark.hsm


@dataclass
class Clock:
    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def place(federation: Federation, tokens: TokenFolder, tmp_path: Path) -> TokenTls:
    uri = tokens.uri("hsm", "node")
    generate_key(uri, KeyKind.P256)
    certificate = create_node_authority(
        uri, COORDINATOR, not_before=NOW - timedelta(days=1), not_after=NOW + timedelta(days=90)
    )
    chain = tmp_path / "coordinator-ca.crt"
    chain.write_bytes(certificate.public_bytes(Encoding.PEM))
    return TokenTls(uri, chain, federation.coordinator.tls.trusted_authority)


def of_participant(federation: Federation, place: TokenTls) -> grpc.ChannelCredentials:
    mine = federation.participant.tls
    return channel_credentials(
        TlsFiles(mine.private_key, mine.certificate_chain, place.certificate_chain)
    )


async def test_a_participant_that_trusts_the_tokens_key_alone_meets_its_coordinator(
    federation: Federation, place: TokenTls
) -> None:
    clock = Clock(NOW - LEAF_VALIDITY / 2)
    identity = ServerIdentity(place, clock=clock)
    async with serving(identity.credentials, federation.allowlist) as port:
        assert (await call(port, of_participant(federation, place))).endswith("TLSv1.3")
        # Another leaf takes over while it serves.
        clock.now += LEAF_VALIDITY / 2
        assert identity.renew()
        assert (await call(port, of_participant(federation, place))).endswith("TLSv1.3")
        # The authority of before certifies no such coordinator.
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(port, channel_credentials(federation.participant.tls))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert unchanged(b"") == b""


def test_a_leaf_is_for_a_day_and_another_key_follows_at_half_of_it(place: TokenTls) -> None:
    clock = Clock()
    identity = ServerIdentity(place, clock=clock)
    first = identity.certificate
    assert first.not_valid_after_utc == (NOW + LEAF_VALIDITY).replace(microsecond=0)
    assert spki_pin(first) != load_tls_key(place.private_key).keyid
    assert spki_pin(identity.lasting) == load_tls_key(place.private_key).keyid
    assert identity.holder.startswith("HSM-rooted, ephemeral TLS key: PKCS#11 token 'hsm'")
    clock.now += LEAF_VALIDITY / 2 - timedelta(minutes=10)
    assert not identity.renew()
    assert identity.certificate == first
    clock.now += timedelta(minutes=10)
    assert identity.renew()
    assert spki_pin(identity.certificate) != spki_pin(first)
    assert identity.certificate.not_valid_after_utc > first.not_valid_after_utc


def test_while_the_token_is_away_the_last_leaf_stays(place: TokenTls, tokens: TokenFolder) -> None:
    clock = Clock()
    identity = ServerIdentity(place, clock=clock)
    first = identity.certificate
    clock.now += LEAF_VALIDITY * 0.75
    with tokens.taken_away():
        tokens.restart()
        with pytest.raises(TokenError):
            identity.renew()
        assert identity.certificate == first
    assert identity.renew()


def test_no_leaf_outlives_its_authority(place: TokenTls) -> None:
    clock = Clock(NOW + timedelta(days=89, hours=12))
    identity = ServerIdentity(place, clock=clock)
    assert identity.certificate.not_valid_after_utc == identity.lasting.not_valid_after_utc
    clock.now += timedelta(days=1)
    with pytest.raises(ConfigurationError, match="expired"):
        identity.renew()


def some_certificates(place: TokenTls) -> dict[str, x509.Certificate]:
    """What must not be taken for a coordinator's authority."""
    later = NOW + timedelta(days=1)
    other = create_authority("other", roles=COORDINATOR_ROLES, not_before=NOW, not_after=later)
    key = generate_private_key().public_key()
    leaf = issue_certificate(other, key, COORDINATOR, not_before=NOW, not_after=later)
    private_key = generate_private_key()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "coordinator")])
    uri = x509.UniformResourceIdentifier(str(COORDINATOR))
    wide = (
        x509.CertificateBuilder(name, name, private_key.public_key(), 1, NOW, later)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .sign(private_key, SHA256())
    )
    return {
        "an authority of nobody": other.certificate,
        "a node's own": leaf,
        "one that may certify authorities": wide,
    }


@pytest.mark.parametrize(
    "kind", ["an authority of nobody", "a node's own", "one that may certify authorities"]
)
def test_only_an_authority_for_this_coordinator_serves(place: TokenTls, kind: str) -> None:
    certificate = some_certificates(place)[kind]
    place.certificate_chain.write_bytes(certificate.public_bytes(Encoding.PEM))
    with pytest.raises(ConfigurationError, match="authority for that coordinator alone"):
        ServerIdentity(place, clock=Clock())


def test_an_authority_of_another_key_is_refused(place: TokenTls, tokens: TokenFolder) -> None:
    other = tokens.uri("hsm", "other")
    generate_key(other, KeyKind.P256)
    authority = x509.load_pem_x509_certificate(place.certificate_chain.read_bytes())
    with pytest.raises(ConfigurationError, match="certifies another key"):
        LeafIssuer(other).leaf(authority, now=NOW)


def test_a_hospital_gets_no_authority(place: TokenTls) -> None:
    hospital = SpiffeId(COORDINATOR.federation, Role.PARTICIPANT, NodeId("hospital_b"))
    with pytest.raises(ConfigurationError, match="is no coordinator"):
        create_node_authority(place.private_key, hospital, not_before=NOW, not_after=NOW)
