"""Noise for the ``full`` recipe, found by a process of its own.

Answers one kind of request over the pipe of ``matl_common.worker``:
``python -m matl_common.privacy.calibration``. The daemon that asks runs for months, and
would hold the 200 MB of dp-accounting and scipy as long, for a number it needs once.
"""

import sys

from matl_common.privacy.poisson import calibrate_poisson_noise
from matl_common.worker import Message, ReportProgress, WorkerProcess, serve

TIMEOUT_SECONDS = 1800.0


async def calibrate_apart(epsilon: float, delta: float, *, sample_rate: float, steps: int) -> float:
    """``calibrate_poisson_noise``, without loading anything into this process.

    Raises:
        WorkerError: the other process did not deliver.
    """
    request: Message = {
        "epsilon": epsilon,
        "delta": delta,
        "sample_rate": sample_rate,
        "steps": steps,
    }
    async with WorkerProcess((sys.executable, "-m", __name__)) as worker:
        answer = await worker.run(request, timeout_seconds=TIMEOUT_SECONDS)
    return float(answer["noise_multiplier"])


def handle(request: Message, _: ReportProgress) -> Message:
    """Find the noise for one request."""
    noise_multiplier = calibrate_poisson_noise(
        float(request["epsilon"]),
        float(request["delta"]),
        sample_rate=float(request["sample_rate"]),
        steps=int(request["steps"]),
    )
    return {"noise_multiplier": noise_multiplier}


if __name__ == "__main__":
    serve(handle)
