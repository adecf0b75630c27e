"""What every node has sent so far, small: CountSketches of updates, added up over rounds.

A CountSketch (Charikar, Chen and Farach-Colton, ICALP 2002) is linear, so the sketch of
a sum is the sum of the sketches, and inner products of sketches estimate those of the
vectors with an error of about 1/256 of the product of their norms. Nothing here is kept
between calls; the caller stores a ``Histories`` as bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from types import MappingProxyType
from typing import Final

import numpy as np

from matl_common.errors import InvalidInputError
from matl_common.ids import NodeId, parse_node_id
from matl_common.tensors import ELEMENT_BYTES
from matl_coordinator.aggregation.executor import in_order
from matl_coordinator.aggregation.rows import Row, opened_files, read_into
from matl_coordinator.aggregation.samples import rotation, sign_bits
from matl_coordinator.core.robust.gram import AggregationError, Float64Array
from matl_coordinator.core.robust.selection import Float32Array

SKETCH_WIDTH: Final = 1 << 16
_SKETCH_BYTES: Final = SKETCH_WIDTH * ELEMENT_BYTES
_MAX_HEADER_BYTES: Final = 1 << 20
_KIND: Final = "matl update histories 1"


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class Histories:
    """The sum of each node's updates so far, as sketches that share one seed."""

    seed: int
    """Fixed for a study: sketches of different seeds cannot be compared or added."""
    sketches: Mapping[NodeId, Float32Array]
    """Each of shape ``(SKETCH_WIDTH,)``."""

    def plus(self, later: Histories) -> Histories:
        """Both together; a node that only one of them knows keeps what it has there.

        Raises:
            AggregationError: the seeds differ.
        """
        if self.seed != later.seed:
            raise AggregationError("histories of different seeds cannot be added")
        total = dict(self.sketches)
        for node, sketch in later.sketches.items():
            total[node] = total[node] + sketch if node in total else sketch
        return Histories(self.seed, MappingProxyType(total))

    def inner_products(self, nodes: Sequence[NodeId]) -> Float64Array:
        """Estimated inner products of these nodes' sums, shape ``(n, n)``, symmetric.

        Zero for a node without history.
        """
        products = np.zeros((len(nodes), len(nodes)))
        known = [(index, self.sketches[n]) for index, n in enumerate(nodes) if n in self.sketches]
        for place, (i, left) in enumerate(known):
            for j, right in known[place:]:
                # Not by BLAS, whose order of adding depends on its threads.
                product = np.einsum("k,k", left, right, dtype=np.float64)
                products[i, j] = products[j, i] = product
        return products

    def encode(self) -> bytes:
        """One line of JSON, then the sketches in its order, little-endian float32."""
        head = {"kind": _KIND, "nodes": list(self.sketches), "seed": self.seed}
        line = json.dumps(head, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        return line + b"".join(each.astype("<f4").tobytes() for each in self.sketches.values())

    @staticmethod
    def parse(data: bytes) -> Histories:
        """The value of ``encode``.

        Raises:
            InvalidInputError: these are not the bytes of histories.
        """
        line, newline, _ = data[:_MAX_HEADER_BYTES].partition(b"\n")
        try:
            head = json.loads(line)
            kind, seed = head["kind"], head["seed"]
            nodes = [parse_node_id(node) for node in head["nodes"]]
        except (ValueError, TypeError, KeyError, InvalidInputError) as error:
            raise InvalidInputError("these bytes are not update histories") from error
        body = memoryview(data)[len(line) + 1 :]
        if (
            kind != _KIND
            or not newline
            or type(seed) is not int
            or not 0 <= seed < 1 << 64
            or len(set(nodes)) != len(nodes)
            or len(body) != len(nodes) * _SKETCH_BYTES
        ):
            raise InvalidInputError("these bytes are not update histories")
        values = np.frombuffer(body, dtype="<f4").reshape(len(nodes), SKETCH_WIDTH)
        if not np.isfinite(values).all():
            raise InvalidInputError("an update history holds a value that is not finite")
        return Histories(seed, MappingProxyType(dict(zip(nodes, values, strict=True))))


def sketch_rows(updates: Sequence[Row], *, elements: int, seed: int, threads: int = 1) -> Histories:
    """Sketches of one round's updates: one more pass over them, for rules that need a history.

    Coordinate ``t`` of the ``k``-th stretch of 2^16 goes, with a random sign, to bucket
    ``t + r_k`` modulo 2^16, where ``r_k`` is random: within a stretch nothing collides. What is
    not finite counts as 0. Memory is one sketch for each update, and one stretch for each thread.

    Args:
        updates: one row per node, named by its id.
        elements: coordinates of a row.
        seed: from 0 to 2^64 − 1, fixed for the study.
        threads: rows handled at once.

    Raises:
        AggregationError: no row, or a file of another size.
    """
    with opened_files(updates, elements) as files:
        sketches = in_order(lambda file: _sketch(file, elements, seed=seed), files, threads=threads)
        named = {NodeId(row.name): each for row, each in zip(updates, sketches, strict=True)}
    return Histories(seed, MappingProxyType(named))


def _sketch(file: FileIO, elements: int, *, seed: int) -> Float32Array:
    total = np.zeros(SKETCH_WIDTH)
    stretch = np.empty(SKETCH_WIDTH, dtype="<f4")
    wide = np.empty(SKETCH_WIDTH)
    for block, start in enumerate(range(0, elements, SKETCH_WIDTH)):
        stretch[elements - start :] = 0.0
        read_into(file, stretch[: elements - start], start)
        if not np.isfinite(stretch).all():
            stretch[~np.isfinite(stretch)] = 0.0
        np.copyto(wide, sign_bits(seed, block=block, count=SKETCH_WIDTH))
        wide *= 2.0
        wide -= 1.0
        wide *= stretch
        turn = rotation(seed, block=block, length=SKETCH_WIDTH)
        total[turn:] += wide[: SKETCH_WIDTH - turn]
        total[:turn] += wide[SKETCH_WIDTH - turn :]
    return total.astype(np.float32)
