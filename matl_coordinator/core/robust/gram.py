"""The geometry of one round's updates: their Gram matrix and what follows from it.

Every Gram-space rule, pre-aggregation and trust statistic reads a ``Gram`` and
nothing else, so its cost does not depend on the size of a model. Nothing here
performs I/O or sees an update's coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from matl_common.errors import MatlError
from matl_common.ids import NodeId

Float64Array = NDArray[np.float64]


class AggregationError(MatlError):
    """A rule cannot be applied to these updates."""


PREVIOUS_AGGREGATE = "previous-aggregate"
"""Name of the extra row that holds the last round's aggregate."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a rule wants the first pass to measure beside inner products."""

    subsets: int = 0
    """Gram matrices over this many pseudo-random sets of coordinates."""
    history: bool = False
    """Inner products of the updates summed over rounds."""
    previous: bool = False
    """The last round's aggregate as an extra row."""
    root: bool = False
    """The root gradient as extra rows, with its coefficients in ``Gram.reference``."""


@dataclass(frozen=True, slots=True)
class RowFacts:
    """What the first pass counted in one row beside its inner products."""

    non_finite: int = 0
    """Coordinates that are NaN or infinite; they entered the Gram matrix as 0."""
    bins: tuple[int, ...] = ()
    """Sampled coordinates between the quantiles of the privacy noise promised for this row,
    equally probable under N(0, σ²); empty where none was promised."""


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class PrivacyNoise:
    """The noise the study's policy put into the updates, as the coordinator computes it."""

    std: Float64Array
    """Shape ``(n,)``: standard deviation of each coordinate of each update."""
    signal_bound: float
    """The longest an update can be without its noise, in the norm of the updates."""


# eq=False: the generated comparison would compare arrays elementwise.
@dataclass(frozen=True, slots=True, eq=False)
class Gram:
    """Inner products of ``n`` updates and ``q`` extra rows (root gradients, last aggregate).

    The updates come first, in the order of ``nodes``, then the extra rows in the
    order of ``extras``.
    """

    matrix: Float64Array
    """Shape ``(n + q, n + q)``, symmetric."""
    nodes: tuple[NodeId, ...]
    extras: tuple[str, ...]
    weights: Float64Array
    """Shape ``(n,)``: capped enrolled weights times trust, at least 0; any scale."""
    facts: tuple[RowFacts, ...]
    """One for each row of ``matrix``."""
    elements: int
    """Coordinates of a row, ``d``."""
    reference: Float64Array | None = None
    """Shape ``(n + q,)``: the root gradient, pointing downhill, as a mixture of the rows."""
    noise: PrivacyNoise | None = None
    """None where the study promises no privacy."""
    subsets: tuple[Float64Array, ...] = ()
    """Each as ``matrix``, over a pseudo-random set of the coordinates (DnC)."""
    history: Float64Array | None = None
    """Shape ``(n, n)``: inner products of each node's updates summed over rounds, this one
    included (FoolsGold)."""

    def __post_init__(self) -> None:
        rows = len(self.nodes) + len(self.extras)
        if self.matrix.shape != (rows, rows) or len(self.facts) != rows:
            raise AggregationError(
                f"a Gram matrix of shape {self.matrix.shape} does not describe {rows} rows"
            )
        if len(set(self.row_names)) != rows:
            raise AggregationError("two rows of the Gram matrix have the same name")
        if self.weights.shape != (len(self.nodes),):
            raise AggregationError(f"{len(self.nodes)} updates, {self.weights.shape} weights")
        if not (np.isfinite(self.weights).all() and (self.weights >= 0).all()):
            raise AggregationError("a weight is negative or not finite")
        if self.reference is not None and self.reference.shape != (rows,):
            raise AggregationError(f"{rows} rows, {self.reference.shape} reference coefficients")
        if self.noise is not None and self.noise.std.shape != (self.n,):
            raise AggregationError(f"{self.n} updates, {self.noise.std.shape} noise levels")
        if any(each.shape != self.matrix.shape for each in self.subsets):
            raise AggregationError("a Gram matrix over some coordinates has another shape")
        if self.history is not None and self.history.shape != (self.n, self.n):
            raise AggregationError(f"{self.n} updates, a history of {self.history.shape}")

    @staticmethod
    def of(
        updates: Mapping[NodeId, NDArray[np.floating]],
        extras: Mapping[str, NDArray[np.floating]] | None = None,
    ) -> Gram:
        """The Gram value of updates held in memory, all weights 1; for study and for tests.

        Args:
            updates: one vector of shape ``(d,)`` for each node.
            extras: further vectors of the same shape.

        Raises:
            AggregationError: no update, or vectors of different lengths.
        """
        rows = [*updates.values(), *(extras or {}).values()]
        if not updates or len({row.shape for row in rows}) != 1:
            raise AggregationError("a Gram matrix needs vectors of one length")
        values = np.stack(rows).astype(np.float64)
        finite = np.isfinite(values)
        values[~finite] = 0.0
        matrix = values @ values.T
        return Gram(
            matrix=np.triu(matrix) + np.triu(matrix, 1).T,
            nodes=tuple(updates),
            extras=tuple(extras or {}),
            weights=np.ones(len(updates)),
            facts=tuple(RowFacts(non_finite=int((~row).sum())) for row in finite),
            elements=values.shape[1],
        )

    @property
    def n(self) -> int:
        """Number of updates."""
        return len(self.nodes)

    @property
    def row_names(self) -> tuple[str, ...]:
        """Names of all rows, updates first."""
        return (*self.nodes, *self.extras)

    @property
    def norms(self) -> Float64Array:
        """Euclidean norms of the updates, shape ``(n,)``."""
        diagonal: Float64Array = np.diagonal(self.matrix)[: self.n]
        return np.sqrt(np.maximum(diagonal, 0.0))

    def non_finite_nodes(self) -> tuple[NodeId, ...]:
        """Nodes whose update holds a value that is not finite."""
        return tuple(
            node
            for node, facts in zip(self.nodes, self.facts[: self.n], strict=True)
            if facts.non_finite
        )

    def squared_distances(self) -> Float64Array:
        """Squared Euclidean distances between the updates, shape ``(n, n)``."""
        inner = self.matrix[: self.n, : self.n]
        squares = np.diagonal(inner)
        return np.maximum(squares[:, None] + squares[None, :] - 2.0 * inner, 0.0)

    def distances_to(self, mixture: Float64Array) -> Float64Array:
        """Euclidean distances of the updates from a mixture of the rows, shape ``(n,)``.

        Args:
            mixture: coefficients over all rows, shape ``(n + q,)``.
        """
        products = self.matrix @ mixture
        squared = np.diagonal(self.matrix) - 2.0 * products + mixture @ products
        return np.sqrt(np.maximum(squared[: self.n], 0.0))

    def select(self, nodes: Sequence[NodeId]) -> Gram:
        """The Gram matrix of these nodes' updates only; every extra row stays.

        Raises:
            AggregationError: a node is not among the updates.
        """
        try:
            kept = [self.nodes.index(node) for node in nodes]
        except ValueError as error:
            raise AggregationError("a selected node has no update in this round") from error
        rows = kept + list(range(self.n, self.matrix.shape[0]))
        square = np.ix_(rows, rows)
        noise = self.noise
        return replace(
            self,
            matrix=self.matrix[square],
            nodes=tuple(nodes),
            weights=self.weights[kept],
            facts=tuple(self.facts[row] for row in rows),
            reference=None if self.reference is None else self.reference[rows],
            noise=None if noise is None else replace(noise, std=noise.std[kept]),
            subsets=tuple(each[square] for each in self.subsets),
            history=None if self.history is None else self.history[np.ix_(kept, kept)],
        )

    def with_weights(self, weights: Mapping[NodeId, float]) -> Gram:
        """The same geometry with other weights; a node not named weighs 0."""
        values = np.array([weights.get(node, 0.0) for node in self.nodes], dtype=np.float64)
        return replace(self, weights=values)


def leave_one_out_cosines(gram: Gram) -> Float64Array:
    """Cosine of each update with the weighted sum of all the others, shape ``(n,)``.

    0 where an update, or the sum of the others, is the zero vector.
    """
    inner = gram.matrix[: gram.n, : gram.n]
    # Row i of `others` holds the coefficients of the sum that leaves i out.
    others = np.tile(gram.weights, (gram.n, 1))
    np.fill_diagonal(others, 0.0)
    products = np.einsum("ij,ij->i", others, inner)
    squared = np.einsum("ij,jk,ik->i", others, inner, others)
    lengths = gram.norms * np.sqrt(np.maximum(squared, 0.0))
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    clipped: Float64Array = np.clip(cosines, -1.0, 1.0)
    return clipped
