"""A training worker that trains nothing: it answers as its control file tells it to.

``python tiny_worker.py <control.json>``. Every job is noted in ``<control.json>.jobs``,
so that a test sees when data would have been touched.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from matl_common.errors import MatlError
from matl_common.ids import digest_of, digest_of_file
from matl_common.tensors import read_schema
from matl_common.worker import Message, ReportProgress, serve

CONTROL = Path(sys.argv[1])


class LabelsRefusedError(MatlError):
    """As the real worker's."""


class ProcessLostError(MatlError):
    """As the real worker's."""


def handle(request: Message, report: ReportProgress) -> Message:
    """Answer ``prepare`` and ``train``."""
    control: dict[str, Any] = json.loads(CONTROL.read_text())
    with CONTROL.with_name(CONTROL.name + ".jobs").open("a") as jobs:
        jobs.write(json.dumps(request) + "\n")
    if request["job"] == "prepare":
        if control.get("prepare") == "lost":
            raise ProcessLostError("a training process was lost")
        if control.get("prepare") == "refuse":
            raise LabelsRefusedError("no usable row is left")
        report({"percent": 100})
        return {
            "patients": 90,
            "images": 100,
            "skipped": 1,
            "skipped_rows": [{"row": 7, "reason": "image file is missing"}],
            "dataset_digest": digest_of(control.get("dataset", "data").encode()),
        }
    match control.get("train"):
        case "crash":
            os._exit(9)
        case "wrong size":
            Path(request["out_path"]).write_bytes(b"short")
            return {}
        case "wait":
            while json.loads(CONTROL.read_text()).get("train") == "wait":
                time.sleep(0.01)
    if digest_of_file(Path(request["model_path"])) != request["model_digest"]:
        raise LabelsRefusedError("the model is damaged")
    schema = read_schema(Path(request["model_path"]))
    # Different every time, so that a second training could not pass for the first.
    Path(request["out_path"]).write_bytes(os.urandom(4) * schema.update_elements)
    answer: Message = {"bytes": schema.update_bytes}
    stddev = request["evaluation_noise_multiplier"]
    asked = {"always": True, "never": False}.get(control.get("evaluate", ""), stddev is not None)
    return answer | ({"correct": float(control.get("correct", 1234.5))} if asked else {})


if __name__ == "__main__":
    serve(handle)
