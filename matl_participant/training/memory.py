"""How much memory a process has taken at most since it began.

Resident memory follows the number of images that are looked at together, and of ``head`` the
number of patients. So it is for the hospital's own operator, like the log it goes into.
"""

from pathlib import Path

import numpy as np
import torch

from matl_common.privacy.noise import Float64Array
from matl_common.worker import Message

_STATUS = Path("/proc/self/status")


def peak_memory(device: torch.device | None = None) -> Float64Array:
    """Bytes at most: resident, and of a CUDA device's memory in tensors (0 without one)."""
    on_device = 0
    if device is not None and device.type == "cuda":
        on_device = torch.cuda.max_memory_allocated(device)
    return np.array([_resident_peak(), on_device], dtype=np.float64)


def memory_message(process: str, peak: Float64Array) -> Message:
    """What a worker tells its daemon of it, as progress."""
    resident, on_device = (int(each) for each in peak)
    return {"process": process, "resident_bytes": resident, "device_bytes": on_device}


def _resident_peak() -> int:
    # Not getrusage's ru_maxrss, which a process that execs inherits from whoever started it.
    line = next(each for each in _STATUS.read_text().splitlines() if each.startswith("VmHWM:"))
    return int(line.split()[1]) << 10
