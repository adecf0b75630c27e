"""The ``full`` recipe: DP-SGD with Poisson sampling over a whole GroupNorm network.

Opacus computes per-sample gradients; sampling, clipping, noise and normalisation are done
here. One step: every patient is drawn independently with the sample rate, one of its
images is augmented, its gradient is clipped to C, the sum is noised (an empty batch too)
and divided by the *expected* batch of the declared, public number of patients.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import (
    GradSampleModule,
)
from torch import Tensor, nn
from torch.nn import functional

from matl_common.privacy.noise import Float64Array, poisson_sample, uniforms
from matl_common.vision.dataset import OnBadImage, Record, RowDefect, SkippedRow, bad_row
from matl_common.vision.images import BadImageError, augmentation, load_image, render
from matl_participant.training.noising import noised_sum

Batch = tuple[Tensor, Tensor]


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
        physical_batch: samples whose gradients are in memory at once.
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
    on_step: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Train ``network`` in place and return the flat float32 update of all parameters.

    Raises:
        BadRowError: an image cannot be decoded and ``on_bad_image`` is ``FAIL``.
    """
    module = GradSampleModule(network.to(device), loss_reduction="sum")
    module.train()
    patients = _records_by_patient(records)
    base = _flat(network)
    parameters = base.astype(np.float64)
    scale = training.learning_rate / (training.sample_rate * training.declared_patients)
    try:
        for step in range(training.steps):
            drawn = poisson_sample(len(patients), sample_rate=training.sample_rate)
            total = np.zeros(parameters.size, dtype=np.float64)
            for images, labels in _batches(
                _one_image_each(patients, drawn), training=training, on_bad_image=on_bad_image
            ):
                total += clipped_sum(
                    module,
                    images.to(device),
                    labels.to(device),
                    max_grad_norm=training.max_grad_norm,
                )
            parameters -= scale * noised_sum(
                total,
                noise_multiplier=training.noise_multiplier,
                max_grad_norm=training.max_grad_norm,
            )
            _set_flat(network, parameters)
            if on_step is not None:
                on_step(step + 1)
    finally:
        module.remove_hooks()
    return (parameters - base).astype(np.float32)


def clipped_sum(
    module: GradSampleModule, images: Tensor, labels: Tensor, *, max_grad_norm: float
) -> Float64Array:
    """The flat sum of per-sample cross-entropy gradients, each of norm at most ``max_grad_norm``.

    A sample whose gradient is not finite contributes nothing.
    """
    module.zero_grad(set_to_none=True)
    # Opacus's hooks warn of inputs without gradient. The sum, not the mean: a sample's
    # gradient must not depend on the others.
    logits = module(images.detach().requires_grad_())
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    torch.autograd.backward(loss)
    samples = [_grad_sample(parameter) for parameter in module.parameters()]
    norms = torch.stack(
        [torch.linalg.vector_norm(s.flatten(1), dim=1, dtype=torch.float64) for s in samples]
    ).norm(dim=0)
    finite = torch.isfinite(norms)
    factors = (max_grad_norm / norms.clamp_min(max_grad_norm))[finite].float()
    if not bool(finite.all()):
        # Left out, not multiplied by zero: zero times NaN is still NaN.
        samples = [s[finite] for s in samples]
    total = [torch.tensordot(factors, s, dims=1).flatten() for s in samples]
    module.zero_grad(set_to_none=True)
    result: Float64Array = torch.cat(total).cpu().numpy().astype(np.float64)
    return result


def _grad_sample(parameter: Tensor) -> Tensor:
    sample = parameter.grad_sample  # type: ignore[attr-defined]  # set by Opacus's hooks
    assert isinstance(sample, Tensor)  # a list only with batch accumulation
    return sample


def _records_by_patient(records: Sequence[Record]) -> list[list[Record]]:
    patients: dict[int, list[Record]] = {}
    for record in records:
        patients.setdefault(record.patient, []).append(record)
    return list(patients.values())


def _one_image_each(patients: Sequence[Sequence[Record]], chosen: NDArray[np.intp]) -> list[Record]:
    """One image of each chosen patient, so that a patient's share stays one gradient."""
    draws = uniforms(len(chosen))
    return [
        patients[index][min(int(draw * len(patients[index])), len(patients[index]) - 1)]
        for index, draw in zip(chosen, draws, strict=True)
    ]


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
    parts = [parameter.detach().cpu().numpy().ravel() for parameter in network.parameters()]
    return np.concatenate(parts).astype(np.float32)


def _set_flat(network: nn.Module, values: Float64Array) -> None:
    start = 0
    with torch.no_grad():
        for parameter in network.parameters():
            end = start + parameter.numel()
            part = torch.from_numpy(values[start:end].astype(np.float32))
            parameter.copy_(part.reshape(parameter.shape))
            start = end
