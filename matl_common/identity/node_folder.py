"""Where a node keeps its keys and what it trusts, and how its keys are made.

tls.key tls.crt trusted-ca.crt      mutual TLS; next-tls.key while that key is replaced
signing.key signing.pub             DSSE envelopes
witness.key                         a participant's cosignatures of the log
coordinator-signing.pub log.vkey    what a node trusts the coordinator by
allowlist.toml log.key              the coordinator's alone
next/                               a folder like this one, while all keys are replaced
"""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from matl_common.durable import write_atomically
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.enrolling import Keys
from matl_common.identity.held_keys import load_ed25519_key, load_p256_key, refuse_shared_keys
from matl_common.identity.key_places import KeyPlace
from matl_common.identity.keys import (
    TLS_CURVES,
    generate_private_key,
    load_ed25519_private_key,
    load_private_key,
    private_key_pem,
    public_key_pem,
)
from matl_common.identity.pkcs11.certifying import TokenPrivateKey
from matl_common.identity.pkcs11.signing import P256, TokenSigningKey
from matl_common.identity.pkcs11.uri import TokenUri
from matl_common.identity.tls import TlsFiles
from matl_common.tlog.cosignature import witness_key
from matl_common.tlog.names import witness_name

PUBLIC_MODE = 0o644
PRIVATE_FOLDER_MODE = 0o700


@dataclass(frozen=True, slots=True)
class NodeFolder:
    """Where a node's files are; which of them exist depends on its role."""

    folder: Path

    @property
    def tls(self) -> TlsFiles:
        """The node's side of mutual TLS."""
        return TlsFiles(
            private_key=self.folder / "tls.key",
            certificate_chain=self.folder / "tls.crt",
            trusted_authority=self.folder / "trusted-ca.crt",
        )

    @property
    def next_tls_key(self) -> Path:
        """The private key that will replace the one in use."""
        return self.folder / "next-tls.key"

    @property
    def next(self) -> "NodeFolder":
        """The keys that will replace all of those in use."""
        return NodeFolder(self.folder / "next")

    @property
    def signing_key(self) -> Path:
        """The private key of the node's envelopes."""
        return self.folder / "signing.key"

    @property
    def signing_public_key(self) -> Path:
        """Its public part."""
        return self.folder / "signing.pub"

    @property
    def coordinator_signing_key(self) -> Path:
        """The public key of the coordinator's envelopes."""
        return self.folder / "coordinator-signing.pub"

    @property
    def allowlist(self) -> Path:
        """The enrolled nodes."""
        return self.folder / "allowlist.toml"

    @property
    def log_key(self) -> Path:
        """The private key of the log's checkpoints."""
        return self.folder / "log.key"

    @property
    def witness_key(self) -> Path:
        """The private key that a participant cosigns checkpoints with."""
        return self.folder / "witness.key"

    @property
    def log_verifier_key(self) -> Path:
        """The log's C2SP verifier key."""
        return self.folder / "log.vkey"


@dataclass(frozen=True, slots=True)
class TokenKeys:
    """Which of a coordinator's keys are in a token, where files are made of the others."""

    tls: TokenUri | None = None
    signing: TokenUri | None = None
    log: TokenUri | None = None

    def files_of(self, node: NodeFolder) -> frozenset[Path]:
        """The files that the folder does not need for that."""
        pairs = (
            (self.tls, node.tls.private_key),
            (self.signing, node.signing_key),
            (self.log, node.log_key),
        )
        return frozenset(path for uri, path in pairs if uri is not None)

    def check(self) -> None:
        """See that each key is there, and none serves two uses.

        Raises:
            ConfigurationError: one is not as configured, or does.
            TokenError: a token cannot be reached.
        """
        named = {"the TLS key": self.tls, "the signing key": self.signing}
        refuse_shared_keys({use: load_p256_key(uri) for use, uri in named.items() if uri})
        if self.log is not None:
            load_ed25519_key(self.log)


NO_TOKEN = TokenKeys()


def make_missing_keys(
    node: NodeFolder, role: Role, *, elsewhere: Collection[Path] = ()
) -> tuple[Path, ...]:
    """Make the private keys that a node of this role needs and does not have; returns them.

    Args:
        node: where.
        role: what the node takes part as.
        elsewhere: files of the folder whose keys are in a token instead.

    Raises:
        ConfigurationError: a signing key that is there is not one.
    """
    node.folder.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
    ed25519 = {Role.COORDINATOR: node.log_key, Role.PARTICIPANT: node.witness_key}.get(role)
    wanted = (node.tls.private_key, node.signing_key, ed25519)
    made = tuple(
        path for path in wanted if path is not None and path not in elsewhere and not path.exists()
    )
    for path in made:
        write_private_key(path, Ed25519PrivateKey.generate() if path == ed25519 else None)
    if node.signing_key not in elsewhere:
        public = public_key_pem(load_private_key(node.signing_key).public_key())
        write_public(node.signing_public_key, public)
    return made


def make_keys_anew(node: NodeFolder, role: Role) -> tuple[Path, ...]:
    """Make a full set of next keys, even where there is one already; returns them.

    They take the place of those in use once the certificate for them is put in place.
    """
    node.folder.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
    if node.next.folder.exists():
        shutil.rmtree(node.next.folder)
    return make_missing_keys(node.next, role)


def keys_in(node: NodeFolder, spiffe_id: SpiffeId, *, next_tls_key: bool = False) -> Keys:
    """The keys that a request of this node proves.

    Raises:
        ConfigurationError: one of them is missing, or of another kind.
    """
    witness = None
    if spiffe_id.role is Role.PARTICIPANT and node.witness_key.exists():
        private_key = load_ed25519_private_key(node.witness_key)
        name = witness_name(spiffe_id.federation, spiffe_id.node_id)
        witness = (witness_key(name, private_key.public_key()), private_key)
    tls_key = node.next_tls_key if next_tls_key else node.tls.private_key
    return Keys(
        tls=load_private_key(tls_key, curves=TLS_CURVES),
        signing=load_p256_key(node.signing_key),
        witness=witness,
    )


def keys_at(
    spiffe_id: SpiffeId, *, tls: KeyPlace, signing: KeyPlace, witness: KeyPlace | None
) -> Keys:
    """The keys that a request of this node proves, wherever they are.

    Raises:
        ConfigurationError: one of them is missing, or of another kind.
        TokenError: a token cannot be reached.
    """
    proved = None
    if witness is not None:
        held = load_ed25519_key(witness)
        name = witness_name(spiffe_id.federation, spiffe_id.node_id)
        proved = (witness_key(name, held.public_key), held)
    if isinstance(tls, TokenUri):
        tls_key: ec.EllipticCurvePrivateKey = TokenPrivateKey(TokenSigningKey(tls, P256))
    else:
        tls_key = load_private_key(tls, curves=TLS_CURVES)
    return Keys(tls=tls_key, signing=load_p256_key(signing), witness=proved)


def write_private_key(
    path: Path, key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey | None = None
) -> None:
    """Write a private key, a new P-256 one unless told otherwise, for its owner alone."""
    write_atomically(path, [private_key_pem(key or generate_private_key())])


def write_public(path: Path, content: bytes) -> None:
    """Write what others may read."""
    write_atomically(path, [content], mode=PUBLIC_MODE)
