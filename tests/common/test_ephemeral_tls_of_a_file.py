"""A server whose TLS keys are in memory alone, certified by an authority whose key is a file."""

from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from matl_common.errors import ConfigurationError
from matl_common.identity.ephemeral import LEAF_VALIDITY, create_node_authority
from matl_common.identity.held_keys import KeyKind, generate_key
from matl_common.identity.keys import load_private_key, private_key_pem, spki_pin
from matl_common.identity.tls import ServerIdentity, TlsFiles, channel_credentials
from matl_common.identity.wrapping import SOFTWARE_HELD
from tests.common.test_ephemeral_tls import Clock
from tests.common.test_identity_tls import (
    COORDINATOR,
    NOW,
    Federation,
    call,
    federation,
    serving,
)

__all__ = ["federation"]

pytestmark = pytest.mark.certificates


def authority_in(folder: Path, federation: Federation) -> TlsFiles:
    """A coordinator's own authority, made anew with another key where there is one."""
    files = TlsFiles(
        folder / "node.key", folder / "node.crt", federation.coordinator.tls.trusted_authority
    )
    files.private_key.unlink(missing_ok=True)
    generate_key(files.private_key, KeyKind.P256)
    certificate = create_node_authority(
        files.private_key,
        COORDINATOR,
        not_before=NOW - timedelta(days=1),
        not_after=NOW + timedelta(days=90),
    )
    files.certificate_chain.write_bytes(certificate.public_bytes(Encoding.PEM))
    return files


@pytest.fixture
def files(federation: Federation, tmp_path: Path) -> TlsFiles:
    return authority_in(tmp_path, federation)


def keys_below(folder: Path) -> set[str]:
    """The pins of all private keys in files."""
    pins = set()
    for path in folder.rglob("*"):
        with suppress(ConfigurationError):
            pins.add(spki_pin(load_private_key(path)))
    return pins


async def test_a_participant_that_trusts_the_authority_meets_a_key_that_is_in_no_file(
    federation: Federation, files: TlsFiles, tmp_path: Path
) -> None:
    identity = ServerIdentity(files, only_in_memory=True)
    mine = federation.participant.tls
    trusting = TlsFiles(mine.private_key, mine.certificate_chain, files.certificate_chain)
    async with serving(identity.credentials, federation.allowlist) as port:
        assert (await call(port, channel_credentials(trusting))).endswith("TLSv1.3")
    kept = keys_below(tmp_path)
    assert spki_pin(identity.lasting) in kept
    assert spki_pin(identity.certificate) not in kept | keys_below(federation.folder)
    assert identity.holder == f"ephemeral TLS key of an authority in a file: {SOFTWARE_HELD}"


def test_a_process_that_starts_again_has_another_key(files: TlsFiles) -> None:
    first, second = (ServerIdentity(files, only_in_memory=True) for _ in range(2))
    assert spki_pin(first.certificate) != spki_pin(second.certificate)
    assert first.lasting == second.lasting


def test_another_key_follows_at_half_of_the_day_and_a_new_authority_at_once(
    federation: Federation, files: TlsFiles, tmp_path: Path
) -> None:
    clock = Clock()
    identity = ServerIdentity(files, clock=clock, only_in_memory=True)
    first, authority = identity.certificate, identity.lasting
    assert not identity.renew()
    clock.now += LEAF_VALIDITY / 2
    assert identity.renew()
    assert spki_pin(identity.certificate) != spki_pin(first)
    assert identity.lasting == authority
    authority_in(tmp_path, federation)
    assert identity.renew()
    assert identity.lasting != authority
    identity.certificate.verify_directly_issued_by(identity.lasting)


def test_an_authoritys_certificate_beside_another_key_is_refused(
    files: TlsFiles, federation: Federation
) -> None:
    other = load_private_key(federation.coordinator.tls.private_key)
    files.private_key.write_bytes(private_key_pem(other))
    with pytest.raises(ConfigurationError, match="certifies another key"):
        ServerIdentity(files)


def test_where_the_key_must_be_in_memory_one_in_a_file_is_refused_at_start_and_later(
    federation: Federation, files: TlsFiles
) -> None:
    mine = federation.coordinator.tls
    with pytest.raises(ConfigurationError, match="is a TLS key in a file"):
        ServerIdentity(mine, only_in_memory=True)
    assert ServerIdentity(mine).holder == SOFTWARE_HELD
    identity = ServerIdentity(files, only_in_memory=True)
    before = identity.certificate
    for old, new in (
        (files.private_key, mine.private_key),
        (files.certificate_chain, mine.certificate_chain),
    ):
        old.write_bytes(new.read_bytes())
    with pytest.raises(ConfigurationError, match="is a TLS key in a file"):
        identity.renew()
    assert identity.certificate == before
