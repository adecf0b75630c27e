"""Handshakes signed in a real token."""

import asyncio

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from matl_common.errors import ConfigurationError
from matl_common.identity.certificates import COORDINATOR_ROLES, issue_certificate
from matl_common.identity.held_keys import load_tls_key
from matl_common.identity.keys import generate_private_key, load_private_key, spki_pin
from matl_common.identity.pkcs11.uri import TokenUri
from matl_common.identity.tls import (
    TokenTls,
    channel_credentials,
    channel_options,
    load_client_identity,
    server_credentials,
)
from tests.common.test_identity_tls import (
    COORDINATOR,
    DAY,
    METHOD,
    NOW,
    TIMEOUT_SECONDS,
    Federation,
    ask,
    call,
    federation,
    serving,
    unchanged,
)
from tests.softhsm import TokenFolder

__all__ = ["federation"]

pytestmark = pytest.mark.hsm


def in_token(federation: Federation, tokens: TokenFolder) -> TokenTls:
    """The participant's TLS key, in a token."""
    files = federation.participant.tls
    tokens.put("hsm", "tls", load_private_key(files.private_key))
    uri: TokenUri = tokens.uri("hsm", "tls")
    return TokenTls(uri, files.certificate_chain, files.trusted_authority)


def test_a_handshake_signed_in_a_token_is_a_nodes_over_tls_1_3(
    federation: Federation, tokens: TokenFolder
) -> None:
    place = in_token(federation, tokens)
    answer = ask(federation, channel_credentials(place))
    assert answer == ask(federation, channel_credentials(federation.participant.tls))
    assert answer.endswith("TLSv1.3")


async def test_a_synchronous_channel_does_as_well(
    federation: Federation, tokens: TokenFolder
) -> None:
    credentials = channel_credentials(in_token(federation, tokens))

    def asked(port: int) -> bytes:
        options = channel_options(COORDINATOR)
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
            method = channel.unary_unary(METHOD, unchanged, unchanged)
            answer: bytes = method(b"", timeout=TIMEOUT_SECONDS)
            return answer

    server = server_credentials(federation.coordinator.tls)
    async with serving(server, federation.allowlist) as port:
        assert (await asyncio.to_thread(asked, port)).endswith(b"TLSv1.3")


async def test_a_token_that_is_away_fails_the_handshake_and_the_next_works(
    federation: Federation, tokens: TokenFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    credentials = channel_credentials(in_token(federation, tokens))
    server = server_credentials(federation.coordinator.tls)
    async with serving(server, federation.allowlist) as port:
        with tokens.taken_away():
            tokens.restart()
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call(port, credentials)
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "tls_key_failed" in capsys.readouterr().out
        assert (await call(port, credentials)).endswith("TLSv1.3")


def test_a_certificate_of_another_key_is_refused_before_any_handshake(
    federation: Federation, tokens: TokenFolder
) -> None:
    place = in_token(federation, tokens)
    other = TokenTls(
        place.private_key, federation.coordinator.tls.certificate_chain, place.trusted_authority
    )
    with pytest.raises(ConfigurationError, match="does not begin with the certificate"):
        channel_credentials(other)
    held = load_tls_key(place.private_key).keyid
    assert spki_pin(load_client_identity(place).certificate) == held


def test_with_a_key_in_a_token_too_one_servers_certificate_can_be_the_only_one(
    federation: Federation, tokens: TokenFolder
) -> None:
    identity = load_client_identity(in_token(federation, tokens))
    served = federation.coordinator.tls.certificate_chain.read_bytes()
    assert ask(federation, identity.credentials(only=served)).endswith("TLSv1.3")
    key = generate_private_key().public_key()
    namesake = issue_certificate(
        federation.authority("coordinator", COORDINATOR_ROLES),
        key,
        COORDINATOR,
        not_before=NOW - DAY,
        not_after=NOW + DAY,
    ).public_bytes(Encoding.PEM)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        ask(federation, identity.credentials(only=namesake))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
