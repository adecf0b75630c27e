"""A training worker that reads no data.

    python scripted_worker.py <node> <control> <direction.f32>

Its updates depend on the node and the round alone, so that two studies can be compared
by their models: a step along the direction, with a disturbance of the hospital's own. After
a few rounds steps become shorter, as they do in training, or a long study would overshoot.
Every training is noted in ``<control>.jobs``; while the control file exists and says
``wait``, a training does not end.
"""

import hashlib
import json
import re
import sys
import time
from pathlib import Path

import numpy as np

from matl_common.errors import InvalidInputError
from matl_common.ids import digest_of
from matl_common.tensors import read_schema
from matl_common.worker import Message, ReportProgress, serve

NODE, CONTROL, DIRECTION = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
STEP, DISTURBANCE = 0.05, 0.2
FULL_STEPS = 4


def handle(request: Message, report: ReportProgress) -> Message:
    """Answer ``prepare`` and ``train``."""
    if request["job"] == "prepare":
        return {
            "patients": 16,
            "images": 16,
            "skipped": 0,
            "skipped_rows": [],
            "dataset_digest": digest_of(NODE.encode()),
        }
    out = Path(request["out_path"])
    found = re.search(r"round-(\d+)", out.name)
    if found is None:
        raise InvalidInputError("the output file does not name its round")
    round_id = int(found[1])
    with CONTROL.with_name(CONTROL.name + ".jobs").open("a") as jobs:
        jobs.write(json.dumps({"round": round_id}) + "\n")
    while CONTROL.exists() and CONTROL.read_text() == "wait":
        time.sleep(0.02)
    elements = read_schema(Path(request["model_path"])).update_elements
    seed = hashlib.sha256(f"{NODE} {round_id}".encode()).digest()
    update = np.random.default_rng(list(seed[:8])).standard_normal(elements, dtype=np.float32)
    update *= DISTURBANCE / float(np.linalg.norm(update))
    if DIRECTION.exists():
        update += np.fromfile(DIRECTION, dtype="<f4")
    step = STEP * min(1.0, (FULL_STEPS / round_id) ** 3)
    out.write_bytes((step * update).astype("<f4").tobytes())
    return {"bytes": out.stat().st_size}


if __name__ == "__main__":
    serve(handle)
