"""A participant whose training is scripted: everything else is the real daemon.

python -m tests.system.scripted_hospital <participant.toml> <control> <direction.f32>
"""

import asyncio
import os
import sys
from pathlib import Path

from matl_common.logs import configure_logs
from matl_participant.config import load_config
from matl_participant.daemon import participate
from matl_participant.engine import Outcome

WORKER = str(Path(__file__).with_name("scripted_worker.py"))


def main() -> None:
    """Take part until the study ends or a signal comes."""
    config = load_config(Path(sys.argv[1]))
    configure_logs("json")
    os.umask(0o077)
    argv = (sys.executable, WORKER, config.node_id, *sys.argv[2:])
    outcome = asyncio.run(participate(config, worker_argv=argv))
    sys.exit(3 if outcome is Outcome.HALTED else 0)


if __name__ == "__main__":
    main()
