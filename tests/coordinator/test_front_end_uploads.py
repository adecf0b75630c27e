"""What a front end leaves of an upload that is cut."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from threading import Event
from typing import cast

import pytest

from matl_common.wire.chunks import Numbered
from matl_coordinator.ingest.leader import Leader
from matl_coordinator.ingest.loan_call import LoanCall
from matl_coordinator.ingest.metrics import FrontEndMetrics
from matl_coordinator.ingest.uploads import Uploads
from matl_coordinator.store.files import LocalFiles
from matl_coordinator.store.loans import Loans
from matl_coordinator.store.spool import DiskSpool
from tests.store.test_loans import BYTES, CHUNKS, HASHES, NODE, ROUND, UPDATE, receive


class _Held(LocalFiles):
    """A disk that is slow at copying."""

    def __init__(self) -> None:
        self.began, self.may_go_on = Event(), Event()

    def write(self, descriptor: int, data: bytes | memoryview, *, offset: int) -> None:
        self.began.set()
        assert self.may_go_on.wait(30)
        super().write(descriptor, data, offset=offset)


async def _last_chunk() -> AsyncIterator[Numbered | str | None]:
    yield Numbered(len(CHUNKS) - 1, CHUNKS[-1])


def _open_files(folder: Path) -> list[str]:
    found = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            found.append(os.readlink(each))
        except FileNotFoundError:
            # That of the listing itself.
            continue
    return [each for each in found if each.startswith(str(folder))]


async def test_an_upload_that_is_cut_while_others_chunks_are_copied_leaves_no_file_open(
    tmp_path: Path,
) -> None:
    folder, files = tmp_path / "spool", _Held()
    spool = DiskSpool.open_folder(folder)

    def lend() -> str:
        return spool.lend(ROUND, NODE, byte_count=BYTES, chunk_hashes=HASHES)

    receive(Loans(folder), lend(), end=2)
    uploads = Uploads(
        cast("Leader", None),
        Loans(folder, files=files),
        idle_seconds=30.0,
        meter=FrontEndMetrics(methods=[]),
    )
    taking = asyncio.create_task(uploads._take(LoanCall(None), UPDATE, lend(), _last_chunk()))
    assert await asyncio.to_thread(files.began.wait, 30)
    assert _open_files(folder)
    taking.cancel()
    # The cut arrives while the copy is still being made.
    await asyncio.wait({taking}, timeout=0.05)
    files.may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert _open_files(folder) == []
