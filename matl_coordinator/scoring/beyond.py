"""What training on the reference images does beyond their gradients.

Inside the span of the classes' gradients an attacker who knows what the holdout set looks like can
be as good as any hospital, and work against the others outside of it: there the gradients are 0,
at whichever end of the step they are asked. But nobody trains along gradients of one model. Every
step changes the next one's, and an update bends away from all of them, in much the same direction
wherever one trains. So the coordinator trains on its reference images as a hospital does on its
own, and keeps of that what the gradients at both ends of the step do not explain.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from matl_common.tensors import Float32Vector
from matl_coordinator.scoring.path import Descent, blocks_of
from matl_coordinator.scoring.reach import Float64Array, Losses

MOST_STEPS: Final = 20
"""Of more in a round, as many are taken as together are as long."""
_EXPLAINED: Final = 1e-3
"""Share of the training's length up to which nothing is left of it."""
_RANK: Final = 1e-12
"""Share of the largest eigenvalue below which gradients are combinations of the others."""


def beyond_gradients(
    descents: Mapping[tuple[int, int], Descent],
    step: Float32Vector | None,
    *,
    steps: int,
    learning_rate: float,
    before: Float64Array,
    losses: Losses,
) -> Float32Vector | None:
    """Train on the reference images, and take away what their gradients explain.

    Holds two rows for each class, and four more.

    Args:
        descents: of reference images, by class and fold, clipped as hospitals clip; at least one.
        step: that updates are scored along; ``None`` for none.
        steps: gradient steps in a round, at least 1.
        learning_rate: of each.
        before: loss of each validation image at the base model, finite.
        losses: of the same after a change.

    Returns:
        A vector as long as an update; ``None`` where a round has one step or hospitals take none
        together, where the gradients explain everything or are not finite, and where such training
        is no example to anybody, because the validation part of the holdout set loses by it.
    """
    if step is None or steps == 1:
        return None
    folds: dict[int, list[Descent]] = {}
    for (label, _), descent in descents.items():
        folds.setdefault(label, []).append(descent)

    def of_classes(change: Float32Vector | None) -> Iterator[Float32Vector]:
        return (_mean(descent(change) for descent in each) for each in folds.values())

    with np.errstate(over="ignore", invalid="ignore"):
        start = list(of_classes(None))
        moved = train_alike(
            lambda change: start if change is None else of_classes(change),
            steps=steps,
            learning_rate=learning_rate,
        )
        if not losses(moved).mean() < before.mean():
            return None
        rest = _outside(moved, [*start, *of_classes(step)])
    # Of what is explained, rounding is left.
    is_more = _EXPLAINED * float(np.linalg.norm(moved)) < float(np.linalg.norm(rest))
    return rest if np.isfinite(rest).all() and is_more else None


def train_alike(
    of_classes: Callable[[Float32Vector | None], Iterable[Float32Vector]],
    *,
    steps: int,
    learning_rate: float,
) -> Float32Vector:
    """How far full-batch training moves a model in which all classes count alike.

    Args:
        of_classes: minus the gradient for each class, at the base model plus a change, or at the
            base model.
        steps: gradient steps in a round, at least 1.
        learning_rate: of each.
    """
    taken = min(steps, MOST_STEPS)
    rate = np.float32(learning_rate * steps / taken)
    moved = rate * _mean(of_classes(None))
    for _ in range(taken - 1):
        moved += rate * _mean(of_classes(moved))
    return moved


def _mean(rows: Iterable[Float32Vector]) -> Float32Vector:
    """One at a time."""
    total, count = None, 0
    for row in rows:
        total = row.copy() if total is None else np.add(total, row, out=total)
        count += 1
    assert total is not None, "there is a row"
    total /= np.float32(count)
    return total


def _outside(vector: Float32Vector, span: Sequence[Float32Vector]) -> Float32Vector:
    """The part of a vector at right angles to all of the others; not finite where one is not."""
    gram, along = np.zeros((len(span), len(span))), np.zeros(len(span))
    for block in blocks_of(len(vector)):
        rows = np.stack([each[block] for each in span]).astype(np.float64)
        gram += rows @ rows.T
        along += rows @ vector[block].astype(np.float64)
    if not (np.isfinite(gram).all() and np.isfinite(along).all()):
        return np.full_like(vector, np.nan)
    shares = np.linalg.pinv(gram, rcond=_RANK, hermitian=True) @ along
    rest = vector.copy()
    for block in blocks_of(len(vector)):
        rest[block] -= (shares @ np.stack([each[block] for each in span])).astype(np.float32)
    return rest
