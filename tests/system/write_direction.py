"""A descent direction of the study's first model, for hospitals that do not train.

    python -m tests.system.write_direction <images> <out.f32>

A process of its own, so that the test run itself does not load torch.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from matl_common.tensors import read_model
from matl_common.vision.dataset import OnBadImage, read_labels
from matl_common.vision.heads import load_network
from matl_common.vision.images import load_image
from matl_coordinator.scoring.initial import write_initial_network
from matl_coordinator.scoring.judges import NetworkJudge

IMAGE_SIZE = 16


def main() -> None:
    """Write the direction, of length 1."""
    images, out = Path(sys.argv[1]), Path(sys.argv[2])
    labels = read_labels(
        images, images / "labels_deidentified.csv", on_bad_image=OnBadImage.FAIL
    ).records
    with tempfile.TemporaryDirectory() as folder:
        schema, tensors = read_model(write_initial_network("small_gn", folder=Path(folder)))
    judge = NetworkJudge(
        load_network("small_gn", schema, tensors),
        schema,
        squares=[load_image(each.path, image_size=IMAGE_SIZE) for each in labels],
        labels=np.array([each.level for each in labels], dtype=np.int64),
        device=torch.device("cpu"),
        physical_batch=16,
    )
    descent = judge.descent(np.arange(len(labels)))
    out.write_bytes((descent / np.linalg.norm(descent)).astype("<f4").tobytes())


if __name__ == "__main__":
    main()
