"""A call's messages, of which each must come in time.

gRPC bounds how large a message is and how many calls a connection has, not how long a
caller may keep a call open without a word. Nothing here knows what a message means.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
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


async def only_message(messages: AsyncIterator[T]) -> T:
    """The message of a call that has one; what follows it is not read.

    Raises:
        InvalidInputError: there is none.
    """
    async for message in messages:
        return message
    raise InvalidInputError("the call has no message")
