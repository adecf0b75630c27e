"""Computing over the log's stored tree with one reading of the store."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from matl_common.tlog.merkle import ReadNode, nodes_read
from matl_coordinator.ports import Store

_Result = TypeVar("_Result")


async def over_tree(store: Store, compute: Callable[[ReadNode], _Result]) -> _Result:
    """``compute`` with the stored hashes.

    Args:
        compute: a function of ``tlog.merkle`` with all but ``read_node`` given.

    Raises:
        StoreError: the store cannot be read.
        IntegrityError: a hash is missing.
    """
    nodes = await asyncio.to_thread(store.log_nodes, nodes_read(compute))
    return compute(lambda level, index: nodes[level, index])
