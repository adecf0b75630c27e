"""The ``full`` recipe: DP-SGD with Poisson sampling over a whole GroupNorm network.

One step: every patient is drawn independently with the sample rate, one of its images is
augmented, its gradient is clipped to C, the sum is noised (an empty batch too) and divided
by the *expected* batch of the declared, public number of patients. ``clipping`` computes
and clips the per-sample gradients; sampling, noise and normalisation are done here.

Several processes may share the work. There is still one batch, one noise and one sum a step:
the first process draws the batch and tells it to all, each clips a share of it, and the
shares are added up before the first noises them, once. So the released distribution is that
of one process, and so is what it costs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from matl_common.privacy.noise import Float64Array, poisson_sample, uniforms
from matl_common.vision.dataset import OnBadImage, Record, RowDefect, SkippedRow, bad_row
from matl_common.vision.images import BadImageError, augmentation, load_image, render
from matl_participant.training.clipping.clipper import Clipper
from matl_participant.training.group import Alone
from matl_participant.training.noising import noised_sum

Batch = tuple[Tensor, Tensor]
_Item = TypeVar("_Item")
_Number = TypeVar("_Number", np.int64, np.float64)


class Group(Protocol):
    """The processes that train together, as one of them sees them."""

    def share(self, batch: Sequence[_Item]) -> Sequence[_Item]:
        """This process's part of a batch that all know; the parts make up the batch."""

    def first_makes(
        self, make: Callable[[], NDArray[_Number]], *, kind: type[_Number]
    ) -> NDArray[_Number]:
        """A vector that the first process makes, and nobody else; all get the same."""

    def add_up(self, values: Float64Array) -> None:
        """Add everybody's vector into the first one's, in place."""

    def check_same(self, values: Float64Array) -> None:
        """Raise unless all hold the same vector, to the bit."""


@dataclass(frozen=True, slots=True)
class FullTraining:
    """What one round of the ``full`` recipe does; all of it public.

    Attributes:
        steps: DP-SGD steps this round.
        learning_rate: on the mean gradient.
        noise_multiplier: the noise on a summed gradient, in units of ``max_grad_norm``.
        max_grad_norm: C, the norm to which each patient's gradient is clipped.
        sample_rate: q, the probability of each patient at each step.
        declared_patients: the public N̄; sums are divided by q · N̄.
        image_size: pixels a side.
        physical_batch: samples that pass through the network together, in each process.
    """

    steps: int
    learning_rate: float
    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    declared_patients: int
    image_size: int
    physical_batch: int


def train_full(
    network: nn.Module,
    records: Sequence[Record],
    *,
    training: FullTraining,
    device: torch.device,
    on_bad_image: OnBadImage,
    group: Group | None = None,
    on_step: Callable[[int], None] | None = None,
    on_left_out: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Train ``network`` in place and return the flat float32 update of its trainable parameters.

    Args:
        group: the processes that train it together, each with the same arguments; every one
            of them returns the same update. This process alone if not given.
        on_step: told the number of every finished step.
        on_left_out: told, at the end, how many gradients were not finite and counted as zero;
            of all processes in the first one. The number depends on the data and must not
            leave the hospital.

    Raises:
        BadRowError: an image cannot be decoded and ``on_bad_image`` is ``FAIL``.
        UnsupportedLayerError: the network's per-sample gradients cannot be computed exactly.
        ProcessLostError, ProcessesDisagreeError: the group did not hold.
    """
    group = group or Alone()
    network.to(device).train()
    clipper = Clipper(network)
    patients = _rows_by_patient(records)
    base = _flat(network)
    parameters = base.astype(np.float64)
    scale = training.learning_rate / (training.sample_rate * training.declared_patients)
    draw = partial(_draw, patients, sample_rate=training.sample_rate)
    left_out = np.zeros(1, dtype=np.float64)
    for step in range(training.steps):
        batch = [records[row] for row in group.first_makes(draw, kind=np.int64)]
        # In single precision, as each batch's part of it is: doubles would be the largest thing
        # in memory.
        clipped = torch.zeros(clipper.size, device=device)
        for images, labels in _batches(
            group.share(batch), training=training, on_bad_image=on_bad_image
        ):
            left_out += clipper.add_clipped(
                clipped,
                images.to(device),
                labels.to(device),
                max_grad_norm=training.max_grad_norm,
            )
        total = clipped.double().cpu().numpy()
        group.add_up(total)
        release = partial(
            noised_sum,
            total,
            noise_multiplier=training.noise_multiplier,
            max_grad_norm=training.max_grad_norm,
        )
        parameters -= scale * group.first_makes(release, kind=np.float64)
        _set_flat(network, parameters)
        if on_step is not None:
            on_step(step + 1)
    group.check_same(parameters)
    group.add_up(left_out)
    if on_left_out is not None:
        on_left_out(int(left_out[0]))
    return (parameters - base).astype(np.float32)


def _rows_by_patient(records: Sequence[Record]) -> list[list[int]]:
    patients: dict[int, list[int]] = {}
    for row, record in enumerate(records):
        patients.setdefault(record.patient, []).append(row)
    return list(patients.values())


def _draw(patients: Sequence[Sequence[int]], *, sample_rate: float) -> NDArray[np.int64]:
    """A Poisson batch: one row of each chosen patient, whose share stays one gradient."""
    chosen = poisson_sample(len(patients), sample_rate=sample_rate)
    draws = uniforms(len(chosen))
    rows = [
        patients[index][min(int(draw * len(patients[index])), len(patients[index]) - 1)]
        for index, draw in zip(chosen, draws, strict=True)
    ]
    return np.array(rows, dtype=np.int64)


def _batches(
    records: Sequence[Record], *, training: FullTraining, on_bad_image: OnBadImage
) -> Iterator[Batch]:
    for start in range(0, len(records), training.physical_batch):
        samples = [
            sample
            for record in records[start : start + training.physical_batch]
            if (sample := _augmented(record, training.image_size, on_bad_image)) is not None
        ]
        if samples:
            images, labels = zip(*samples, strict=True)
            yield torch.stack(images), torch.tensor(labels)


def _augmented(
    record: Record, image_size: int, on_bad_image: OnBadImage
) -> tuple[Tensor, int] | None:
    try:
        square = load_image(record.path, image_size=image_size)
    except BadImageError as error:
        if on_bad_image is OnBadImage.FAIL:
            raise bad_row(SkippedRow(record.row, RowDefect.CORRUPT)) from error
        return None
    flip, rotation = uniforms(2)
    return render(square, augmentation(float(flip), float(rotation))), record.level


def _flat(network: nn.Module) -> NDArray[np.float32]:
    parts = [parameter.detach().cpu().numpy().ravel() for parameter in _trainable(network)]
    return np.concatenate(parts).astype(np.float32)


def _set_flat(network: nn.Module, values: Float64Array) -> None:
    start = 0
    with torch.no_grad():
        for parameter in _trainable(network):
            end = start + parameter.numel()
            part = torch.from_numpy(values[start:end].astype(np.float32))
            parameter.copy_(part.reshape(parameter.shape))
            start = end


def _trainable(network: nn.Module) -> list[nn.Parameter]:
    """In the order of ``Clipper``; a frozen parameter gets neither gradient nor noise."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
