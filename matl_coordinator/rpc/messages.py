"""A call's messages, of which each must come in time.

gRPC bounds how large a message is and how many calls a connection has, not how long a
caller may keep a call open without a word. Nothing here knows what a message means.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

from matl_common.errors import InvalidInputError, MatlError

T = TypeVar("T")


class IdleError(MatlError):
    """The caller kept a call open and said nothing; it may call again."""


async def in_time(messages: AsyncIterator[T], *, idle_seconds: float) -> AsyncIterator[T]:
    """Yield the messages of a stream for as long as each follows the one before soon enough.

    Raises:
        IdleError: one did not.
    """
    while True:
        try:
            async with asyncio.timeout(idle_seconds):
                message = await anext(messages)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise IdleError(
                f"nothing came for {idle_seconds:g} s; connect again and resume"
            ) from error
        yield message


async def one_ahead(messages: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """Yield the messages of a stream, of which the next is on its way while one is used.

    Close it (``contextlib.aclosing``), or the stream may be read once more behind one's back.
    """
    coming = asyncio.ensure_future(_next(messages))
    try:
        while (found := await coming) is not None:
            coming = asyncio.ensure_future(_next(messages))
            yield found[0]
    finally:
        coming.cancel()
        # What it brought, be it an error, is nobody's any more.
        await asyncio.wait({coming})
        if not coming.cancelled():
            coming.exception()


async def _next(messages: AsyncIterator[T]) -> tuple[T] | None:
    async for message in messages:
        return (message,)
    return None


async def only_message(messages: AsyncIterator[T]) -> T:
    """The message of a call that has one; what follows it is not read.

    Raises:
        InvalidInputError: there is none.
    """
    async for message in messages:
        return message
    raise InvalidInputError("the call has no message")
