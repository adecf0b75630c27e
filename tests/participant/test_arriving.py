import asyncio
import os
from pathlib import Path

import pytest

from matl_common.ids import digest_of
from matl_participant.arriving import ArrivingFile

BLOCKS = (os.urandom(300), os.urandom(7), os.urandom(100_000))
WHOLE = b"".join(BLOCKS)


async def test_what_came_is_in_the_file_and_its_digest_known(tmp_path: Path) -> None:
    path = tmp_path / "model.part"
    async with ArrivingFile.open(path) as file:
        for block in BLOCKS:
            await file.add(memoryview(block))
        assert await file.digest() == digest_of(WHOLE)
        assert path.read_bytes() == WHOLE


async def test_a_file_that_was_begun_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "model.part"
    path.write_bytes(BLOCKS[0])
    async with ArrivingFile.open(path) as file:
        for block in BLOCKS[1:]:
            await file.add(block)
        assert await file.digest() == digest_of(WHOLE)
    assert path.read_bytes() == WHOLE


async def add_and_fail(path: Path) -> None:
    async with ArrivingFile.open(path) as file:
        await file.add(BLOCKS[0])
        raise ConnectionError


async def test_what_came_stays_whatever_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "model.part"
    with pytest.raises(ConnectionError):
        await add_and_fail(path)
    assert path.read_bytes() == BLOCKS[0]


async def test_one_who_leaves_does_not_close_the_file_under_the_thread(tmp_path: Path) -> None:
    path, begun = tmp_path / "model.part", asyncio.Event()

    async def leave() -> None:
        async with ArrivingFile.open(path) as file:
            await file.add(WHOLE)
            begun.set()
            await asyncio.Event().wait()

    leaving = asyncio.create_task(leave())
    await begun.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert path.read_bytes() == WHOLE


async def test_a_block_that_cannot_be_written_is_an_error_of_the_next_or_of_the_digest(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.part"
    path.touch()
    with path.open("rb") as unwritable:
        file = ArrivingFile(unwritable)
        await file.add(WHOLE)
        with pytest.raises(OSError, match="write"):
            await file.add(WHOLE)
        with pytest.raises(OSError, match="write"):
            await file.digest()
