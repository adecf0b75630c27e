"""An honest hospital whose training is scripted: everything else is the real daemon.

python -m tests.attacks.loyal <participant.toml> <worker argument>...
"""

import asyncio
import os
import sys
from pathlib import Path

from matl_common.logs import configure_logs
from matl_participant.config import load_config
from matl_participant.daemon import participate
from matl_participant.engine import Outcome


def main() -> None:
    """Take part until the study ends or a signal comes."""
    config = load_config(Path(sys.argv[1]))
    configure_logs("json")
    os.umask(0o077)
    outcome = asyncio.run(participate(config, worker_argv=(sys.executable, *sys.argv[2:])))
    sys.exit(3 if outcome is Outcome.HALTED else 0)


if __name__ == "__main__":
    main()
