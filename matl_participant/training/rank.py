"""One of the processes that work together, as PyTorch's launcher starts it.

Reads the request from the folder that ``processes`` made, joins the others there, does its
share, and says on standard output what a worker would say. Only the first process reports
what is done and writes what comes of it.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import assert_never

import torch

from matl_common.worker import Message, ReportProgress, serve
from matl_participant.training.dataset import meet
from matl_participant.training.devices import bound_threads, choose_device
from matl_participant.training.extraction import extract_together
from matl_participant.training.group import ProcessGroup, joined
from matl_participant.training.memory import memory_message, peak_memory
from matl_participant.training.nodes import settled
from matl_participant.training.processes import REQUEST_FILE
from matl_participant.training.requests import (
    ExtractRequest,
    MeetRequest,
    Shared,
    TrainRequest,
    parse_order,
)
from matl_participant.training.worker import explaining_memory, train_full_round

_PR_SET_PDEATHSIG = 1


def main(folder: Path, *, launcher_group: int) -> None:
    """Work as one of several; the launcher's environment says as which."""
    _end_with_launcher(launcher_group)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    here, beside = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])

    def handle(message: Message, report: ReportProgress) -> Message:
        order = parse_order(message)
        resources = order.resources
        nodes = resources.nodes
        bound_threads(resources.threads_each(beside))
        device = choose_device(
            resources.device, memory_bytes=resources.device_memory_bytes, index=here
        )
        with (
            explaining_memory(),
            joined(
                folder if nodes is None else None,
                rank=rank,
                size=size,
                device=device,
                stall_seconds=resources.stall_seconds,
            ) as group,
        ):
            request = settled(order, group, folder=folder)
            answer = _share(request, device, report if rank == 0 else _silent, group)
            for process, peak in enumerate(group.gather(peak_memory(device))):
                report({"memory": memory_message(str(process), peak)})
            return answer

    serve(handle, [(folder / REQUEST_FILE).read_text()])


def _share(
    request: Shared, device: torch.device, report: ReportProgress, group: ProcessGroup
) -> Message:
    match request:
        case TrainRequest():
            return train_full_round(request, device, report, group=group)
        case ExtractRequest():
            return extract_together(request, device, group, report)
        case MeetRequest():
            meet(request, group)
            return {}
        case _:
            assert_never(request)


def _silent(_: Message) -> None:
    """The first process reports for all."""


def _end_with_launcher(group: int) -> None:
    """Let the kernel kill this process when the launcher dies, by which the others are ended.

    The launcher gives each process a session of its own, so that whoever kills the worker's
    process group does not reach it.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getpgid(os.getppid()) != group:
        sys.exit("the launcher died while this process started")


if __name__ == "__main__":
    main(Path(sys.argv[1]), launcher_group=int(sys.argv[2]))
