"""What a coordinator's configuration names: its keys, its allow-list, its policy for machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import structlog

from matl_common.attestation.policy import Policy as MachinePolicy
from matl_common.attestation.policy import load_policy
from matl_common.errors import ConfigurationError
from matl_common.identity.allowlist import Allowlist, load_allowlist
from matl_common.identity.held_keys import P256Key, load_p256_key, load_tls_key, refuse_shared_keys
from matl_common.identity.key_places import load_wrapping_key
from matl_common.identity.tls import ServerIdentity
from matl_common.identity.wrapping import KeyEncryptionKey, create_key_file
from matl_common.tlog.policy import Policy
from matl_coordinator.config import Config
from matl_coordinator.log_identity import configured_policy, load_log_signer
from matl_coordinator.preflight import check_hospitals, check_paths
from matl_coordinator.roster import Roster
from matl_coordinator.service.checkpoints import LogSigner

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """Read from files and tokens at once, and found to fit each other."""

    allowlist: Allowlist
    roster: Roster
    signer: P256Key
    log: LogSigner
    witnesses: Policy
    tls: ServerIdentity
    tls_key: P256Key
    policy: MachinePolicy | None

    @classmethod
    def read(cls, config: Config) -> Held:
        """Read all of it; nothing is opened yet.

        Raises:
            ConfigurationError, InvalidInputError: a file is missing or does not fit.
            TokenError: a key's token cannot be reached.
        """
        allowlist = load_allowlist(config.federation.allowlist)
        signer = load_p256_key(config.identity.signing_key)
        log_signer = load_log_signer(config, allowlist)
        is_genuine = config.attestation is not None and config.attestation.is_genuine
        tls = ServerIdentity(config.identity.tls, only_in_memory=is_genuine)
        tls_key = load_tls_key(config.identity.tls_key)
        refuse_shared_keys({"identity.tls_key": tls_key, "identity.signing_key": signer})
        check_paths(config)
        check_hospitals(config, allowlist)
        if allowlist.federation != config.federation.id:
            raise ConfigurationError(
                f"the allow-list is for federation {allowlist.federation}, "
                f"the configuration for {config.federation.id}"
            )
        return cls(
            allowlist=allowlist,
            roster=Roster(allowlist),
            signer=signer,
            log=log_signer,
            witnesses=configured_policy(config, allowlist, log_signer),
            tls=tls,
            tls_key=tls_key,
            policy=None if config.attestation is None else load_policy(config.attestation.policy),
        )

    def show(self) -> None:
        """Say of every key where it is held, and what that is worth."""
        for use, key, holder in (
            ("tls_key", self.tls_key, self.tls.holder),
            ("signing_key", self.signer, self.signer.holder),
            ("log_key", self.log.signer, self.log.signer.holder),
        ):
            log.info("key", use=use, key=key.keyid, holder=holder)
            for weakness in key.weaknesses:
                log.warning("key_weaker", use=use, reason=weakness)


def wrapping_key_of(config: Config) -> KeyEncryptionKey:
    """The log's encryption key, which the first start makes where none is configured."""
    place = config.log_encryption_key
    if isinstance(place, Path) and not place.exists() and not config.log.encryption_key:
        create_key_file(place)
        log.warning(
            "log_encryption_key_made",
            path=str(place),
            reason="software-held; back it up apart from the database: without it nobody can "
            "read the log's entries",
        )
    key = load_wrapping_key(place)
    log.info("log_encryption_key", key=key.name, holder=key.holder)
    for weakness in key.weaknesses:
        log.warning("log_weaker", reason=weakness)
    return key
