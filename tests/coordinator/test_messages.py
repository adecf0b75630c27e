from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from matl_coordinator.rpc.messages import IdleError, in_time, one_ahead


class Source:
    """Gives numbers, and remembers how far it was asked."""

    def __init__(self, last: int, *, then: Exception | None = None) -> None:
        self.asked = 0
        self._last, self._then = last, then

    async def __aiter__(self) -> AsyncIterator[int]:
        while self.asked < self._last:
            self.asked += 1
            yield self.asked
        if self._then is not None:
            raise self._then


async def take(messages: AsyncGenerator[int, None], into: list[int]) -> None:
    async with aclosing(messages) as open_messages:
        async for message in open_messages:
            into.append(message)


async def test_all_messages_come_in_order_and_the_next_is_fetched_while_one_is_used() -> None:
    source, taken = Source(4), []
    async with aclosing(one_ahead(aiter(source))) as messages:
        async for message in messages:
            await asyncio.sleep(0)
            taken.append((message, source.asked))
    assert taken == [(1, 2), (2, 3), (3, 4), (4, 4)]


async def test_what_breaks_a_stream_comes_after_its_last_message() -> None:
    taken: list[int] = []
    with pytest.raises(ConnectionError):
        await take(one_ahead(aiter(Source(2, then=ConnectionError()))), taken)
    assert taken == [1, 2]


async def test_a_stream_that_is_left_is_read_no_further() -> None:
    source = Source(9)
    async with aclosing(one_ahead(aiter(source))) as messages:
        async for _ in messages:
            await asyncio.sleep(0)
            break
    await asyncio.sleep(0.01)
    assert source.asked == 2


async def test_an_error_fetched_ahead_for_nobody_is_nobodys(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with aclosing(one_ahead(aiter(Source(1, then=ConnectionError())))) as messages:
        async for _ in messages:
            await asyncio.sleep(0)
            break
    await asyncio.sleep(0.01)
    assert not caplog.records


async def test_a_caller_that_falls_silent_is_noticed_one_ahead_too() -> None:
    async def silent() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    with pytest.raises(IdleError):
        await take(one_ahead(in_time(silent(), idle_seconds=0.01)), [])


async def test_a_stream_whose_next_message_never_comes_can_be_left() -> None:
    async def silent() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async with asyncio.timeout(30), aclosing(one_ahead(silent())) as messages:
        async for _ in messages:
            await asyncio.sleep(0)
            break
