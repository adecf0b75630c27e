from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from matl_common.errors import InvalidInputError
from matl_common.tensors import CHUNK_BYTES
from matl_common.wire.chunks import parse_block
from matl_coordinator.rpc.blocks import ModelBlocks, block_end, check_offset

SIZE = 2 * CHUNK_BYTES + 1000
CONTENT = os.urandom(SIZE)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.write_bytes(CONTENT)
    return path


async def fetched(blocks: ModelBlocks, model: Path, offset: int = 0) -> bytes:
    """What a hospital gets that has ``offset`` bytes."""
    found = b""
    while offset + len(found) < SIZE:
        block = parse_block(await blocks.at(model, offset + len(found)))
        assert block.number == offset + len(found)
        found += block.data
    return found


@pytest.mark.parametrize("offset", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, SIZE - 1, SIZE])
async def test_a_model_comes_whole_from_any_offset(model: Path, offset: int) -> None:
    assert await fetched(ModelBlocks(), model, offset) == CONTENT[offset:]


async def test_hospitals_that_fetch_at_once_get_the_same_blocks(model: Path) -> None:
    blocks = ModelBlocks()
    first, second = await asyncio.gather(blocks.at(model, 0), blocks.at(model, 0))
    assert first is second
    assert await blocks.at(model, 0) is first


async def test_only_the_last_blocks_are_kept(model: Path) -> None:
    blocks = ModelBlocks(kept=2)
    first = await blocks.at(model, 0)
    for number in (1, 2):
        await blocks.at(model, number * CHUNK_BYTES)
    assert await blocks.at(model, 0) is not first


async def test_none_are_kept_once_nobody_fetches(model: Path) -> None:
    blocks = ModelBlocks()
    with blocks.in_use():
        with blocks.in_use():
            first = await blocks.at(model, 0)
        assert await blocks.at(model, 0) is first
    assert await blocks.at(model, 0) is not first


async def test_a_hospital_that_goes_away_leaves_the_block_to_the_others(model: Path) -> None:
    blocks = ModelBlocks()
    gone, stays = (asyncio.create_task(blocks.at(model, 0)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    assert parse_block(await stays).data == CONTENT[:CHUNK_BYTES]


async def test_a_block_that_could_not_be_read_is_read_again(tmp_path: Path) -> None:
    blocks, model = ModelBlocks(), tmp_path / "model"
    with pytest.raises(FileNotFoundError):
        await blocks.at(model, 0)
    model.write_bytes(b"x" * SIZE)
    assert parse_block(await blocks.at(model, 0)).data == b"x" * CHUNK_BYTES


def test_an_offset_beyond_the_end_is_refused(model: Path) -> None:
    assert check_offset(model, SIZE) == SIZE
    with pytest.raises(InvalidInputError, match="fewer than the offset"):
        check_offset(model, SIZE + 1)


def test_blocks_end_where_chunks_do() -> None:
    assert [block_end(each) for each in (0, CHUNK_BYTES - 1, CHUNK_BYTES)] == [
        CHUNK_BYTES,
        CHUNK_BYTES,
        2 * CHUNK_BYTES,
    ]


async def test_whoever_is_ahead_waits_for_those_who_would_lose_their_blocks(model: Path) -> None:
    blocks = ModelBlocks(kept=4)
    with blocks.in_use() as ahead, blocks.in_use() as behind:
        await behind.reach(model, 0)
        await ahead.reach(model, CHUNK_BYTES)
        waiting = asyncio.create_task(ahead.reach(model, 2 * CHUNK_BYTES))
        await asyncio.sleep(0)
        assert not waiting.done()
        await behind.reach(model, CHUNK_BYTES)
        await waiting


async def test_who_is_slow_is_left_behind(model: Path) -> None:
    blocks = ModelBlocks(kept=2)
    async with asyncio.timeout(30.0):
        with blocks.in_use() as ahead, blocks.in_use() as slow:
            await slow.reach(model, 0)
            await ahead.reach(model, CHUNK_BYTES)
            # Out of reach by now: nobody waits for it any more.
            for number in range(2, 1000):
                await ahead.reach(model, number * CHUNK_BYTES)


async def test_nobody_waits_for_another_model_or_for_who_is_gone(model: Path) -> None:
    blocks = ModelBlocks(kept=2)
    with blocks.in_use() as ahead:
        with blocks.in_use() as gone:
            await gone.reach(model, 0)
        with blocks.in_use() as other:
            await other.reach(model.parent, 0)
            reaching = asyncio.create_task(ahead.reach(model, CHUNK_BYTES))
            await asyncio.sleep(0)
            assert reaching.done()
