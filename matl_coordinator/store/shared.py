"""The spool where workers on other machines read updates: on this disk, and in a shared store.

A partial upload is on this disk alone, with all that ``DiskSpool`` promises. A complete one is
put into the shared store as well before it can be admitted. Nothing here reads the store.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import structlog

from matl_common.ids import NodeId, RoundId
from matl_coordinator.aggregation import Row
from matl_coordinator.aggregation.sharing import SharedStore
from matl_coordinator.ports import SharedStoreError, UpdateSink
from matl_coordinator.store.spool import DiskSpool

log = structlog.get_logger(__name__)


class SharedSpool:
    """A ``ports.LendingSpool``. Safe to call from several threads."""

    def __init__(self, disk: DiskSpool, shared: SharedStore) -> None:
        self._disk = disk
        self._shared = shared
        self.path = disk.path
        self.scratch = disk.scratch
        self.reserved_bytes = disk.reserved_bytes
        # What a front end received is on this disk, and is shared when it is finished here.
        self.lend = disk.lend
        self.keep_loan = disk.keep_loan
        self.take_back = disk.take_back

    def open(
        self, round_id: RoundId, node_id: NodeId, *, byte_count: int, chunk_hashes: bytes
    ) -> UpdateSink:
        """As ``DiskSpool.open``; ``finish`` raises ``SharedStoreError`` as well."""

        def share(path: Path) -> None:
            self._shared.shared(Row(node_id, path), round_id, chunk_hashes=chunk_hashes)

        sink = self._disk.open(round_id, node_id, byte_count=byte_count, chunk_hashes=chunk_hashes)
        return _SharingSink(sink, share)

    def clear_scratch(self, round_id: RoundId) -> None:
        """Delete the round's scratch folder, and the rows that were lent from it.

        Raises:
            SpoolError: the disk failed, or the store did not answer.
        """
        self._disk.clear_scratch(round_id)
        self._shared.clear_scratch(round_id)

    def discard_before(self, round_id: RoundId) -> None:
        """Delete everything of rounds below ``round_id``, where it can be.

        Raises:
            SpoolError: the disk failed.
        """
        self._disk.discard_before(round_id)
        try:
            self._shared.discard_before(round_id)
        except SharedStoreError as error:
            # They go with the next round's; no round waits for that.
            log.warning("shared_updates_left", before=round_id, reason=str(error))


class _SharingSink:
    def __init__(self, sink: UpdateSink, share: Callable[[Path], None]) -> None:
        self._share = share
        self._sink = sink
        self.append = sink.append
        self.sync = sink.sync
        self.close = sink.close

    @property
    def received_chunks(self) -> int:
        return self._sink.received_chunks

    def finish(self) -> Path:
        path = self._sink.finish()
        self._share(path)
        return path
