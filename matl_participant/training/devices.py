"""Where a job computes, chosen once at its start, and how much it may take."""

import torch

from matl_common.errors import ConfigurationError


def choose_device(name: str, *, memory_bytes: int | None) -> torch.device:
    """``auto``, ``cuda``, ``mps`` or ``cpu`` to a device that is there.

    Args:
        name: ``auto`` takes the first of cuda, mps and cpu that is available.
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
    device = torch.device(name)
    if name == "cuda" and memory_bytes is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_bytes / total), device)
    return device


def bound_threads(workers: int) -> None:
    """Limit the processor threads that tensor operations use."""
    torch.set_num_threads(workers)
