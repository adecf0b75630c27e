from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc.aio
import pytest

from matl_coordinator.rpc.messages import IdleError, InTime


async def numbers(*, then: Exception | None = None) -> AsyncIterator[int]:
    for number in (1, 2, 3):
        yield number
    if then is not None:
        raise then


def reading(messages: AsyncIterator[object]) -> Callable[[], Awaitable[object]]:
    """As a call's context reads: one by one, and then the end."""

    async def read() -> object:
        return await anext(messages, grpc.aio.EOF)

    return read


async def take(messages: AsyncIterator[int], into: list[int]) -> None:
    async for message in messages:
        into.append(message)


async def test_all_messages_come_in_order() -> None:
    taken: list[int] = []
    await take(InTime[int](reading(numbers()), idle_seconds=30.0), taken)
    assert taken == [1, 2, 3]


async def test_what_breaks_a_stream_comes_after_its_last_message() -> None:
    taken: list[int] = []
    with pytest.raises(ConnectionError):
        await take(InTime[int](reading(numbers(then=ConnectionError())), idle_seconds=30.0), taken)
    assert taken == [1, 2, 3]


async def test_a_caller_that_falls_silent_is_noticed() -> None:
    async def silent() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    taken: list[int] = []
    with pytest.raises(IdleError):
        await take(InTime[int](reading(silent()), idle_seconds=0.01), taken)
    assert taken == [1]


async def test_a_message_that_follows_may_be_on_its_way_for_longer_than_silence_may_last() -> None:
    async def slow() -> AsyncIterator[int]:
        for number in (1, 2):
            yield number
            await asyncio.sleep(0.05)

    taken: list[int] = []
    messages = InTime[int](reading(slow()), idle_seconds=0.01, on_the_way_seconds=30.0)
    await take(messages, taken)
    assert taken == [1, 2]


async def test_a_first_message_has_no_more_time_than_silence_has() -> None:
    async def silent() -> object:
        return await asyncio.Event().wait()

    messages = InTime[int](silent, idle_seconds=0.01, on_the_way_seconds=30.0)
    with pytest.raises(IdleError, match=r"0\.01 s"):
        await anext(messages)


async def test_a_message_that_was_given_out_is_not_kept() -> None:
    class Message:
        pass

    async def read() -> object:
        return Message()

    messages = InTime[Message](read, idle_seconds=30.0)
    message = await anext(messages)
    kept = weakref.ref(message)
    del message
    assert kept() is None
