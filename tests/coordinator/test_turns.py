from __future__ import annotations

import asyncio

from matl_coordinator.rpc.turns import Turns


async def test_no_more_turns_are_out_than_there_are() -> None:
    turns = Turns(most=2, seconds=60.0)
    first, _ = [await turns.one() for _ in range(2)]
    third = asyncio.create_task(turns.one())
    await asyncio.sleep(0.01)
    assert not third.done()
    first.end()
    (await third).end()


async def test_a_turn_is_given_back_once() -> None:
    turns = Turns(most=1, seconds=60.0)
    turn = await turns.one()
    turn.end()
    turn.end()
    await turns.one()
    second = asyncio.create_task(turns.one())
    await asyncio.sleep(0.01)
    assert not second.done()
    second.cancel()


async def test_who_is_slow_keeps_nobody_waiting() -> None:
    turns = Turns(most=1, seconds=0.01)
    slow = await turns.one()
    async with asyncio.timeout(30.0):
        await turns.one()
    slow.end()


async def test_who_goes_away_while_waiting_takes_no_turn() -> None:
    turns = Turns(most=1, seconds=60.0)
    turn = await turns.one()
    waiting = asyncio.create_task(turns.one())
    await asyncio.sleep(0)
    waiting.cancel()
    turn.end()
    async with asyncio.timeout(30.0):
        await turns.one()
