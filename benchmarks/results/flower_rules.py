"""Flower's own aggregation, for whoever asks; run by the interpreter of Flower's environment.

    python flower_rules.py < requests

A request is one line, ``rule f rows.npy answer.npy``; when the answer is written, ``done`` is
printed, and ``failed`` where Flower's function raises. Rows are one layer of a model, as
Flower's functions take models.
"""

import sys

import numpy as np
from flwr.server.strategy.aggregate import (
    aggregate_bulyan,
    aggregate_krum,
    aggregate_median,
    aggregate_trimmed_avg,
)


def answer(rule: str, f: int, rows: np.ndarray) -> np.ndarray:
    """What Flower makes of these rows."""
    n, models = len(rows), [([row], 100) for row in rows]
    match rule:
        case "median":
            (found,) = aggregate_median(models)
        case "trimmed-mean":
            # Their count is the integer part of a product; the half keeps it at f.
            (found,) = aggregate_trimmed_avg(models, (f + 0.5) / n if f else 0.0)
        case "krum":
            (found,) = aggregate_krum(models, f, 0)
        case "multi-krum":
            (found,) = aggregate_krum(models, f, n - f)
        case "bulyan":
            (found,) = aggregate_bulyan(models, f, aggregate_krum, to_keep=0)
        case _:
            raise SystemExit(f"{rule}: no such rule")
    return np.asarray(found)


def main() -> None:
    """Answer until the input ends."""
    for line in sys.stdin:
        rule, f, rows, target = line.split()
        try:
            found = answer(rule, int(f), np.load(rows))
        except (ValueError, IndexError) as error:
            print(f"{rule}: {error}", file=sys.stderr)
            print("failed", flush=True)
            continue
        np.save(target, found)
        print("done", flush=True)


if __name__ == "__main__":
    main()
