"""Which updates are so alike that one author is likelier than several.

Members of a cluster share one weight and are never expelled: whoever copies an honest
hospital must not be able to have it thrown out. Nothing here knows about trust.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from matl_common.ids import NodeId
from matl_coordinator.core.robust.gram import Float64Array, Gram

CLONE_COSINE = 0.98
"""Without privacy noise, updates at least this alike may be clones."""
CLONE_DISTANCE_RATIO = 0.1
"""... if they are this much nearer to one another than honest updates of the round are."""
FALSE_ALARM = 1e-6
"""At most this probability that a round has an honest pair taken for clones by distance."""


def clusters_of(gram: Gram, *, f: int, steps: int = 1) -> tuple[frozenset[NodeId], ...]:
    """Groups of two or more nearly identical updates, in order of their first names.

    Every two members of a group are alike (complete linkage, closest pairs first). A chain
    is not enough: one update between the honest ones, such as their mean without noise, would
    link them all, and hospitals that share a weight leave the rest to an outsider.

    Args:
        gram: one round's updates, with their noise where the study promises some.
        f: bound on hostile updates.
        steps: gradient steps of a round.
    """
    gram = gram.select(sorted(gram.nodes))
    cosines = _cosines(gram)
    alike = _without_hubs(_alike(gram, cosines, f=f, steps=steps), f=f)
    groups = [
        frozenset(gram.nodes[member] for member in group)
        for group in _mutually_alike(alike, cosines)
        if len(group) > 1
    ]
    return tuple(sorted(groups, key=sorted))


def _cosines(gram: Gram) -> Float64Array:
    inner = gram.matrix[: gram.n, : gram.n]
    lengths = np.outer(gram.norms, gram.norms)
    cosines: Float64Array = np.divide(inner, lengths, out=np.zeros_like(inner), where=lengths > 0)
    return cosines


def _alike(gram: Gram, cosines: Float64Array, *, f: int, steps: int) -> NDArray[np.bool_]:
    inner = gram.matrix[: gram.n, : gram.n]
    if gram.noise is None or not (gram.noise.std > 0.0).all():
        return cosines > _plain_threshold(cosines, f=f)
    std, elements = gram.noise.std, gram.elements
    squared = np.diagonal(inner)[:, None] + np.diagonal(inner)[None, :] - 2.0 * inner
    return (cosines > _noisy_threshold(std, gram.noise.signal_bound, elements)) | (
        squared < _least_distance(std, elements, steps=steps)
    )


def _plain_threshold(cosines: Float64Array, *, f: int) -> float:
    """Least cosine of clones: .98, or nearer 1 where honest hospitals of one mind are nearer.

    Honest updates of one distribution can pass .98 themselves, and a fixed bound would then
    take the weight of the majority. All f hostile copying one another and an honest victim
    make f(f + 1)/2 pairs; the next nearest pair is at least as far apart as the nearest
    honest one, and clones must be much nearer than that.
    """
    pairs = np.sort(1.0 - cosines[np.triu_indices(cosines.shape[0], 1)])
    if not pairs.size:
        return 1.0
    hostile = max(f, 1)
    typical = float(pairs[min(hostile * (hostile + 1) // 2, pairs.size - 1)])
    return max(CLONE_COSINE, 1.0 - CLONE_DISTANCE_RATIO * typical)


def _noisy_threshold(std: Float64Array, signal_bound: float, elements: int) -> Float64Array:
    """Largest cosine that independent noise leaves honest pairs; 1 and above says nothing."""
    threshold: Float64Array = signal_bound**2 / (np.outer(std, std) * elements) + 6.0 / math.sqrt(
        elements
    )
    return threshold


def _least_distance(std: Float64Array, elements: int, *, steps: int) -> Float64Array:
    """Squared distance below which two honest, independently noised updates never are.

    Given everything before the last step, their difference is a constant plus the noise of
    both last steps. Its squared norm is then at least a central χ² in distribution, whose
    lower tail is bounded by Laurent and Massart (2000), lemma 1.
    """
    n = std.size
    tail = math.log(max(1, n * (n - 1) // 2) / FALSE_ALARM)
    least = max(0.0, elements - 2.0 * math.sqrt(elements * tail))
    squared: Float64Array = (std[:, None] ** 2 + std[None, :] ** 2) / steps * least
    return squared


def _without_hubs(alike: NDArray[np.bool_], *, f: int) -> NDArray[np.bool_]:
    """Likeness, but for that of hubs to others than hubs.

    A hub is alike to more than f updates that are unlike one another. At least one of them
    is honest and not its copy; clones that all stand in that place remain clones.
    """
    hub = np.array([_mutually_unlike(alike, row) > max(f, 1) for row in range(len(alike))], bool)
    kept: NDArray[np.bool_] = alike & (hub[:, None] == hub[None, :])
    return kept


def _mutually_unlike(alike: NDArray[np.bool_], row: int) -> int:
    """How many updates are alike to this one and unlike one another, at least."""
    chosen: list[int] = []
    for other in np.flatnonzero(alike[row]):
        if other != row and not alike[other, chosen].any():
            chosen.append(int(other))
    return len(chosen)


def _mutually_alike(alike: NDArray[np.bool_], cosines: Float64Array) -> Sequence[Sequence[int]]:
    """A partition into sets of which every pair is alike, grown from the closest pairs."""
    group = [[row] for row in range(len(alike))]
    pairs = np.argwhere(np.triu(alike, 1))
    # Copies differ by rounding alone: among them the order of names decides.
    order = np.argsort(-cosines[pairs[:, 0], pairs[:, 1]].round(12), kind="stable")
    for i, j in pairs[order]:
        if group[i] is not group[j] and alike[np.ix_(group[i], group[j])].all():
            merged = [*group[i], *group[j]]
            for member in merged:
                group[member] = merged
    return [members for row, members in enumerate(group) if min(members) == row]
