"""The chunks of one stream, each taken while the next is on its way.

Nothing here knows where chunks go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from matl_common.errors import InvalidInputError
from matl_common.wire.chunks import Numbered
from matl_coordinator.rpc.turns import Turn, Turns

Take = Callable[[int, bytes | memoryview], Awaitable[asyncio.Future[None]]]
"""Begins to take a chunk, once the one before is taken; returns when it is."""


async def take_all(
    requests: AsyncIterator[Numbered | str | None],
    *,
    take: Take,
    turns: Turns,
    on_bytes: Callable[[int], None],
) -> None:
    """Take every chunk of a stream; the last may not be taken yet when this returns.

    Args:
        requests: what follows the update's name.
        take: raises what ends the stream.
        turns: at having a chunk in memory.
        on_bytes: told of every chunk's length.

    Raises:
        InvalidInputError: something else than a chunk came.
    """
    turn = await turns.one()
    try:
        async for message in requests:
            if not isinstance(message, Numbered):
                raise InvalidInputError("only chunks may follow the update's name")
            taking = await take(message.number, message.data)
            taking.add_done_callback(partial(_end, turn))
            on_bytes(len(message.data))
            # Who waits for a turn has no chunk in memory.
            del message
            turn = await turns.one()
    finally:
        turn.end()


def _end(turn: Turn, _: object) -> None:
    turn.end()
