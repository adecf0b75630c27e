"""One way to a step's gradients, measured alone in this process.

``python -m benchmarks.clipping.arms mixed 64 --batch 16`` prints one JSON object. Images are
random and weights untrained: the figures are about time and memory.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import numpy as np
import torch
import typer
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.utils import wrap_model
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn
from torch.nn import functional

from matl_common.vision.heads import build_network
from matl_participant.training.clipping.clipper import Clipper
from matl_participant.training.noising import noised_sum

NETWORK: Final = "resnet50_gn"
MAX_GRAD_NORM: Final = 1.0
_SEED: Final = 0
# Written to clear_refs: the peak begins anew (proc_pid_clear_refs(5)).
_RESET_PEAK: Final = "5"


class Arm(StrEnum):
    """What is compared. Only ``NON_PRIVATE`` clips nothing."""

    NON_PRIVATE = "nonprivate"
    HOOKS = "hooks"
    GHOST = "ghost"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Figures:
    """One process: medians over its steps."""

    seconds_per_image: float
    cpu_seconds_per_image: float
    peak_bytes_above_idle: int
    """Idle: every library loaded, no network yet."""
    gradient_norm: float
    """Of what one step sums up, to check that the arms do the same."""


# One step, and the norm of what it summed up, which is read only after the first.
_Prepared = tuple[Callable[[], None], Callable[[], float]]


def measure(arm: Arm, *, image_size: int, batch: int, steps: int) -> Figures:
    """Time ``steps`` steps after one that warms up."""
    idle = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    # So that every arm sees the same numbers; nothing here is private.
    torch.manual_seed(_SEED)
    network = build_network(NETWORK).train()
    images = torch.randn(batch, 3, image_size, image_size)
    labels = torch.arange(batch) % 5
    step, norm = _ARMS[arm](network, images, labels)
    step()
    gradient_norm = norm()
    walls, processors = [], []
    for _ in range(steps):
        wall, processor = time.perf_counter(), time.process_time()
        step()
        walls.append((time.perf_counter() - wall) / batch)
        processors.append((time.process_time() - processor) / batch)
    peak = _status_bytes("VmHWM") - idle
    return Figures(median(walls), median(processors), peak, gradient_norm)


def _non_private(network: nn.Module, images: Tensor, labels: Tensor) -> _Prepared:
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(functional.cross_entropy(network(images), labels))
        optimizer.step()

    return step, lambda: 0.0


def _mixed(network: nn.Module, images: Tensor, labels: Tensor) -> _Prepared:
    clipper = Clipper(network)
    total = torch.zeros(clipper.size)

    def step() -> None:
        clipper.add_clipped(total, images, labels, max_grad_norm=MAX_GRAD_NORM)

    return step, lambda: float(torch.linalg.vector_norm(total).double())


_PRIVATE_SETTINGS: Final = {
    "noise_multiplier": 0.0,
    "max_grad_norm": MAX_GRAD_NORM,
    "expected_batch_size": 1,
    "loss_reduction": "sum",
}


def _hooks(network: nn.Module, images: Tensor, labels: Tensor) -> _Prepared:
    module = GradSampleModule(network, loss_reduction="sum")
    sgd = torch.optim.SGD(network.parameters(), lr=1e-6)
    optimizer = DPOptimizer(sgd, **_PRIVATE_SETTINGS)

    def step() -> None:
        loss = functional.cross_entropy(module(images), labels, reduction="sum")
        torch.autograd.backward(loss)
        _accumulate(optimizer)

    return step, lambda: _summed_norm(optimizer)


def _ghost(network: nn.Module, images: Tensor, labels: Tensor) -> _Prepared:
    module = wrap_model(
        network, grad_sample_mode="ghost", max_grad_norm=MAX_GRAD_NORM, loss_reduction="sum"
    )
    sgd = torch.optim.SGD(network.parameters(), lr=1e-6)
    optimizer = DPOptimizerFastGradientClipping(sgd, **_PRIVATE_SETTINGS)
    criterion = DPLossFastGradientClipping(
        module, optimizer, nn.CrossEntropyLoss(reduction="sum"), loss_reduction="sum"
    )

    def step() -> None:
        criterion(module(images), labels).backward()
        _accumulate(optimizer)

    return step, lambda: _summed_norm(optimizer)


def _accumulate(optimizer: DPOptimizer) -> None:
    # Another part of the same logical batch follows: the sum stays, and no noise is added.
    optimizer.signal_skip_step(do_skip=True)
    optimizer.step()
    optimizer.zero_grad()


def _summed_norm(optimizer: DPOptimizer) -> float:
    parts = [torch.linalg.vector_norm(each.summed_grad).double() for each in optimizer.params]
    return float(torch.stack(parts).norm())


_ARMS: Final = {
    Arm.NON_PRIVATE: _non_private,
    Arm.HOOKS: _hooks,
    Arm.GHOST: _ghost,
    Arm.MIXED: _mixed,
}


def release_seconds() -> float:
    """The noise of one release of the whole network: once a step, whatever the batch."""
    size = sum(parameter.numel() for parameter in build_network(NETWORK).parameters())
    start = time.perf_counter()
    noised_sum(np.zeros(size), noise_multiplier=1.0, max_grad_norm=MAX_GRAD_NORM)
    return time.perf_counter() - start


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"this kernel does not tell {field}")


def command(
    arm: Arm,
    image_size: int,
    *,
    batch: Annotated[int, typer.Option()],
    steps: Annotated[int, typer.Option()],
) -> None:
    """Measure one arm at one size."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    figures = measure(arm, image_size=image_size, batch=batch, steps=steps)
    print(json.dumps(asdict(figures)))


if __name__ == "__main__":
    typer.run(command)
