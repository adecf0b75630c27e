"""The coordinator daemon, whose study begins with a model of any size.

    python -m benchmarks.rounds.coordinator <coordinator.toml> <tensors.json>

Everything else is the daemon's: only the network that the plan names is not the one the model's
tensors belong to, which nobody who does not train will notice.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from matl_common.descriptors import raise_descriptor_limit
from matl_common.logs import configure_logs
from matl_common.memory import bound_memory
from matl_common.tensors import MODEL_SUFFIX, TensorSpec, parse_schema, store_model
from matl_common.worker import WorkerProcess
from matl_coordinator.config import Config, load_config
from matl_coordinator.coordinator import Coordinator, StoppedError
from matl_coordinator.daemon import OPEN_DESCRIPTORS
from matl_coordinator.ports import InitialModel
from matl_coordinator.scoring.client import WorkerScorer
from matl_coordinator.store.models import FileModelStore

_SEED: Final = 11

Tensors = Mapping[str, Sequence[int]]


class FirstModel(WorkerScorer):
    """Begins a study with given tensors of random numbers; has no holdout set to score on."""

    def __init__(self, config: Config, models: FileModelStore, tensors: Tensors) -> None:
        """Start no process."""
        super().__init__(WorkerProcess(("true",)), config=config, model_path=models.path)
        self._tensors = tensors

    async def initial_model(self, folder: Path) -> InitialModel:
        """Write the model."""
        schema = parse_schema(
            TensorSpec(name, tuple(shape)) for name, shape in self._tensors.items()
        )
        draws = np.random.default_rng(_SEED)
        blocks = (
            draws.standard_normal(spec.elements, dtype=np.float32).data for spec in schema.tensors
        )
        digest = store_model(folder, schema, blocks)
        return InitialModel(folder / f"{digest}{MODEL_SUFFIX}", None)


class BenchmarkCoordinator(Coordinator):
    """The daemon's parts but for where the first model comes from."""

    def __init__(self, config: Config, tensors: Tensors) -> None:
        """As the daemon's."""
        super().__init__(config)
        self._tensors = tensors

    def _scorer(self, models: FileModelStore) -> WorkerScorer:
        return FirstModel(self._config, models, self._tensors)


async def _run(coordinator: Coordinator) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, coordinator.stop)
    with suppress(StoppedError):
        await coordinator.run()


def main() -> None:
    """Serve until SIGTERM."""
    config = load_config(Path(sys.argv[1]))
    tensors: Tensors = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    bound_memory()
    configure_logs("json")
    raise_descriptor_limit(OPEN_DESCRIPTORS)
    asyncio.run(_run(BenchmarkCoordinator(config, tensors)))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
