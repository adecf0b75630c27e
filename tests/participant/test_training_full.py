from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import nn
from torch.nn import functional

from matl_common.errors import ConfigurationError
from matl_common.vision.dataset import BadRowError, OnBadImage, Record, read_labels
from matl_common.vision.heads import SmallGroupNormNet, network_schema
from matl_common.vision.images import View, load_image, render
from matl_participant.training.clipping.clipper import Clipper
from matl_participant.training.clipping.recording import UnsupportedLayerError
from matl_participant.training.devices import choose_device
from matl_participant.training.full import FullTraining, train_full
from matl_participant.training.group import Alone, ProcessesDisagreeError

pytestmark = pytest.mark.privacy

CPU = torch.device("cpu")
SIZE = 16


@pytest.fixture
def records(tmp_path: Path) -> tuple[Record, ...]:
    """Twelve images of nine patients."""
    image_dir = tmp_path / "images"
    image_dir.mkdir()
    rng = np.random.default_rng(4)
    lines = ["image_id,dr_level,group_key"]
    for index in range(12):
        level = index % 5
        pixels = rng.integers(0, 60, (SIZE, SIZE, 3)) + 45 * level
        Image.fromarray(pixels.astype(np.uint8)).save(image_dir / f"e{index}.png")
        lines.append(f"e{index},{level},p{index % 9}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return read_labels(image_dir, tmp_path / "labels.csv", on_bad_image=OnBadImage.FAIL).records


def training(**changes: float) -> FullTraining:
    values = {
        "steps": 1,
        "learning_rate": 0.5,
        "noise_multiplier": 0.0,
        "max_grad_norm": 1.0,
        "sample_rate": 1.0,
        "declared_patients": 10,
        "image_size": SIZE,
        "physical_batch": 4,
    }
    return FullTraining(**{**values, **changes})  # type: ignore[arg-type]


def run(network: nn.Module, records: tuple[Record, ...], **changes: float):  # type: ignore[no-untyped-def]
    return train_full(
        network, records, training=training(**changes), device=CPU, on_bad_image=OnBadImage.SKIP
    )


def naive_clipped_sum(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, norm: float
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    total = torch.zeros(sum(p.numel() for p in network.parameters()), dtype=torch.float64)
    for image, label in zip(images, labels, strict=True):
        loss = functional.cross_entropy(network(image[None]), label[None])
        parts = torch.autograd.grad(loss, list(network.parameters()))
        flat = torch.cat([part.double().flatten() for part in parts])
        total = total + flat * min(1.0, norm / float(flat.norm()))
    return total.numpy()


def clipped_sum(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, norm: float
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    clipper = Clipper(network)
    total = torch.zeros(clipper.size)
    for batch in zip(torch.split(images, 8), torch.split(labels, 8), strict=True):
        clipper.add_clipped(total, *batch, max_grad_norm=norm)
    return total.double().numpy()


@pytest.mark.parametrize("norm", [0.05, 1e4])
def test_a_step_follows_the_loop_over_samples(records: tuple[Record, ...], norm: float) -> None:
    network = SmallGroupNormNet()
    # Black stays black, however it is turned.
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(records[0].path)
    image = render(load_image(records[0].path, image_size=SIZE), View())
    chosen = tuple(replace(record, path=records[0].path) for record in records[:4])
    images, labels = image.expand(4, -1, -1, -1), torch.tensor([r.level for r in chosen])
    expected = naive_clipped_sum(network, images, labels, norm)
    update = run(network, chosen, max_grad_norm=norm, learning_rate=1.0, declared_patients=4)
    assert np.linalg.norm(-4 * update - expected) <= 1e-4 * np.linalg.norm(expected)


def test_one_sample_moves_the_sum_by_at_most_the_clipping_norm() -> None:
    network = SmallGroupNormNet()
    images, labels = 100 * torch.randn(6, 3, SIZE, SIZE), torch.arange(6) % 5
    whole = clipped_sum(network, images, labels, norm=0.1)
    for missing in range(6):
        kept = torch.arange(6) != missing
        without = clipped_sum(network, images[kept], labels[kept], norm=0.1)
        assert 0.0 < np.linalg.norm(whole - without) <= 0.1 * (1 + 1e-5)


def test_one_sample_of_many_alike_moves_the_sum_by_no_more_than_rounding_allows() -> None:
    network = SmallGroupNormNet()
    # Everybody pulls one way, so that the sum is large and rounds most; without the first,
    # every batch is another.
    images, labels = torch.randn(3, SIZE, SIZE).expand(401, -1, -1, -1), torch.zeros(401).long()
    whole = clipped_sum(network, images, labels, norm=0.1)
    without = clipped_sum(network, images[1:], labels[1:], norm=0.1)
    assert np.linalg.norm(whole) > 40.0
    assert np.linalg.norm(whole - without) <= 0.1 * (1 + 1e-5)


def test_a_sample_whose_gradient_overflows_contributes_nothing() -> None:
    first, second = nn.Linear(12, 4, bias=False), nn.Linear(4, 5, bias=False)
    nn.init.zeros_(first.weight)
    nn.init.constant_(second.weight, 1e10)
    nn.init.constant_(second.weight[:1], -1e10)
    network = nn.Sequential(nn.Flatten(), first, second)
    images = torch.ones(2, 3, 2, 2)
    images[1] = 1e30
    found = clipped_sum(network, images, torch.zeros(2, dtype=torch.long), norm=0.1)
    assert np.linalg.norm(found) == pytest.approx(0.1, rel=1e-5)


def test_gradients_that_are_not_finite_are_counted_and_nothing_else_is_said(
    records: tuple[Record, ...],
) -> None:
    network = SmallGroupNormNet()
    with torch.no_grad():
        network.classifier.weight.fill_(torch.nan)
    counts: list[int] = []
    update = train_full(
        network,
        records,
        training=training(steps=2),
        device=CPU,
        on_bad_image=OnBadImage.SKIP,
        on_left_out=counts.append,
    )
    assert counts == [2 * 9]
    assert not np.nan_to_num(update).any()


def test_frozen_parameters_stay_and_get_no_noise(records: tuple[Record, ...]) -> None:
    network = SmallGroupNormNet()
    network.features.requires_grad_(requires_grad=False)
    before = [parameter.clone() for parameter in network.features.parameters()]
    update = run(network, records, noise_multiplier=1.0)
    assert update.size == sum(p.numel() for p in network.classifier.parameters())
    assert all(map(torch.equal, before, network.features.parameters()))


def test_a_network_that_couples_samples_is_refused(records: tuple[Record, ...]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    with pytest.raises(UnsupportedLayerError, match=r"layer 1 \(BatchNorm2d\)"):
        run(network, records)


def test_without_noise_the_network_learns(records: tuple[Record, ...]) -> None:
    torch.manual_seed(3)  # the starting point; what is drawn in training cannot be seeded
    network = SmallGroupNormNet()

    def loss() -> float:
        images = torch.stack([render(load_image(r.path, image_size=SIZE), View()) for r in records])
        labels = torch.tensor([r.level for r in records])
        with torch.inference_mode():
            return float(functional.cross_entropy(network(images), labels))

    before = loss()
    update = run(network, records, steps=60, learning_rate=0.5)
    assert update.dtype == np.float32
    assert update.size == network_schema(network).update_elements
    assert loss() < before - 0.1


def test_an_empty_batch_is_noised_and_its_variance_is_as_stated(
    records: tuple[Record, ...],
) -> None:
    network = SmallGroupNormNet(width=32)
    # So rare that all of these batches are empty.
    settings = {"sample_rate": 1e-9, "declared_patients": 10, "noise_multiplier": 2.0}
    update = np.concatenate(
        [run(network, records, learning_rate=1e-9, **settings) for _ in range(2)]
    ).astype(np.float64)
    stddev = 1e-9 / (1e-9 * 10) * 2.0
    assert update.size > 100_000
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], df=update.size)
    assert low < np.square(update / stddev).sum() < high


def test_two_runs_differ_though_torch_is_seeded(records: tuple[Record, ...]) -> None:
    state = SmallGroupNormNet().state_dict()
    updates = []
    for _ in range(2):
        network = SmallGroupNormNet()
        network.load_state_dict(state)
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - the global generator is what is tested
        updates.append(run(network, records, noise_multiplier=1.0))
    assert np.mean(updates[0] == updates[1]) < 0.01


def test_a_patient_contributes_one_image_however_many_there_are(
    records: tuple[Record, ...],
) -> None:
    one_patient = tuple(record for record in records if record.patient in (0, 1, 2))
    assert len(one_patient) == 6
    update = run(
        SmallGroupNormNet(),
        one_patient,
        learning_rate=10.0,
        declared_patients=10,
        max_grad_norm=1e-3,
    )
    # Three patients at the clipping norm, whatever the six images say.
    assert np.linalg.norm(update) <= 3e-3 * (1 + 1e-4)


def test_a_damaged_image_is_left_out_or_stops_the_job(records: tuple[Record, ...]) -> None:
    records[0].path.write_bytes(b"damaged")
    assert np.isfinite(run(SmallGroupNormNet(), records)).all()
    with pytest.raises(BadRowError, match="row 2"):
        train_full(
            SmallGroupNormNet(),
            records[:1],
            training=training(),
            device=CPU,
            on_bad_image=OnBadImage.FAIL,
        )


def test_nothing_is_returned_where_processes_do_not_hold_the_same_parameters(
    records: tuple[Record, ...],
) -> None:
    seen: list[np.ndarray[tuple[int], np.dtype[np.float64]]] = []

    class Diverged(Alone):
        def check_same(self, values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
            seen.append(values)
            raise ProcessesDisagreeError("they differ")

    network = SmallGroupNormNet()
    with pytest.raises(ProcessesDisagreeError):
        train_full(
            network,
            records,
            training=training(),
            device=CPU,
            on_bad_image=OnBadImage.SKIP,
            group=Diverged(),
        )
    # What is compared is what the training came to.
    ended = np.concatenate([p.detach().numpy().ravel() for p in network.parameters()])
    assert (seen[0].astype(np.float32) == ended).all()


def test_no_steps_give_a_zero_update(records: tuple[Record, ...]) -> None:
    assert not run(SmallGroupNormNet(), records, steps=0, noise_multiplier=1.0).any()


def test_an_absent_device_is_refused_and_auto_finds_one() -> None:
    assert choose_device("auto", memory_bytes=None).type in {"cuda", "mps", "cpu"}
    if not torch.cuda.is_available():
        with pytest.raises(ConfigurationError, match="'cuda' is not available"):
            choose_device("cuda", memory_bytes=None)
