"""Real noise in real networks, as the coordinator's gate sees it."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from matl_common.ids import NodeId
from matl_common.tensors import TensorSpec, parse_schema, update_views
from matl_common.vision.dataset import OnBadImage, Record, read_labels
from matl_common.vision.heads import build_network, network_schema
from matl_coordinator.core.compliance import quiet_part, refusals
from matl_coordinator.core.robust.gram import Gram, PrivacyNoise
from matl_coordinator.service.survey import classifier_of
from matl_participant.training.full import FullTraining, train_full

pytestmark = [pytest.mark.privacy, pytest.mark.hostile]
SIZE, STEPS, PATIENTS, NOISE = 16, 3, 10, 4.0
STD = 0.5 * math.sqrt(STEPS) * NOISE / PATIENTS
NODE = NodeId("hospital")


@pytest.fixture
def records(tmp_path: Path) -> tuple[Record, ...]:
    (tmp_path / "images").mkdir()
    lines = ["image_id,dr_level"]
    for index in range(PATIENTS):
        pixels = np.full((SIZE, SIZE, 3), 20 * index, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"e{index}.png")
        lines.append(f"e{index},{index % 5}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    labels = read_labels(tmp_path / "images", tmp_path / "labels.csv", on_bad_image=OnBadImage.FAIL)
    return labels.records


@pytest.mark.parametrize(("factor", "caught"), [(1.0, None), (0.0, NODE), (0.1, NODE)])
def test_a_network_trained_without_the_promised_noise_is_seen_in_its_last_layer(
    records: tuple[Record, ...], factor: float, caught: NodeId | None
) -> None:
    torch.manual_seed(7)
    network = build_network("small_gn")
    schema = network_schema(network)
    training = FullTraining(
        steps=STEPS,
        learning_rate=0.5,
        noise_multiplier=factor * NOISE,
        max_grad_norm=1.0,
        sample_rate=1.0,
        declared_patients=PATIENTS,
        image_size=SIZE,
        physical_batch=4,
    )
    update = train_full(
        network,
        records,
        training=training,
        device=torch.device("cpu"),
        on_bad_image=OnBadImage.FAIL,
    )

    names = classifier_of(schema)
    assert names == ("classifier.weight", "classifier.bias")
    weight, bias = (update_views(update, schema)[name] for name in names)
    noise = PrivacyNoise(np.array([STD]), signal_bound=0.5 * STEPS)
    # All but the quiet part is blotted out, so that no other bound can decide.
    gram = replace(Gram.of({NODE: np.full(update.size, STD)}), noise=noise)
    refused = refusals(gram, steps=STEPS, quiet={NODE: quiet_part(weight, bias)})

    assert set(refused) == ({caught} if caught else set())
    assert all("times the promised privacy noise" in phrase for phrase in refused.values())


def test_a_model_that_does_not_end_in_a_linear_layer_has_no_quiet_part() -> None:
    def schema(*shapes: tuple[int, ...]):  # type: ignore[no-untyped-def]
        return parse_schema(
            TensorSpec(f"t{index}", shape, trainable=True) for index, shape in enumerate(shapes)
        )

    assert classifier_of(schema((5, 7), (5,))) == ("t0", "t1")
    assert classifier_of(schema((5, 7), (7,))) is None
    assert classifier_of(schema((5, 7, 3), (5,))) is None
    assert classifier_of(schema((5,))) is None
