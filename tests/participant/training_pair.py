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
from PIL import Image
from torch import distributed, nn

from matl_common.privacy.noise import Float64Array
from matl_common.vision.dataset import OnBadImage, Record, read_labels
from matl_common.vision.heads import SmallGroupNormNet
from matl_participant.training.full import FullTraining, Group, train_full
from matl_participant.training.group import (
    ProcessesDisagreeError,
    ProcessGroup,
    ProcessLostError,
    joined,
)

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


class Recording(ProcessGroup):
    """A group that remembers which rows were drawn, and which of them it had to clip."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.drawn: list[NDArray[np.int64]] = []
        self.shares: list[int] = []

    def first_makes(self, make: Callable[[], Any], *, kind: Any) -> Any:
        made = super().first_makes(make, kind=kind)
        if kind is np.int64:
            self.drawn.append(made)
        return made

    def share(self, batch: Sequence[Any]) -> Sequence[Any]:
        mine = super().share(batch)
        self.shares.append(len(mine))
        return mine


def parameters_of(made: nn.Module) -> NDArray[np.float32]:
    """Every value of a network."""
    return np.concatenate([p.detach().numpy().ravel() for p in made.parameters()])


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
