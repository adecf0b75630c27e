"""What another engine is given to do is the same work."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.scaling_simulation import Run, Way, ratios
from benchmarks.thousand.dealt import deal
from benchmarks.thousand.local_steps import head_round, network_round
from benchmarks.thousand.sized import sized
from benchmarks.thousand.tree import RunFailedError, run_counted
from matl.simulation.campaign import Job, images_of
from matl.simulation.federation import prepare
from matl.simulation.study import ArmName, Study

NUMBER = 2
STUDIES = {
    "network": {"hospitals": {"count": 4, "between": [50, 100]}},
    "head": {
        "hospitals": {"count": 4, "between": [50, 100]},
        "training": {"recipe": "head", "steps": 3, "dimensions": 8},
        "privacy": {"epsilon": 8.0},
    },
}


@pytest.mark.parametrize("recipe", STUDIES)
def test_a_hospital_of_the_other_engine_does_the_same_steps(recipe: str, tmp_path: Path) -> None:
    job = Job(Study.model_validate(STUDIES[recipe]), 0, (ArmName.MEAN,))
    deal(job, tmp_path)
    dealt = {path.stem: np.load(path) for path in tmp_path.glob("*.npy")}
    told = json.loads((tmp_path / "study.json").read_text())
    learner = prepare(images_of(job), job.study, seed=0).learner
    base = learner.initial()
    drawn = learner.draw(round_number=1)
    ours = learner.train(base, drawn, [NUMBER]).sent[0]
    stretch = slice(dealt["bounds"][NUMBER], dealt["bounds"][NUMBER + 1])
    own, rate = dealt["members"][stretch], told["learning_rate"]
    with np.load(tmp_path / "first.npz") as found:
        first = [found[name] for name in sorted(found.files)]
    moved: list[Any]
    if recipe == "network":
        batches = drawn[:, NUMBER].astype(np.int64)
        moved = network_round(first, dealt["values"], dealt["labels"], batches, rate=rate)
    else:
        noise = [drawn[:, NUMBER, :80].reshape(3, 10, 8), drawn[:, NUMBER, 80:]]
        moved = head_round(
            [each.astype(np.float64) for each in first],
            dealt["inputs"][stretch],
            dealt["labels"][own],
            [each.astype(np.float64) for each in noise],
            rate=rate,
            patients=int(dealt["patients"][NUMBER]),
        )
    theirs = np.concatenate([(m - f).ravel() for m, f in zip(moved, first, strict=True)])
    assert np.abs(ours).max() > 1e-3
    np.testing.assert_allclose(theirs, ours, atol=2e-6)


def test_ratios_are_flowers_medians_over_ours() -> None:
    def run(way: Way, wall: float) -> Run:
        return Run("head", 10, way.arm, way.engine, wall, 2 * wall, (wall / 4,), (), 0.5)

    ours, theirs = Way("mean", "ray"), Way("mean", "Flower")
    runs = [run(ours, each) for each in (1.0, 2.0, 30.0)] + [run(theirs, 8.0)]
    assert ratios(runs, hospitals=10) == {
        f"head_mean_ray_{what}_vs_flower": 4.0 for what in ("wall", "cpu", "round")
    }
    assert ratios(runs[:3], hospitals=10) == {}


def test_a_sized_study_differs_in_its_size_alone() -> None:
    path = Path("benchmarks/thousand/thousand.toml")
    job = sized(path, hospitals=1000, rounds=5)
    assert sized(path, hospitals=10, rounds=5).study.members == 10
    assert job.study.training.steps == 5
    assert job.arms == (ArmName.MEAN,)


def test_cpu_time_is_that_of_children_too() -> None:
    spin = "import time\nwhile time.process_time() < 0.8: pass"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}]); print(7)"
    said, cpu_seconds = run_counted([sys.executable, "-c", program], {}, seconds=60.0)
    assert said == "7"
    assert cpu_seconds > 0.3
    with pytest.raises(RunFailedError, match="failed"):
        run_counted([sys.executable, "-c", "raise SystemExit(3)"], {}, seconds=60.0)
