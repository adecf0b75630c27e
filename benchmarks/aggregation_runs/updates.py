"""Files of the size and kind of ResNet-50 updates, as the coordinator spools them.

Random numbers stand for what hospitals send: time and memory do not depend on more.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np

from matl_common.tensors import ELEMENT_BYTES

ELEMENTS: Final = 25_557_032
"""Parameters of ResNet-50 with ImageNet's head, as in the peer's baseline."""
UPDATE_BYTES: Final = ELEMENTS * ELEMENT_BYTES
# What is left on the disk for everybody else.
_SPARE_BYTES: Final = 4 << 30
_BLOCK_BYTES: Final = 8 << 20


def update_path(folder: Path, index: int) -> Path:
    """Where an update is."""
    return folder / f"update_{index:03}.f32"


def fitting(folder: Path, wanted: int) -> int:
    """How many updates the disk can hold, at most ``wanted``."""
    have = sum(update_path(folder, index).exists() for index in range(wanted))
    room = max(0, shutil.disk_usage(folder).free - _SPARE_BYTES) // UPDATE_BYTES
    return min(wanted, have + room)


def make_updates(folder: Path, count: int, *, on_update: Callable[[], None]) -> None:
    """Write the updates that are not there yet: a common direction and noise, both small."""
    common = np.random.default_rng(0).standard_normal(ELEMENTS, dtype=np.float32)

    def make(index: int) -> None:
        path = update_path(folder, index)
        if not path.exists() or path.stat().st_size != UPDATE_BYTES:
            values = np.random.default_rng(index + 1).standard_normal(ELEMENTS, dtype=np.float32)
            values += common
            values *= np.float32(1e-4)
            values.astype("<f4", copy=False).tofile(path)
        on_update()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(make, range(count)))


def read_through(folder: Path, count: int) -> None:
    """Read the updates once, so that those the page cache has room for are in it."""
    block = bytearray(_BLOCK_BYTES)
    for index in range(count):
        with update_path(folder, index).open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def fits_page_cache(count: int) -> bool:
    """Whether that many updates can stay in memory, by what is available now."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    (available,) = [int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line]
    return count * UPDATE_BYTES < available * 0.8


def remove_updates(folder: Path) -> None:
    """Give the disk back."""
    for path in folder.glob("update_*.f32"):
        os.unlink(path)
