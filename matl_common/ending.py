"""How a daemon's process ends."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Callable
from typing import Any


def run_to_the_end(program: Callable[[], Any]) -> None:
    """Run a program that ends by ``SystemExit``, and end the process with its status.

    What crashes beneath Python leaves a trace of every thread.
    """
    faulthandler.enable()
    status: int | str | None = 0
    try:
        program()
    except SystemExit as ended:
        status = ended.code
    sys.stdout.flush()
    sys.stderr.flush()
    # All is closed and durable. gRPC's threads may outlive the connections of hostile clients,
    # and crash while the interpreter takes itself apart around them.
    os._exit(status if isinstance(status, int) else int(status is not None))
