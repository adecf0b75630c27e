"""Training that costs next to nothing: an update of random numbers as large as the model.

    python -m benchmarks.rounds.stand_in <node>

Speaks the training worker's protocol. One block of numbers is drawn; an update is that block
begun elsewhere, so that no two updates are alike and none costs more than to write it.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from matl_common.errors import InvalidInputError
from matl_common.ids import digest_of
from matl_common.tensors import read_schema
from matl_common.worker import Message, ReportProgress, WorkerProcess, serve

STEP: Final = 1e-3
"""Spread of an update's values."""
DRIFT: Final = 5e-4
"""What the values of all hospitals have in common."""
_SEED: Final = 7

Handle = Callable[[Message, ReportProgress], Message]


class StandIn:
    """Answers a training worker's requests for any number of hospitals; keeps one block."""

    def __init__(self) -> None:
        self._block: NDArray[np.float32] = np.empty(0, dtype="<f4")

    def answer(self, node: str, request: Message) -> Message:
        """Answer ``prepare`` or ``train`` of one hospital."""
        if request["job"] == "prepare":
            return {
                "patients": 16,
                "images": 16,
                "skipped": 0,
                "skipped_rows": [],
                "dataset_digest": digest_of(node.encode()),
            }
        out = Path(request["out_path"])
        elements = read_schema(Path(request["model_path"])).update_elements
        block = self._numbers(elements)
        begin = int(digest_of(f"{node} {_round_of(out)}".encode())[:12], 16) % elements
        with out.open("wb") as file:
            file.write(block[begin:].data)
            file.write(block[:begin].data)
        return {"bytes": out.stat().st_size}

    def _numbers(self, elements: int) -> NDArray[np.float32]:
        if self._block.size != elements:
            draws = np.random.default_rng(_SEED)
            block = draws.standard_normal(elements, dtype=np.float32)
            block *= STEP
            block += DRIFT
            self._block = block.astype("<f4", copy=False)
        return self._block


class StandInProcess(WorkerProcess):
    """The same without a process of its own, for hundreds of hospitals in one."""

    def __init__(self, node: str, stand_in: StandIn) -> None:
        """Answer as ``node``."""
        super().__init__(("true",))
        self._node = node
        self._stand_in = stand_in

    async def run(
        self,
        request: Message,
        *,
        timeout_seconds: float,
        on_progress: ReportProgress | None = None,
    ) -> Message:
        """Answer at once."""
        return self._stand_in.answer(self._node, request)


def _round_of(out: Path) -> int:
    found = re.search(r"round-(\d+)", out.name)
    if found is None:
        raise InvalidInputError("the output file does not name its round")
    return int(found[1])


def main() -> None:
    """Answer requests on standard input."""
    node, stand_in = sys.argv[1], StandIn()
    serve(lambda request, _: stand_in.answer(node, request))


if __name__ == "__main__":
    main()
