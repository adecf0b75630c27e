"""A hospital of the study as a Flower ``ClientApp``; runs in Flower's environment alone.

Apart from the program that starts it, because Ray's workers import it by name.
"""

import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.thousand.local_steps import head_round, network_round

NAMES = ("a", "b", "c", "d")
"""Of a model's arrays, in order."""

client = ClientApp()


@cache
def dealt_in(folder: str) -> dict[str, Any]:
    """The study; read once a worker process, whose pages all of them share."""
    found: dict[str, Any] = json.loads((Path(folder) / "study.json").read_text())
    for path in Path(folder).glob("*.npy"):
        # A plain array: memmap's own operations are slower.
        found[path.stem] = np.load(path, mmap_mode="r").view(np.ndarray)
    return found


@client.train()
def train(message: Message, context: Context) -> Message:
    """One hospital's round."""
    config = message.content["config"]
    dealt = dealt_in(str(config["folder"]))
    number = int(context.node_config["partition-id"])
    start = [message.content["arrays"][name].numpy() for name in NAMES[: dealt["arrays"]]]
    began = time.perf_counter()
    draws = np.random.default_rng([dealt["seed"], int(config["server-round"]), number])
    moved = _moved(dealt, number, start, draws)
    metrics = MetricRecord(
        {
            "num-examples": int(dealt["patients"][number]),
            "trained": time.perf_counter() - began,
        }
    )
    arrays = ArrayRecord({n: Array(each) for n, each in zip(NAMES, moved, strict=False)})
    return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def _moved(dealt: dict[str, Any], number: int, start: list[Any], draws: Any) -> list[Any]:
    stretch = slice(dealt["bounds"][number], dealt["bounds"][number + 1])
    own, rate, steps = dealt["members"][stretch], dealt["learning_rate"], dealt["steps"]
    if dealt["recipe"] == "network":
        batches = own[draws.integers(len(own), size=(steps, dealt["batch"]))]
        return network_round(start, dealt["values"], dealt["labels"], batches, rate=rate)
    wide = [each.astype(np.float64) for each in start]
    noise = [draws.normal(0.0, dealt["noise"], (steps, *each.shape)) for each in wide]
    inputs, labels = dealt["inputs"][stretch], dealt["labels"][own]
    patients = int(dealt["patients"][number])
    moved = head_round(wide, inputs, labels, noise, rate=rate, patients=patients)
    return [each.astype(np.float32) for each in moved]
