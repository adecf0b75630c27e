"""The study in Flower's simulation engine; runs in Flower's environment alone.

    python -m benchmarks.thousand.flower FOLDER WORKERS

FOLDER holds what ``dealt.deal`` wrote; the last model goes there too. Plain FedAvg of every
hospital in every round, without evaluation: nobody is judged. Prints one line of JSON.
"""

import json
import logging
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import psutil
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.thousand.flower_client import client, dealt_in

server = ServerApp()
told: dict[str, object] = {}


class Timed(FedAvg):
    """FedAvg that notes when each round ends, and what hospitals spent on training itself."""

    def __init__(self, hospitals: int) -> None:
        super().__init__(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=hospitals,
            min_available_nodes=hospitals,
        )
        self.ends: list[float] = []
        self.trained: list[float] = []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As FedAvg's; a hospital that failed would make the comparison void."""
        replies = list(replies)
        for reply in replies:
            if reply.has_error():
                raise RuntimeError(f"a hospital failed: {reply.error}")
        if len(replies) != self.min_train_nodes:
            raise RuntimeError(f"{len(replies)} of {self.min_train_nodes} hospitals replied")
        self.trained.append(sum(float(each.content["metrics"]["trained"]) for each in replies))
        found = super().aggregate_train(server_round, replies)
        self.ends.append(time.time())
        return found


@server.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    folder = Path(sys.argv[1])
    dealt = dealt_in(str(folder))
    with np.load(folder / "first.npz") as first:
        arrays = ArrayRecord({name: Array(first[name]) for name in sorted(first.files)})
    strategy = Timed(dealt["hospitals"])
    began = time.time()
    found = strategy.start(
        grid=grid,
        initial_arrays=arrays,
        num_rounds=dealt["rounds"],
        train_config=ConfigRecord({"folder": str(folder)}),
        timeout=3600.0,
    )
    np.savez(folder / "last.npz", **{name: each.numpy() for name, each in found.arrays.items()})
    told.update(stamps=[began, *strategy.ends], trained_seconds=strategy.trained)


if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.ERROR)
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=json.loads((Path(sys.argv[1]) / "study.json").read_text())["hospitals"],
        # One CPU a client: as many at once as there are cores. Flower's own default is two.
        backend_config={
            "client_resources": {"num_cpus": 1},
            "init_args": {"num_cpus": int(sys.argv[2]), "log_to_driver": False},
        },
    )
    told["wall_seconds"] = time.time() - psutil.Process().create_time()
    print(json.dumps(told))
