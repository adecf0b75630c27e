"""What one of two training processes does for the tests, under PyTorch's own launcher.

``python -m torch.distributed.run --standalone --nproc-per-node 2 -m
tests.participant.training_pair FOLDER`` leaves ``rank-0.npz`` and ``rank-1.npz`` there.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.distributed import DifferentiallyPrivateDistributedDataParallel
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DistributedDPOptimizer
from PIL import Image
from torch import distributed, nn

from matl_common.ids import digest_of
from matl_common.privacy.noise import Float64Array
from matl_common.vision.backbones import Backbone
from matl_common.vision.dataset import Labels, OnBadImage, Record, read_labels
from matl_common.vision.features import FeatureSet, Team, extract_features, help_extract
from matl_common.vision.heads import SmallGroupNormNet
from matl_common.vision.images import first_views, load_image, render
from matl_participant.training.full import FullTraining, Group, train_full
from matl_participant.training.group import (
    ProcessesDisagreeError,
    ProcessGroup,
    ProcessLostError,
    joined,
)
from matl_participant.training.nodes import NodeRefusedError, prove

SIZE, PATIENTS = 16, 23
CPU = torch.device("cpu")
PLAIN = FullTraining(
    steps=6,
    learning_rate=0.5,
    noise_multiplier=0.0,
    max_grad_norm=0.3,
    sample_rate=0.5,
    declared_patients=20,
    image_size=SIZE,
    physical_batch=4,
)
NOISED = replace(PLAIN, steps=1, noise_multiplier=2.0, sample_rate=1.0)


class Centre(nn.Module):
    """Shows its network the middle of an image, where turning one colour changes nothing."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images[:, :, 4:12, 4:12])
        return logits


def network(*, width: int = 16) -> nn.Module:
    """The same at every call."""
    generator = torch.Generator().manual_seed(3)
    made = Centre(SmallGroupNormNet(width=width))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


def write_images(folder: Path) -> None:
    """One image a patient, each of a colour of its own."""
    folder.mkdir()
    colours = np.random.default_rng(4).integers(0, 256, (PATIENTS, 3), dtype=np.uint8)
    lines = ["image_id,dr_level,group_key"]
    for index, colour in enumerate(colours):
        pixels = np.broadcast_to(colour, (SIZE, SIZE, 3))
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"e{index}.png")
        lines.append(f"e{index},{index % 5},p{index}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def records_in(folder: Path) -> tuple[Record, ...]:
    """What ``write_images`` wrote."""
    return read_labels(folder, folder / "labels.csv", on_bad_image=OnBadImage.FAIL).records


def trained(
    made: nn.Module,
    records: Sequence[Record],
    training: FullTraining,
    group: Group | None,
    on_left_out: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """One round of ``full`` on the processor."""
    return train_full(
        made,
        records,
        training=training,
        device=CPU,
        on_bad_image=OnBadImage.FAIL,
        group=group,
        on_left_out=on_left_out,
    )


def write_photographs(folder: Path) -> None:
    """Forty images of twenty patients, no two alike, of which one is damaged."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    lines = ["image_id,dr_level,group_key"]
    for index in range(40):
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"e{index}.png")
        lines.append(f"e{index},{index % 5},p{index % 20}")
    (folder / "e7.png").write_bytes(b"damaged")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def photographs(folder: Path) -> Labels:
    """What ``write_photographs`` wrote."""
    return read_labels(folder, folder / "labels.csv", on_bad_image=OnBadImage.SKIP)


def backbone() -> Backbone:
    """The same at every call; its features are sums in single precision, which round."""
    convolutions = SmallGroupNormNet(width=16).features
    made = nn.Sequential(convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    made.eval().requires_grad_(requires_grad=False)
    return Backbone("small", made, 64, digest_of(b"small"))


def extracted(labels: Labels, team: Team | None) -> FeatureSet:
    """The features of all images, as the first process of a team has them."""
    return extract_features(
        labels,
        backbone(),
        dataset=digest_of(b"photographs"),
        views=first_views(2),
        image_size=SIZE,
        on_bad_image=OnBadImage.SKIP,
        decoders=1,
        device=CPU,
        team=team,
    )


class Counting(ProcessGroup):
    """A group that counts the images whose features were computed here."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.computed = 0

    def gather(self, values: Float64Array) -> list[Float64Array]:
        self.computed += int(values[:, 0].sum())
        return super().gather(values)


class Recording(ProcessGroup):
    """A group that remembers which rows were drawn, and which of them it had to clip."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.drawn: list[NDArray[np.int64]] = []
        self.shares: list[int] = []
        self.records: list[list[Record]] = []

    def first_makes(self, make: Callable[[], Any], *, kind: Any) -> Any:
        made = super().first_makes(make, kind=kind)
        if kind is np.int64:
            self.drawn.append(made)
        return made

    def share(self, batch: Sequence[Any]) -> Sequence[Any]:
        mine = super().share(batch)
        self.shares.append(len(mine))
        self.records.append(list(mine))
        return mine


def parameters_of(made: nn.Module) -> NDArray[np.float32]:
    """Every value of a network."""
    return np.concatenate([p.detach().numpy().ravel() for p in made.parameters()])


def trained_by_opacus(shares: Sequence[Sequence[Record]]) -> NDArray[np.float32]:
    """The parameters after as many steps, on the same batches, of Opacus's own processes."""
    sampled = GradSampleModule(network(), loss_reduction="sum")
    model = DifferentiallyPrivateDistributedDataParallel(sampled)
    optimizer = DistributedDPOptimizer(
        torch.optim.SGD(
            model.parameters(),
            lr=PLAIN.learning_rate / (PLAIN.sample_rate * PLAIN.declared_patients),
        ),
        noise_multiplier=0.0,
        max_grad_norm=PLAIN.max_grad_norm,
        expected_batch_size=None,
        loss_reduction="sum",
    )
    (view,) = first_views(1)
    for share in shares:
        images = [render(load_image(each.path, image_size=SIZE), view) for each in share]
        labels = torch.tensor([each.level for each in share])
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(torch.stack(images)), labels, reduction="sum")
        torch.autograd.backward(loss)
        optimizer.step()
    return parameters_of(sampled)


def main(folder: Path) -> None:
    """Everything that takes two processes, so that they need to be started once."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    records = records_in(folder / "images")
    found: dict[str, Any] = {}
    with joined(folder, rank=rank, size=2, device=CPU, stall_seconds=60.0) as group:
        recording, plain = Recording(), network()
        found["plain"] = trained(plain, records, PLAIN, recording)
        found["plain_parameters"] = parameters_of(plain)
        found["drawn"] = np.concatenate(recording.drawn)
        found["batch_sizes"] = [len(each) for each in recording.drawn]
        found["shares"] = recording.shares
        found["by_opacus"] = trained_by_opacus(recording.records)
        labels, counting = photographs(folder / "photographs"), Counting()
        if rank == 0:
            features = extracted(labels, counting)
            found |= {"features": features.features, "feature_labels": features.labels}
            found |= {"feature_images": features.images}
            found |= {"feature_skips": [each.row for each in features.skipped]}
        else:
            views = first_views(2)
            help_extract(
                labels,
                backbone(),
                views=views,
                image_size=SIZE,
                decoders=1,
                device=CPU,
                team=counting,
            )
        found["computed"] = counting.computed
        for attempt in ("noised", "noised_again"):
            torch.manual_seed(0)
            found[attempt] = trained(network(width=64), records, NOISED, group)
        rare = replace(NOISED, sample_rate=1e-9, learning_rate=1e-9)
        found["empty"] = trained(network(), records, rare, group)
        counts: list[int] = []
        broken = network()
        with torch.no_grad():
            next(broken.parameters()).fill_(torch.nan)
        found["of_nan"] = trained(
            broken, records, replace(PLAIN, sample_rate=1.0), group, counts.append
        )
        found["left_out"] = counts
        found["same_token"] = token_check(group, b"a token that all of them have")
        found["other_token"] = token_check(group, b"a token of rank %d" % rank)
        found["disagreement"] = disagreement(group, rank)
        found["stall"] = stall(rank)
        np.savez(folder / f"rank-{rank}.npz", **found)


def disagreement(group: ProcessGroup, rank: int) -> str:
    """What is said of parameters that differ in the last bit of one value."""
    values: Float64Array = np.ones(100)
    group.check_same(values)
    values[-1] += rank * np.finfo(np.float64).eps
    try:
        group.check_same(values)
    except ProcessesDisagreeError as error:
        return str(error)
    return ""


def token_check(group: ProcessGroup, token: bytes) -> str:
    """What is said of the others' tokens."""
    try:
        prove(group, token)
    except NodeRefusedError as error:
        return str(error)
    return ""


def stall(rank: int) -> str:
    """What the first process hears if the second does not come for longer than it may."""
    impatient = distributed.new_group(timeout=timedelta(seconds=0.5))
    assert isinstance(impatient, distributed.ProcessGroup)
    if rank == 1:
        time.sleep(2.0)
        return ""
    try:
        ProcessGroup(CPU, impatient).add_up(np.ones(3))
    except ProcessLostError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
