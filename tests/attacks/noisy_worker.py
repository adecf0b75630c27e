"""A scripted training worker that adds the privacy noise it is asked for, times a factor.

    python -m tests.attacks.noisy_worker <node> <control> <direction.f32> <factor>

The update is the scripted worker's; the noise is Gaussian, of the deviation that the plan
and the declared number of patients give. A factor of 0 leaves it out.
"""

import math
import sys
from pathlib import Path

import numpy as np

from matl_common.ids import digest_of
from matl_common.worker import Message, ReportProgress, serve
from tests.system import scripted_worker

FACTOR = float(sys.argv[4])


def handle(request: Message, report: ReportProgress) -> Message:
    """Answer ``prepare`` and ``train``."""
    answer = scripted_worker.handle(request, report)
    if request["job"] == "train" and FACTOR > 0.0:
        out = Path(request["out_path"])
        update = np.fromfile(out, dtype="<f4")
        seed = digest_of(f"{scripted_worker.NODE} {out.name}".encode())
        noise = np.random.default_rng(int(seed, 16)).standard_normal(update.size)
        (update + FACTOR * noise_std(request) * noise).astype("<f4").tofile(out)
    return answer


def noise_std(request: Message) -> float:
    """Of every coordinate, after all steps of a round."""
    batch = request["sample_rate"] * request["declared_patients"]
    step = request["learning_rate"] * request["noise_multiplier"] * request["max_grad_norm"]
    return float(step / batch * math.sqrt(request["steps"]))


if __name__ == "__main__":
    serve(handle)
