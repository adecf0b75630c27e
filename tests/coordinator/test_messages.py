from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from matl_coordinator.rpc.messages import IdleError, in_time


async def numbers(*, then: Exception | None = None) -> AsyncIterator[int]:
    for number in (1, 2, 3):
        yield number
    if then is not None:
        raise then


async def take(messages: AsyncIterator[int], into: list[int]) -> None:
    async for message in messages:
        into.append(message)


async def test_all_messages_come_in_order() -> None:
    taken: list[int] = []
    await take(in_time(numbers(), idle_seconds=30.0), taken)
    assert taken == [1, 2, 3]


async def test_what_breaks_a_stream_comes_after_its_last_message() -> None:
    taken: list[int] = []
    with pytest.raises(ConnectionError):
        await take(in_time(numbers(then=ConnectionError()), idle_seconds=30.0), taken)
    assert taken == [1, 2, 3]


async def test_a_caller_that_falls_silent_is_noticed() -> None:
    async def silent() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    taken: list[int] = []
    with pytest.raises(IdleError):
        await take(in_time(silent(), idle_seconds=0.01), taken)
    assert taken == [1]
