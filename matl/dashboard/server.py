"""Serves the page with Streamlit, on loopback, in this process."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

from matl.dashboard.desk import Desk, share
from matl_common.errors import ConfigurationError

HOST: Final = "127.0.0.1"
_PAGE: Final = Path(__file__).with_name("page.py")
_OPTIONS: Final = {
    "browser.gatherUsageStats": False,
    "client.showErrorDetails": "none",
    "client.toolbarMode": "minimal",
    "global.developmentMode": False,
    "server.address": HOST,
    "server.enableStaticServing": False,
    "server.fileWatcherType": "none",
    "server.headless": True,
    "server.maxUploadSize": 1,
    "theme.base": "light",
    "theme.primaryColor": "#1f5fbf",
}


def serve_page(desk: Desk, *, port: int) -> None:
    """Serve until a signal ends it.

    Raises:
        ConfigurationError: Streamlit is not installed.
    """
    try:
        from streamlit.web import bootstrap
    except ImportError as error:
        raise ConfigurationError(
            "the page needs the extra 'dashboard': pip install 'matl[dashboard]'; --watch needs "
            "nothing more"
        ) from error
    share(desk)
    options = {**_OPTIONS, "server.port": port}
    bootstrap.load_config_options(options)
    bootstrap.run(str(_PAGE), False, [], options)


def free_port() -> int:
    """A port of the loopback interface on which nobody listens now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port
