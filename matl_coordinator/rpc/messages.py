"""A call's messages, of which each must come in time.

gRPC bounds how large a message is and how many calls a connection has, not how long a
caller may keep a call open without a word. It tells of a message only once all of it is there,
so a large one seems like silence for as long as a slow link takes. Nothing here knows what a
message means.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar, cast

import grpc.aio

from matl_common.errors import InvalidInputError, MatlError

T = TypeVar("T")


class IdleError(MatlError):
    """The caller kept a call open and said nothing; it may call again."""


class InTime(AsyncIterator[T]):
    """The messages of a stream, for as long as each follows the one before soon enough.

    Keeps none of them, unlike a generator, whose variable would hold a chunk of every stream that
    waits for its turn; gRPC's own iterator is one, so messages are asked for one by one.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[Any]],
        *,
        idle_seconds: float,
        on_the_way_seconds: float = 0.0,
    ) -> None:
        """Take messages from ``read``, until it gives ``grpc.aio.EOF``.

        Every message but the first may be on its way for ``on_the_way_seconds`` besides.
        """
        self._read = read
        self._patience_seconds = idle_seconds
        self._later_patience_seconds = idle_seconds + on_the_way_seconds

    async def __anext__(self) -> T:
        """The next one.

        Raises:
            IdleError: it did not come in time.
        """
        try:
            async with asyncio.timeout(self._patience_seconds):
                message = await self._read()
        except TimeoutError as error:
            raise IdleError(
                f"nothing came for {self._patience_seconds:g} s; connect again and resume"
            ) from error
        self._patience_seconds = self._later_patience_seconds
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return cast("T", message)


async def only_message(messages: AsyncIterator[T]) -> T:
    """The message of a call that has one; what follows it is not read.

    Raises:
        InvalidInputError: there is none.
    """
    async for message in messages:
        return message
    raise InvalidInputError("the call has no message")
