"""Which part of the holdout set does what: reference folds and validation.

The reference part gives the root gradients, the validation part the loss before and
after an update; no image does both. The split depends on the labels' order alone, so
every round and every restart uses the same one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matl_common.errors import InvalidInputError

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Split:
    """Row numbers of the holdout set."""

    folds: Mapping[tuple[int, int], Indices]
    """Reference rows by class and fold; none is empty."""
    validation: Indices

    @property
    def reference_images(self) -> int:
        """Rows in the reference part."""
        return sum(map(len, self.folds.values()))


def split_holdout(labels: NDArray[np.int64], *, folds: int) -> Split:
    """Give every class's rows in turn to a reference fold and to validation.

    A class too small for two folds is left to validation.

    Args:
        labels: shape ``(n,)``.
        folds: at most this many for each class; fewer when it has fewer reference rows.

    Raises:
        InvalidInputError: no class has two reference rows, or nothing is left to validate.
    """
    parts: dict[tuple[int, int], Indices] = {}
    validation: list[int] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        reference = rows[0::2]
        if len(reference) < 2:
            validation.extend(rows.tolist())
            continue
        validation.extend(rows[1::2].tolist())
        for fold in range(min(folds, len(reference))):
            parts[int(label), fold] = reference[fold::folds]
    if not parts or not validation:
        raise InvalidInputError(
            f"the holdout set has {len(labels)} usable images; it needs at least three of a "
            "class, and hundreds of every class to tell hospitals apart"
        )
    return Split(parts, np.array(sorted(validation), dtype=np.int64))
