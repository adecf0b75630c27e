"""The study by our engines, one run a process, for its wall time.

    python -m benchmarks.thousand.ours STUDY.toml HOSPITALS ROUNDS ARM ENGINE WORKERS

Does what ``matl simulate`` does but for the table and the plot, and prints one line of JSON.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.thousand.sized import sized
from matl.simulation.campaign import Ended, Impossible, Job, carry_out
from matl.simulation.datasets import Float32Array
from matl.simulation.learners import Learner, LocalUpdates
from matl.simulation.outcome import Outcome
from matl.simulation.parts import in_blocks
from matl.simulation.study import ArmName
from matl_common.errors import ConfigurationError


def main(study: str, hospitals: str, rounds: str, arm: str, *where: str) -> None:
    """One run."""
    engine, workers = where
    job = sized(Path(study), hospitals=int(hospitals), rounds=int(rounds), arm=ArmName(arm))
    stamps: list[float] = []
    trained: list[float] = []
    found: list[Outcome] = []

    def stamped(
        learner: Learner, base: Float32Array, round_number: int, whose: Sequence[int]
    ) -> LocalUpdates:
        stamps.append(time.time())
        updates = in_blocks(learner, base, round_number, whose)
        trained.append(time.time() - stamps[-1])
        return updates

    if engine == "local":
        found = carry_out(job, trainer=stamped)
    else:
        from matl.simulation.ray_engine import RayEngine

        def done(_: Job, outcomes: Ended) -> None:
            if isinstance(outcomes, Impossible):
                raise ConfigurationError(outcomes.reason)
            found.extend(outcomes)

        RayEngine(processes=int(workers)).run(
            [job],
            done=done,
            told=lambda *_: stamps.append(time.time()),
        )
    told = {
        "stamps": stamps,
        "trained_seconds": trained,
        "accuracy": found[0].accuracy,
        "wall_seconds": time.time() - psutil.Process().create_time(),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
