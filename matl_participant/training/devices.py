"""Where a job computes, chosen once at its start, and how much it may take."""

import torch

from matl_common.errors import ConfigurationError


def choose_device(name: str, *, memory_bytes: int | None, index: int = 0) -> torch.device:
    """``auto``, ``cuda``, ``mps`` or ``cpu`` to a device that is there.

    Args:
        name: ``auto`` takes the first of cuda, mps and cpu that is available.
        index: which of several CUDA devices; the number of the process among those that
            train together.
        memory_bytes: bound on this process's share of a CUDA device's memory. The main
            memory of the process is bounded by whoever started it.

    Raises:
        ConfigurationError: the device asked for is absent.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(candidate for candidate, present in available.items() if present)
    if not available.get(name, False):
        raise ConfigurationError(f"device {name!r} is not available on this machine; use 'auto'")
    if name != "cuda":
        return torch.device(name)
    device = torch.device(name, index)
    torch.cuda.set_device(device)
    if memory_bytes is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_bytes / total), device)
    return device


def count_processes(name: str, *, asked: int | None) -> int:
    """How many processes train together: as asked for, or one for each CUDA device.

    Args:
        name: as in ``choose_device``.
        asked: ``None`` leaves it to the machine, which without CUDA is one.

    Raises:
        ConfigurationError: the machine has not so many devices.
    """
    devices: int | None = None
    if name in {"auto", "cuda"} and torch.cuda.is_available():
        devices = torch.cuda.device_count()
    elif name == "mps" or (name == "auto" and torch.backends.mps.is_available()):
        devices = 1
    if asked is None:
        return devices or 1
    if devices is not None and asked > devices:
        raise ConfigurationError(
            f"{asked} training processes need a device each, and this machine has {devices}; lower "
            "training.processes or set training.device = 'cpu'"
        )
    return asked


def bound_threads(workers: int) -> None:
    """Limit the processor threads that tensor operations use."""
    torch.set_num_threads(workers)
