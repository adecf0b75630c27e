"""Files that are read again while the coordinator runs: every few seconds, or when asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from matl_coordinator.ports import FileMeter, StoreError

POLL_SECONDS = 2.0
"""How often files are read again; a signal has them read at once."""

log = structlog.get_logger(__name__)


async def follow(
    look: Callable[[], Awaitable[None]],
    *,
    asked: asyncio.Event,
    meter: FileMeter,
    file: str,
    not_logged: str,
    not_followed: str,
) -> None:
    """Look again and again until cancelled, whatever a look raises.

    Args:
        look: reads the files; raises StoreError where the log did not take what follows.
        asked: set to have the next look at once.
        meter: told that the files are stale when a look fails.
        file: what the meter calls them.
        not_logged: the event of a look whose outcome the log did not take.
        not_followed: the event of a look that failed as nobody thought of.
    """
    while True:
        try:
            await look()
        except StoreError as error:
            log.error(not_logged, reason=str(error))
        except Exception as error:
            log.critical(not_followed, exc_info=error)
            meter.file_refused(file, refused=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await asked.wait()
        asked.clear()
