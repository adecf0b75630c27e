"""Our rules against Flower's (flwr 1.41.0), which runs in an environment of its own."""

import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from matl_coordinator.core.robust.coordinatewise import coordinate_median, trimmed_mean
from matl_coordinator.core.robust.distances import bulyan, krum, multi_krum
from matl_coordinator.core.robust.gram import Float64Array, Gram
from matl_coordinator.core.robust.plan import Plan
from tests.core.robust_rows import carried_out, gram_of

_REPOSITORY = Path(__file__).parents[2]
_PYTHON = Path(
    os.environ.get("MATL_FLOWER_PYTHON", _REPOSITORY / "out" / "venv-flower" / "bin" / "python")
)
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not _PYTHON.exists(), reason="no Flower here; run `make peers`"),
]


def theirs(rows: Float64Array, f: int, folder: Path) -> dict[str, Float64Array]:
    source, target = folder / "rows.npz", folder / "answers.npz"
    np.savez(source, rows=rows, f=f)
    script = Path(__file__).with_name("flower_rules.py")
    subprocess.run(
        [_PYTHON, script, source, target],
        check=True,
        timeout=100,
        # Flower counts its starts over the network otherwise.
        env={"PATH": os.environ["PATH"], "FLWR_TELEMETRY_ENABLED": "0"},
    )
    with np.load(target) as answers:
        return dict(zip(answers["names"].tolist(), answers["values"], strict=True))


def round_with(n: int, f: int) -> Float64Array:
    generator = np.random.default_rng(n + f)
    rows = 0.3 + generator.uniform(0.5, 1.5, (n, 1)) * generator.standard_normal((n, 2000))
    rows[n - f :] -= 2.0
    return rows


@pytest.mark.parametrize(("n", "f"), [(11, 0), (9, 3), (15, 3), (20, 4)])
def test_flowers_rules_give_the_same(n: int, f: int, tmp_path: Path) -> None:
    rows = round_with(n, f)
    ours: dict[str, Callable[[Gram], Plan]] = {
        "median": partial(coordinate_median, f=f),
        "trimmed_mean": partial(trimmed_mean, f=f),
        "krum": partial(krum, f=f),
        "multi_krum": partial(multi_krum, f=f),
        "bulyan": partial(bulyan, f=f),
    }
    answers = theirs(rows, f, tmp_path)
    assert set(answers) == set(ours) - ({"bulyan"} if n < 4 * f + 3 else set())
    for name, answer in answers.items():
        mine = carried_out(ours[name](gram_of(rows)), rows)
        np.testing.assert_allclose(mine, answer, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("n", "f"), [(11, 2), (12, 2)])
def test_flowers_bulyan_depends_on_the_order_of_updates_where_scores_tie(
    n: int, f: int, tmp_path: Path
) -> None:
    # With f of 1 or 2 the last choices count one neighbour, and two that are each other's
    # nearest always tie; theirs takes the one that came first.
    rows = round_with(n, f)
    generator = np.random.default_rng(0)
    orders = [np.arange(n), *(generator.permutation(n) for _ in range(4))]
    ours = [carried_out(bulyan(gram_of(rows[order]), f=f), rows[order]) for order in orders]
    flowers = [theirs(rows[order], f, tmp_path)["bulyan"] for order in orders]
    assert all(np.allclose(each, ours[0], atol=1e-9) for each in ours)
    assert not all(np.allclose(each, flowers[0], atol=1e-3) for each in flowers)
    assert any(np.allclose(each, ours[0], atol=1e-6) for each in flowers)
