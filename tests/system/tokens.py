"""A coordinator's keys, moved into a token."""

from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.serialization import Encoding

from matl_common.identity.ephemeral import create_node_authority
from matl_common.identity.held_keys import KeyKind, generate_key
from matl_common.identity.keys import load_ed25519_private_key, load_private_key
from tests.softhsm import TokenFolder
from tests.system.federation import COORDINATOR, COORDINATOR_NAME, OPERATOR, Federation


def move_into_token(federation: Federation, tokens: TokenFolder) -> None:
    """Put the coordinator's signing keys into the token, and root its TLS there."""
    mine = federation.keys[COORDINATOR]
    tokens.put("hsm", "signing", load_private_key(mine.signing_key))
    tokens.put("hsm", "log", load_ed25519_private_key(mine.log_key))
    node = tokens.uri("hsm", "node")
    generate_key(node, KeyKind.P256)
    now = datetime.now(UTC)
    authority = create_node_authority(
        node, COORDINATOR_NAME, not_before=now, not_after=now + timedelta(days=90)
    ).public_bytes(Encoding.PEM)
    chain = federation.folder / "coordinator-ca.crt"
    chain.write_bytes(authority)
    for each in (*federation.hospitals, OPERATOR):
        federation.keys[each].tls.trusted_authority.write_bytes(authority)
    for path in (mine.signing_key, mine.log_key, mine.tls.private_key):
        path.unlink()
    federation.identities[COORDINATOR] = {
        "tls_key": str(node),
        "tls_certificate": str(chain),
        "signing_key": tokens.uri_text("hsm", "signing"),
        "log_key": tokens.uri_text("hsm", "log"),
    }
