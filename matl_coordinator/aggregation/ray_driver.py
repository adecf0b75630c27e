"""The process that speaks with a Ray cluster: passes in, what their tasks came to out.

    python -m matl_coordinator.aggregation.ray_driver <descriptor of a pipe>

Started by ``RayExecutor`` and nobody else. What comes through the pipe is pickled by the
process that started this one, and what comes from the cluster by workers that the operator
put there; nothing of a hospital is unpickled by either. Ends when the pipe does.
"""

from __future__ import annotations

import sys
from collections import deque
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

import ray
from ray.exceptions import RayTaskError

from matl_common.errors import MatlError
from matl_coordinator.aggregation.ray_executor import (
    LOCAL_CLUSTER,
    Cluster,
    ClusterLostError,
    PassRequest,
)
from matl_coordinator.aggregation.remote import do_part

_OBJECT_STORE_BYTES = 256 << 20
# A worker that was killed costs its task another try, at most so often.
_RETRIES = 5
_REASON_CHARACTERS = 300


def main(descriptor: int) -> None:
    """Answer passes until the pipe ends, or the cluster does."""
    with Connection(descriptor) as pipe, suppress(EOFError, BrokenPipeError):
        cluster: Cluster = pipe.recv()
        try:
            _connect(cluster)
            while True:
                request: PassRequest = pipe.recv()
                try:
                    _answer(pipe, request, workers=cluster.workers)
                except RayTaskError as error:
                    if not isinstance(error.cause, MatlError):
                        raise
                    # The pass's own, on whatever machine; the next one may go well.
                    pipe.send(error.cause)
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:  # noqa: BLE001  (the edge of a process: all of it is told)
            pipe.send(_lost(error))
        finally:
            ray.shutdown()


def _connect(cluster: Cluster) -> None:
    """Join the cluster, or begin one on this machine that sends no statistics anywhere."""
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if cluster.address == LOCAL_CLUSTER:
        ray.init(
            address="local",
            num_cpus=cluster.workers,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **common,
        )
    else:
        ray.init(address=cluster.address, **common)


def _answer(pipe: Connection, request: PassRequest, *, workers: int) -> None:
    task: Any = ray.remote(num_cpus=1, max_retries=_RETRIES)(do_part)
    left = iter(request.tasks)

    def submitted(count: int) -> list[Any]:
        return [
            task.remote(request.work.part(stretch), stretch, request.kind)
            for stretch in islice(left, count)
        ]

    # Twice the workers: none is idle while the oldest result is waited for.
    waiting = deque(submitted(2 * workers))
    while waiting:
        found = ray.get(waiting.popleft())
        waiting.extend(submitted(1))
        pipe.send(found)


def _lost(error: Exception) -> ClusterLostError:
    cause = error.cause if isinstance(error, RayTaskError) else error
    lines = str(cause).strip().splitlines() or [""]
    return ClusterLostError(f"{type(cause).__name__}: {lines[-1][:_REASON_CHARACTERS]}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
