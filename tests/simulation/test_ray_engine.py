"""Simulations on Ray: the outcomes of the local engine, to the bit, whatever becomes of workers."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from typer.testing import CliRunner

from matl.cli import app
from matl.simulation.campaign import Engine, Job, LocalEngine, images_of, open_finished, run_jobs
from matl.simulation.outcome import Outcome
from matl.simulation.study import ArmName, Study
from matl_common.errors import ConfigurationError

ray_engine = pytest.importorskip("matl.simulation.ray_engine", reason="pip install 'matl[ray]'")
ARMS = ArmName.ORACLE, ArmName.MATL, ArmName.MEAN
# More than two blocks of hospitals, the last of them not whole.
NETWORK = Study.model_validate(
    {
        "hospitals": {"count": 37, "between": [20, 40], "alpha": 0.5},
        "training": {"rounds": 2, "steps": 2},
        # Whose attackers need not train.
        "hostile": {"attack": "ipm_2", "share": 0.2},
    }
)
HEAD = Study.model_validate(
    {
        "hospitals": {"count": 37, "between": [20, 40]},
        "training": {"recipe": "head", "rounds": 2, "steps": 2, "dimensions": 8},
        "privacy": {"epsilon": 8.0},
        "hostile": {"attack": "label_complement", "share": 0.2},
    }
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Connected to a cluster of two workers, which outlives each run."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray_engine.RayEngine(processes=2)
    ray.shutdown()


def outcomes(engine: Engine, jobs: list[Job], folder: Path) -> list[list[Outcome]]:
    finished = open_finished(folder, "x")
    console = Console(stderr=True)
    return [found for _, found in run_jobs(jobs, finished, engine=engine, console=console)]


@pytest.mark.parametrize("study", [NETWORK, HEAD], ids=["network", "head"])
def test_one_study_whose_hospitals_train_on_all_workers_has_the_same_outcomes(
    engine: Engine, study: Study, tmp_path: Path
) -> None:
    jobs = [Job(study, 0, ARMS)]
    here = outcomes(LocalEngine(1), jobs, tmp_path / "local")
    assert outcomes(engine, jobs, tmp_path / "ray") == here
    kept = (tmp_path / "ray" / "x-runs.jsonl").read_text()
    assert sorted(kept.splitlines()) == sorted(
        (tmp_path / "local" / "x-runs.jsonl").read_text().splitlines()
    )


def test_many_studies_are_a_task_each_with_the_same_outcomes(
    engine: Engine, tmp_path: Path
) -> None:
    jobs = [Job(study, seed, ARMS[:2]) for seed in (0, 1) for study in (NETWORK, HEAD)]
    here = outcomes(LocalEngine(1), jobs, tmp_path / "local")
    assert outcomes(engine, jobs, tmp_path / "ray") == here


def test_what_one_engine_finished_the_other_takes_as_known(engine: Engine, tmp_path: Path) -> None:
    jobs = [Job(NETWORK, 0, ARMS[2:])]
    found = outcomes(engine, jobs, tmp_path)
    kept = (tmp_path / "x-runs.jsonl").read_bytes()
    assert outcomes(LocalEngine(1), jobs, tmp_path) == found
    assert (tmp_path / "x-runs.jsonl").read_bytes() == kept, "nothing ran again"


@pytest.mark.parametrize("count", [1, 4], ids=["spread", "job by job"])
def test_a_job_that_cannot_be_carried_out_keeps_no_other_from_it(
    engine: Engine, tmp_path: Path, count: int
) -> None:
    few = Study.model_validate(
        {
            "hospitals": {"count": 4},
            "training": {"rounds": 1},
            "hostile": {"attack": "alie", "count": 3},
        }
    )
    jobs = [Job(study, seed, ARMS[2:]) for seed in (0, 1) for study in (few, NETWORK)][:count]
    assert [len(found) for found in outcomes(engine, jobs, tmp_path)] == [0, 1, 0, 1][:count]


def test_a_lost_worker_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    long = NETWORK.training.model_copy(update={"rounds": 12})
    jobs = [Job(NETWORK.model_copy(update={"training": long}), 0, ARMS[2:])]
    here = outcomes(LocalEngine(1), jobs, tmp_path / "local")
    killed: list[int] = []
    stop = threading.Event()

    def kill_the_first() -> None:
        while not killed and not stop.wait(0.001):
            for process in psutil.Process().children(recursive=True):
                if process.name().startswith("ray::_train"):
                    process.kill()
                    killed.append(process.pid)
                    return

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    there = outcomes(engine, jobs, tmp_path / "ray")
    stop.set()
    killer.join()
    assert killed, "no worker was met at work"
    assert there == here


def test_a_worker_with_other_code_is_told_of(engine: Engine) -> None:
    import ray

    job = Job(NETWORK, 0, ARMS[2:])
    assert engine, "connected"
    with (
        pytest.raises(ray_engine.EngineError, match="a Ray worker has another version of MATL"),
        ray_engine._errors_of_ours(),
    ):
        ray.get(ray_engine._carried_out.remote(job, [ray.put(images_of(job))], "another"))


def test_without_ray_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "study.toml"
    path.write_text("[hospitals]\ncount = 3\n")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "matl.simulation.ray_engine")
    found = CliRunner().invoke(app, ["simulate", str(path), "--engine", "ray"])
    assert found.exit_code == 2
    assert found.output.strip() == "matl: --engine ray needs Ray: pip install 'matl[ray]'"


def test_an_address_is_for_ray_alone(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text("[hospitals]\ncount = 3\n")
    found = CliRunner().invoke(app, ["simulate", str(path), "--ray-address", "auto"])
    assert found.exit_code == 2
    assert "--ray-address is for --engine ray" in found.output


@pytest.mark.parametrize(
    ("address", "said"),
    [("nowhere", "give HOST:PORT"), ("127.0.0.1:1", "refused"), ("127.0.0.1:99999", "no Ray")],
)
def test_an_address_without_a_cluster_is_one_line_at_once(address: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        ray_engine.RayEngine(processes=1, address=address).run([], done=print, told=print)
