"""A model file on its way: hashed as it is written, in a thread, while the next block comes.

One that an earlier try left is gone on with, and hashed from its beginning. Nothing here knows
which model is wanted.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Self

from matl_common.ids import Digest


class ArrivingFile:
    """Appends to a file. Runs on one event loop, and writes in threads, one block at a time."""

    def __init__(self, file: BufferedIOBase) -> None:
        """Go on with a file that is open for reading and appending; reads what it holds."""
        file.seek(0)
        self._file = file
        self._sha256 = hashlib.file_digest(file, "sha256")
        self._writing: asyncio.Future[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator[Self]:
        """Keep a file open for the block; what was added is in it afterwards, however that ends.

        Raises:
            OSError: the disk failed.
        """
        with path.open("ab+") as file:
            arriving = await asyncio.to_thread(cls, file)
            try:
                yield arriving
            finally:
                await arriving._settled()

    async def add(self, data: bytes | memoryview) -> None:
        """Begin to write a block, once the one before is written.

        Raises:
            OSError: that one could not be written.
        """
        await self._written()
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(None, self._append, data)

    async def digest(self) -> Digest:
        """SHA-256 of all that is in the file, which is written then.

        Raises:
            OSError: a block could not be written.
        """
        await self._written()
        await asyncio.to_thread(self._file.flush)
        return Digest(self._sha256.hexdigest())

    async def _written(self) -> None:
        await self._settled()
        if self._writing is not None:
            self._writing.result()

    async def _settled(self) -> None:
        # Never cancelled with its caller: the thread would go on with a file that is closed.
        if self._writing is not None:
            await asyncio.wait({self._writing})

    def _append(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._sha256.update(data)
