"""Keys of an embedded federation: made in a folder at first use, and whom they enrol.

All lie side by side, which no real federation may do. Nothing here signs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from matl.sdk.terms import COORDINATOR, FEDERATION
from matl_common.identity.allowlist import AllowedNode, Allowlist, enrol
from matl_common.identity.certificates import Role
from matl_common.identity.held_keys import (
    Ed25519Key,
    KeyKind,
    P256Key,
    generate_key,
    load_ed25519_key,
    load_p256_key,
)
from matl_common.ids import FederationId, NodeId


@dataclass(frozen=True, slots=True)
class Keys:
    """The private keys of an embedded federation, all in one folder, as no real one's may be."""

    coordinator: P256Key
    log: Ed25519Key
    hospitals: Mapping[NodeId, P256Key]

    @classmethod
    def in_folder(
        cls, folder: Path, hospitals: Iterable[NodeId], *, given: Mapping[NodeId, Path]
    ) -> Keys:
        """Read the keys, and make those that are missing and were not ``given``.

        Raises:
            ConfigurationError: a given key is not there or is of another kind.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

        def p256(node: NodeId) -> P256Key:
            path = given.get(node, folder / f"{node}.pem")
            if node not in given and not path.exists():
                generate_key(path, KeyKind.P256)
            return load_p256_key(path)

        log_path = folder / "log.pem"
        if not log_path.exists():
            generate_key(log_path, KeyKind.ED25519)
        return cls(
            p256(COORDINATOR), load_ed25519_key(log_path), {node: p256(node) for node in hospitals}
        )

    def enrolled(self, patients: Mapping[NodeId, int]) -> Allowlist:
        """The allow-list of these hospitals, each with its patients.

        Raises:
            InvalidInputError: two of them have one key.
        """
        nodes = (
            AllowedNode(
                node_id=node,
                role=Role.PARTICIPANT,
                # There is no TLS in one process, and so no certificate to pin.
                pins=frozenset(),
                signing_key=self.hospitals[node].public_key,
                enrolled_patients=count,
            )
            for node, count in patients.items()
        )
        return enrol(FederationId(FEDERATION), nodes)
