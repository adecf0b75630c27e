"""Training of a caller's network on callers' data, embedded: it learns, and says who misleads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from matl import (
    DifferentialPrivacy,
    MATLClient,
    MATLMode,
    evaluate_medical_model,
    train_federated_medical_ai,
    training,
)
from matl.history import TutorialHistory
from matl.sdk.holdout import tensor_scorer
from matl.sdk.network import schema_of
from matl.training import _Training, _update, default_model
from matl_common.errors import ConfigurationError, InvalidInputError

CLASSES = 3
NODES = tuple(f"hospital_{letter}" for letter in "abcde")
ROUNDS = 6


@dataclass(frozen=True)
class Patients:
    """A data set in memory; one row is one patient."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.images[row], int(self.labels[row])


def patients(count: int, *, seed: int, careless: bool = False) -> Patients:
    """Three classes that a linear layer tells apart; ``careless`` makes every label the next."""
    draws = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    images = draws.normal(0.0, 0.3, (count, 1, 2, 3))
    images[np.arange(count), 0, 0, labels] += 1.0
    shown = (labels + careless) % CLASSES
    return Patients(torch.tensor(images, dtype=torch.float32), torch.tensor(shown))


def linear() -> nn.Module:
    head = nn.Linear(6, CLASSES)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(nn.Flatten(), head)


@dataclass
class Trained:
    client: MATLClient
    network: nn.Module
    history: TutorialHistory
    told: list[str]
    arguments: dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """Five hospitals, E's labels all wrong, and a holdout set."""
    privacy = DifferentialPrivacy(epsilon=200.0)
    datasets = {node: patients(60, seed=at) for at, node in enumerate(NODES)}
    datasets["hospital_e"] = patients(60, seed=9, careless=True)
    told: list[str] = []
    arguments: dict[str, Any] = {
        "num_rounds": ROUNDS,
        "local_epochs": 2,
        "model": linear,
        "test_loader": [(patients(90, seed=21).images, patients(90, seed=21).labels)],
        "learning_rate": 2.0,
        "report": told.append,
    }
    with MATLClient(
        node_id="hospital_a",
        allowed_nodes=NODES,
        privacy=privacy,
        holdout=patients(90, seed=20),
        folder=tmp_path_factory.mktemp("training") / "study",
    ) as client:
        network, history = train_federated_medical_ai(datasets, client, **arguments)
        assert network is not None
        yield Trained(client, network, history, told, {"datasets": datasets, **arguments})


def test_the_coordinator_is_told_how_the_hospitals_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, float] = {}

    def watching(*arguments: Any, **by: Any) -> Any:
        told.update(by)
        return tensor_scorer(*arguments, **by)

    monkeypatch.setattr(training, "tensor_scorer", watching)
    with MATLClient(
        node_id="hospital_a",
        allowed_nodes=NODES,
        privacy=DifferentialPrivacy(epsilon=200.0, clip_norm=3.0),
        holdout=patients(90, seed=20),
        folder=tmp_path / "study",
    ) as client:
        train_federated_medical_ai(
            {node: patients(60, seed=at) for at, node in enumerate(NODES)},
            client,
            num_rounds=1,
            local_epochs=4,
            model=linear,
            learning_rate=0.75,
            images_per_patient=2,
        )
    assert told == {"classes": CLASSES, "steps": 4, "learning_rate": 0.75, "max_grad_norm": 1.5}


def test_the_network_learns_though_one_hospital_misleads(trained: Trained) -> None:
    assert trained.history["accuracy"][-1] > 90.0
    assert evaluate_medical_model(
        trained.network, trained.arguments["test_loader"]
    ) == pytest.approx(trained.history["accuracy"][-1])


def test_the_hospital_whose_labels_are_wrong_loses_its_trust(trained: Trained) -> None:
    *others, careless = trained.history["trust_scores"][-1]
    assert careless < 0.4
    assert min(others) > 0.6
    assert trained.client.mode is MATLMode.MODE1
    assert "2 of 5 hospitals may be hostile" in trained.client.claim


def test_the_history_has_an_item_for_each_round(trained: Trained) -> None:
    history = trained.history
    assert history["rounds"] == list(range(1, ROUNDS + 1))
    assert history["hospitals"] == list(NODES)
    assert len(history["epsilon_remaining"]) == ROUNDS
    assert history["privacy_budget"] == sorted(history["privacy_budget"], reverse=True)
    assert history["privacy_budget"][-1] == pytest.approx(0.0, abs=1e-3)
    assert len(trained.told) == ROUNDS
    assert trained.told[0].startswith("Round 1: accuracy")


def test_every_step_of_every_round_was_charged(trained: Trained) -> None:
    study = trained.client.embedded.study
    assert study is not None
    assert {each.steps_spent for each in study.budgets().values()} == {2 * ROUNDS}


def test_training_again_goes_on_with_the_study_and_spends_nothing_once_it_is_over(
    trained: Trained,
) -> None:
    arguments = {**trained.arguments}
    network, history = train_federated_medical_ai(
        arguments.pop("datasets"), trained.client, **arguments
    )
    assert history == trained.history
    assert network is not None
    for one, other in zip(network.parameters(), trained.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_length_is_another_study(trained: Trained) -> None:
    arguments = {**trained.arguments, "num_rounds": ROUNDS + 1}
    with pytest.raises(ConfigurationError, match="other terms"):
        train_federated_medical_ai(arguments.pop("datasets"), trained.client, **arguments)


def a_training(**changes: Any) -> _Training:
    wanted: dict[str, Any] = {
        "steps": 1,
        "learning_rate": 10.0,
        "noise_multiplier": 0.0,
        "clip_norm": 0.25,
        "patients": 10,
        "images_per_patient": 1,
        "batch": 4,
    }
    return _Training(**{**wanted, **changes})


def moved_by(dataset: Patients, **changes: Any) -> float:
    update = _update(linear(), dataset, a_training(**changes), None)  # type: ignore[arg-type]  # the round is not looked at
    return float(np.linalg.norm(update))


def test_one_patient_moves_the_update_by_no_more_than_the_clip_norm() -> None:
    alone = Patients(1e6 * torch.ones(1, 1, 2, 3), torch.tensor([1]))
    # Learning rate over declared patients is 1.
    assert moved_by(alone) == pytest.approx(0.25, rel=1e-5)
    assert moved_by(alone, images_per_patient=5) == pytest.approx(0.05, rel=1e-5)


def test_batches_that_go_through_the_network_together_change_nothing() -> None:
    some = patients(11, seed=2)
    assert moved_by(some, batch=3) == pytest.approx(moved_by(some, batch=11), rel=1e-5)


def test_noise_is_there_without_any_signal() -> None:
    frozen = Patients(torch.zeros(1, 1, 2, 3), torch.tensor([0]))
    noised = moved_by(frozen, noise_multiplier=1e4, clip_norm=1.0)
    # 21 coordinates of standard deviation 10⁴.
    assert 1e4 < noised < 1e5


def normalised() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(6, CLASSES))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": normalised}, "ModuleValidator.fix"),
        ({"model": lambda: linear().double()}, "call .float"),
        ({"model": lambda: linear().requires_grad_(requires_grad=False)}, "nothing would train"),
        ({"learning_rate": 0.0}, "learning_rate=0"),
        ({"images_per_patient": 0}, "1 or more"),
        ({"num_rounds": 0}, "rounds is 0"),
        ({"hospital_datasets": []}, "is empty"),
        ({"hospital_datasets": [patients(3, seed=1)] * 4}, "allowed_nodes"),
        ({"hospital_datasets": {"hospital_x": patients(3, seed=1)}}, "not in allowed_nodes"),
        ({"hospital_datasets": [[]]}, "data set of hospital_a is empty"),
        ({"hospital_datasets": [["no pair"]] * 3}, "are not"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_with_what_to_do(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    arguments = {"hospital_datasets": [patients(12, seed=1)] * 3, "model": linear, **changes}
    with (
        MATLClient(node_id="hospital_a", allowed_nodes=NODES[:3], folder=tmp_path) as client,
        pytest.raises(ConfigurationError, match=message),
    ):
        train_federated_medical_ai(matl_client=client, **arguments)


class FailsOnce:
    """A data set on a disk that is away at first."""

    def __init__(self, inner: Patients) -> None:
        self._inner = inner
        self._has_failed = False

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        if not self._has_failed:
            self._has_failed = True
            raise OSError("the disk is away")
        return self._inner[row]


def test_a_study_that_was_interrupted_goes_on_and_a_hospital_pays_for_its_attempt(
    tmp_path: Path,
) -> None:
    datasets = [patients(12, seed=at) for at in range(4)]
    told: list[str] = []
    arguments: dict[str, Any] = {
        "num_rounds": 2,
        "local_epochs": 1,
        "model": linear,
        "report": told.append,
    }
    with MATLClient(
        node_id="hospital_a",
        allowed_nodes=NODES[:4],
        privacy=DifferentialPrivacy(epsilon=100.0),
        folder=tmp_path,
    ) as client:
        failing = [*datasets[:3], FailsOnce(datasets[3])]
        with pytest.raises(OSError, match="away"):
            train_federated_medical_ai(failing, client, **arguments)
        _, history = train_federated_medical_ai(failing, client, **arguments)
        # Of its two rounds hospital D spent one on nothing, and the others went on without it.
        assert history["rounds"] == [1, 2]
        assert [line for line in told if line.startswith("hospital_d: the privacy budget")]
        study = client.embedded.study
        assert study is not None
        assert {each.steps_spent for each in study.budgets().values()} == {2}
        assert len(study.coordinator.rounds()[-1].admitted) == 3


def test_the_network_that_nobody_chose_is_a_public_one_under_a_head_of_zeros() -> None:
    network = default_model()
    assert [each.shape for each in schema_of(network).tensors] == [(5, 1280), (5,)]
    images = torch.zeros(2, 3, 64, 64)
    assert not network.eval()(images).any()
    some = Patients(images, torch.tensor([0, 4]))
    # Two patients, each with a step of at most the clip norm.
    assert 0.0 < np.linalg.norm(_update(network, some, a_training(), None)) <= 0.5 + 1e-6  # type: ignore[arg-type]  # the round is not looked at


def test_a_frozen_parameter_is_no_part_of_the_model() -> None:
    network = linear()
    network[1].bias.requires_grad_(requires_grad=False)  # type: ignore[index]
    assert [each.name for each in schema_of(network).tensors] == ["1.weight"]


def test_accuracy_of_no_image_is_not_defined() -> None:
    with pytest.raises(InvalidInputError, match="no images"):
        evaluate_medical_model(linear(), [])


def test_without_a_test_set_accuracy_is_not_made_up(tmp_path: Path) -> None:
    with MATLClient(node_id="hospital_a", allowed_nodes=NODES[:3], folder=tmp_path) as client:
        _, history = train_federated_medical_ai(
            [patients(12, seed=at) for at in range(3)],
            client,
            num_rounds=1,
            local_epochs=1,
            model=linear,
            report=lambda _: None,
        )
        assert math.isnan(history["accuracy"][0])
        assert math.isnan(client.get_accuracy())
        assert history["privacy_budget"] == [math.inf]
