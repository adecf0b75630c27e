"""A participant whose training is scripted: everything else is the real daemon.

python -m tests.system.scripted_hospital <participant.toml> <control> <direction.f32>
"""

import sys
from pathlib import Path

from matl_participant.config import load_config
from matl_participant.daemon import serve

WORKER = str(Path(__file__).with_name("scripted_worker.py"))


def main() -> None:
    """Take part until the study ends or a signal comes."""
    config = load_config(Path(sys.argv[1]))
    argv = (sys.executable, WORKER, config.node_id, *sys.argv[2:])
    sys.exit(serve(config, worker_argv=argv))


if __name__ == "__main__":
    main()
