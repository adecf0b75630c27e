"""Flower's aggregation on rows from a file; run by the interpreter of Flower's own environment.

    python flower_rules.py rows.npz answers.npz

``rows.npz`` holds ``rows`` of shape (n, d) and ``f``. Rows are cut in two layers, as
Flower's functions take models.
"""

import sys
from pathlib import Path

import numpy as np
from flwr.server.strategy.aggregate import (
    aggregate_bulyan,
    aggregate_krum,
    aggregate_median,
    aggregate_trimmed_avg,
)


def main(source: Path, target: Path) -> None:
    given = np.load(source)
    rows, f = given["rows"], int(given["f"])
    n, half = len(rows), rows.shape[1] // 2

    def models() -> list[tuple[list[np.ndarray], int]]:
        return [([row[:half].copy(), row[half:].copy()], 100) for row in rows]

    answers = {
        "median": aggregate_median(models()),
        # Their count is the integer part of a product; the half keeps it at f.
        "trimmed_mean": aggregate_trimmed_avg(models(), (f + 0.5) / n if f else 0.0),
        "krum": aggregate_krum(models(), f, 0),
        "multi_krum": aggregate_krum(models(), f, n - f),
    }
    if n >= 4 * f + 3:
        answers["bulyan"] = aggregate_bulyan(models(), f, aggregate_krum, to_keep=0)
    values = np.stack([np.concatenate(layers) for layers in answers.values()])
    np.savez(target, names=np.array(list(answers)), values=values)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
