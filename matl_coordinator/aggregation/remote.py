"""One task of a pass, as a worker on another machine does it.

Nothing here knows how it got there. What a task comes to must be what the coordinator would
have come to, so a machine of another kind refuses it.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from matl_common.errors import ConfigurationError, MatlError
from matl_common.ids import digest_of
from matl_common.version import __version__
from matl_coordinator.aggregation.executor import LocalExecutor
from matl_coordinator.aggregation.rows import Work
from matl_coordinator.core.robust.ranges import Stretch
from matl_coordinator.ports import SharedStoreError

T = TypeVar("T")
_CPU_FACTS = ("model name", "flags", "CPU implementer", "CPU part", "Features")


class UnfitWorkerError(MatlError):
    """A worker cannot do a task as the coordinator would, which says nothing about the pass.

    It runs on another kind of machine or software, whose sums may round differently, or cannot
    read the updates.
    """


@cache
def machine_kind() -> str:
    """What the bits of a result depend on beside the rows: software, and the processor's kind."""
    import numba

    software = f"matl {__version__}, numpy {np.__version__}, numba {numba.__version__}"
    return f"{software}, Python {platform.python_version()}, {platform.machine()} {_processor()}"


def _processor() -> str:
    """A digest of what the kernel says of the first processor."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return platform.processor()
    return digest_of("\n".join(each for each in first if each.startswith(_CPU_FACTS)).encode())[:12]


def do_part(work: Work[T], stretch: Stretch, kind: str) -> list[T]:
    """What the stretches of a task come to, in order, on one thread.

    Args:
        work: cut to the stretch.
        stretch: begins at a chunk of the rows.
        kind: of the coordinator's machine.

    Raises:
        UnfitWorkerError: this machine is of another kind, or does not reach the store.
        MatlError: as ``Executor.run``.
    """
    if (here := machine_kind()) != kind:
        raise UnfitWorkerError(
            f"the worker on {platform.node()} has {here}, and the coordinator {kind}: their sums "
            "may differ in the last place; give both the same"
        )
    try:
        return list(LocalExecutor().run_part(work, stretch))
    except (SharedStoreError, ConfigurationError) as error:
        # The coordinator may have the mount, the credentials or the package that is missing here.
        raise UnfitWorkerError(f"the worker on {platform.node()}: {error}") from error
