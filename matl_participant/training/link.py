"""A machine's end of the link between the nodes of one hospital, before anything is trained."""

import socket
from pathlib import Path
from typing import Final

from matl_common.errors import ConfigurationError

MIN_TOKEN_BYTES: Final = 32


def check_link(token: Path, interface: str) -> None:
    """Look for what this machine needs to train with others.

    Raises:
        ConfigurationError: the token is missing or short, or there is no such interface.
    """
    read_token(token)
    if interface not in {name for _, name in socket.if_nameindex()}:
        raise ConfigurationError(
            "nodes.interface names no network interface of this machine; see 'ip link'"
        )


def read_token(path: Path) -> bytes:
    """The secret that all nodes of a hospital share.

    Raises:
        ConfigurationError: it is not there, or short.
    """
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise ConfigurationError(f"cannot read nodes.token: {error.strerror}") from error
    if len(token) < MIN_TOKEN_BYTES:
        raise ConfigurationError(
            f"nodes.token has fewer than {MIN_TOKEN_BYTES} bytes; make one with "
            "'openssl rand -hex 32'"
        )
    return token
