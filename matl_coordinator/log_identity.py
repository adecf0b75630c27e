"""Which log a coordinator is of: its name and the key that signs it, found in one way."""

from __future__ import annotations

from matl_common.identity.allowlist import Allowlist, load_allowlist
from matl_common.identity.held_keys import load_ed25519_key
from matl_common.tlog.checkpoint import log_key
from matl_common.tlog.names import log_origin
from matl_common.tlog.policy import Policy
from matl_coordinator.config import Config
from matl_coordinator.service.checkpoints import LogSigner, witness_policy


def configured_origin(config: Config) -> str:
    """The log's name, for whoever needs nothing of the key that signs it.

    Raises:
        ConfigurationError: the allow-list is missing or unreadable.
        InvalidInputError: it is none.
    """
    return log_origin(load_allowlist(config.federation.allowlist).federation)


def load_log_signer(config: Config, allowlist: Allowlist) -> LogSigner:
    """The log's key; its name is the log's origin.

    Raises:
        ConfigurationError: the key is not there, or of another type.
        TokenError: its token cannot be reached.
    """
    key = load_ed25519_key(config.identity.log_key)
    return LogSigner(log_key(log_origin(allowlist.federation), key.public_key), key)


def configured_policy(config: Config, allowlist: Allowlist, log: LogSigner) -> Policy:
    """Whose cosignatures on this log count, and how many are enough."""
    return witness_policy(allowlist, log.key, f=config.rounds.byzantine)
