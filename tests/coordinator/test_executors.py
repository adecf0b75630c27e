"""The same bits whoever does a pass and wherever the updates lie, whatever breaks meanwhile."""

import hashlib
import os
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from matl_common.errors import IntegrityError
from matl_common.ids import NodeId, RoundId
from matl_common.tensors import CHUNK_BYTES, hash_chunks
from matl_coordinator.aggregation import (
    Executor,
    LocalExecutor,
    RayExecutor,
    Row,
    aggregate_chunks,
    measure,
)
from matl_coordinator.aggregation.ray_executor import LOCAL_CLUSTER
from matl_coordinator.aggregation.sharing import SharedStore
from matl_coordinator.aggregation.stored import SharedPlace
from matl_coordinator.core.robust.gram import AggregationError, Needs
from matl_coordinator.core.robust.plan import (
    CoordinateTrimmedMean,
    Identity,
    Plan,
)
from matl_coordinator.core.robust.ranges import VERIFIED_ELEMENTS
from matl_coordinator.ports import SharedStoreError
from tests.coordinator.buckets import CREDENTIALS, BucketServer, bucket_server

N = 8
# Five tasks of two chunks, the last of them short and not of whole groups.
D = 8 * VERIFIED_ELEMENTS + 54_321
ROUND = RoundId(3)
NAMES = tuple(f"n{index}" for index in range(N))
PLANS = (
    Plan(NAMES, np.full((1, N), 1 / N), Identity()),
    Plan(NAMES, np.full((N, N), 0.01) + np.eye(N), CoordinateTrimmedMean(1)),
)


def digest(rows: list[Row], executor: Executor) -> str:
    """Of everything that both passes come to."""
    gram = measure(
        rows,
        elements=D,
        executor=executor,
        needs=Needs(subsets=1),
        noise={NodeId("n1"): 1.0},
        seed=5,
    )
    found = hashlib.sha256(gram.matrix.tobytes() + gram.subsets[0].tobytes())
    found.update(repr(gram.facts).encode())
    for plan in PLANS:
        for chunk in aggregate_chunks(plan, rows, elements=D, executor=executor):
            found.update(chunk.tobytes())
    return found.hexdigest()


def shared(rows: list[Row], place: SharedPlace) -> list[Row]:
    store = SharedStore(place, federation="eu-retina", study="dr-2026")
    return [store.shared(row, ROUND, chunk_hashes=b"".join(hash_chunks(row.path))) for row in rows]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    folder = tmp_path_factory.mktemp("updates")
    draws = np.random.default_rng(11)
    found = []
    for name in NAMES:
        path = folder / name
        draws.standard_normal(D, dtype=np.float32).tofile(path)
        found.append(Row(name, path))
    return found


@pytest.fixture(scope="module")
def expected(rows: list[Row]) -> str:
    return digest(rows, LocalExecutor())


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketServer]:
    with pytest.MonkeyPatch.context() as patch, bucket_server(tmp_path_factory.mktemp("s3")) as s3:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield s3


@pytest.fixture(scope="module")
def places(
    bucket: BucketServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, SharedPlace]:
    folder = tmp_path_factory.mktemp("shared")
    return {"folder": SharedPlace(f"file://{folder}"), "bucket": bucket.place}


@pytest.fixture(scope="module")
def in_store(places: dict[str, SharedPlace], rows: list[Row]) -> Callable[[str], list[Row]]:
    return lambda kind: shared(rows, places[kind])


@pytest.fixture(scope="module")
def cluster(bucket: BucketServer) -> Iterator[RayExecutor]:
    # After the bucket: workers have the credentials that their environment had at first.
    executor = RayExecutor(
        address=LOCAL_CLUSTER, workers=2, local=LocalExecutor(), stall_seconds=100.0
    )
    with pytest.MonkeyPatch.context() as patch:
        # As under a unit with ProtectHome=yes.
        patch.setenv("HOME", "/proc/no-home")
        # What another cluster of the operator's may need.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield executor
    executor.close()


@pytest.mark.parametrize("kind", ["folder", "bucket"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_shared_store_and_the_number_of_threads_change_no_bit(
    in_store: Callable[[str], list[Row]], expected: str, kind: str, threads: int
) -> None:
    assert digest(in_store(kind), LocalExecutor(threads)) == expected


@pytest.mark.system
@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_workers_of_a_cluster_change_no_bit(
    in_store: Callable[[str], list[Row]], cluster: RayExecutor, expected: str, kind: str
) -> None:
    assert digest(in_store(kind), cluster) == expected
    # It is they who did it: their driver is there, and was not replaced by this process.
    assert workers_of(cluster)


@pytest.mark.hostile
def test_a_cluster_of_this_machine_needs_no_home_and_answers_nobody_without_its_token(
    in_store: Callable[[str], list[Row]], cluster: RayExecutor
) -> None:
    whole_mean(in_store("folder"), cluster, after_first=int)
    assert cluster.driver_pid is not None
    (address,) = {
        part.removeprefix("--gcs-address=")
        for each in psutil.Process(cluster.driver_pid).children(recursive=True)
        for part in each.cmdline()
        if part.startswith("--gcs-address=")
    }
    token = psutil.Process(cluster.driver_pid).environ()["RAY_AUTH_TOKEN"]
    with grpc.insecure_channel(address) as channel:
        ask: Callable[..., object] = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        ask(b"", metadata=[("authorization", f"Bearer {token}")], timeout=10.0)
        with pytest.raises(grpc.RpcError) as refused:
            ask(b"", timeout=10.0)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def workers_of(cluster: RayExecutor) -> list[psutil.Process]:
    assert cluster.driver_pid is not None
    found = []
    for each in psutil.Process(cluster.driver_pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            # Not the cluster's agents, with which it would end.
            if each.name() in ("ray::do_part", "ray::IDLE"):
                found.append(each)
    return found


def whole_mean(
    rows: list[Row], executor: Executor, *, after_first: Callable[[], object]
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    chunks = aggregate_chunks(PLANS[0], rows, elements=D, executor=executor)
    found = [next(chunks)]
    after_first()
    found += chunks
    return np.concatenate(found)


@pytest.mark.crash
def test_workers_that_are_killed_in_mid_pass_change_no_bit(
    in_store: Callable[[str], list[Row]], cluster: RayExecutor
) -> None:
    stored = in_store("folder")
    driver = []

    def kill() -> None:
        driver.append(cluster.driver_pid)
        workers = workers_of(cluster)
        assert workers
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()

    found = whole_mean(stored, cluster, after_first=kill)
    np.testing.assert_array_equal(found, whole_mean(stored, LocalExecutor(), after_first=int))
    # Ray did the lost tasks again; nothing of it fell to this process.
    assert driver == [cluster.driver_pid]


@pytest.mark.system
def test_a_cluster_that_cannot_be_reached_leaves_the_pass_to_this_machine(
    in_store: Callable[[str], list[Row]], capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = RayExecutor(
        address="no-such-host.invalid:1", workers=2, local=LocalExecutor(), stall_seconds=1.0
    )
    stored = in_store("folder")
    found = whole_mean(stored, nowhere, after_first=int)
    np.testing.assert_array_equal(found, whole_mean(stored, LocalExecutor(), after_first=int))
    assert "pass_goes_on_locally" in capsys.readouterr().out
    nowhere.close()


@pytest.mark.system
def test_workers_without_the_mount_leave_the_pass_to_this_machine_and_are_named(
    rows: list[Row], cluster: RayExecutor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A folder by a descriptor that is open in this process alone.
    descriptor = os.open(tmp_path, os.O_DIRECTORY)
    try:
        stored = shared(rows, SharedPlace(f"file:///proc/self/fd/{descriptor}"))
        found = whole_mean(stored, cluster, after_first=int)
        np.testing.assert_array_equal(found, whole_mean(stored, LocalExecutor(), after_first=int))
    finally:
        os.close(descriptor)
    warning = capsys.readouterr().out
    assert "pass_goes_on_locally" in warning
    assert f"the worker on {platform.node()}: cannot read the updates" in warning
    # The cluster may well do the next one.
    assert cluster.driver_pid is not None


@pytest.mark.hostile
@pytest.mark.parametrize("who", ["local", "ray"])
def test_a_changed_object_is_refused_by_update_and_chunk(
    tmp_path: Path, rows: list[Row], cluster: RayExecutor, who: str
) -> None:
    stored = shared(rows, SharedPlace(f"file://{tmp_path}"))
    assert stored[5].stored is not None
    with (tmp_path / stored[5].stored.key).open("r+b") as file:
        file.seek(3 * CHUNK_BYTES + 77)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    executor: Executor = LocalExecutor() if who == "local" else cluster
    with pytest.raises(IntegrityError, match=r"chunk 3 of the update of n5 in the shared"):
        list(aggregate_chunks(PLANS[0], stored, elements=D, executor=executor))
    with pytest.raises(IntegrityError, match=r"chunk 3 of the update of n5 in the shared"):
        measure(stored, elements=D, executor=executor)


@pytest.mark.hostile
def test_an_object_that_became_shorter_is_refused(tmp_path: Path, rows: list[Row]) -> None:
    stored = shared(rows, SharedPlace(f"file://{tmp_path}"))
    assert stored[0].stored is not None
    os.truncate(tmp_path / stored[0].stored.key, 4 * CHUNK_BYTES + 5)
    with pytest.raises(IntegrityError, match="chunk 4 of the update of n0"):
        list(aggregate_chunks(PLANS[0], stored, elements=D))
    # What is missing is put there again from the coordinator's own disk.
    again = shared(rows, SharedPlace(f"file://{tmp_path}"))
    assert again == stored
    assert len(list(aggregate_chunks(PLANS[0], again, elements=D))) > 1


def test_a_store_that_is_away_is_named_and_has_lost_nothing_when_it_is_back(
    in_store: Callable[[str], list[Row]], bucket: BucketServer, expected: str
) -> None:
    stored = in_store("bucket")
    bucket.stop()
    try:
        with pytest.raises(SharedStoreError, match="s3://updates/study"):
            list(aggregate_chunks(PLANS[0], stored, elements=D))
        with pytest.raises(SharedStoreError, match="cannot put the update of n0"):
            in_store("bucket")
    finally:
        bucket.start()
    assert digest(stored, LocalExecutor()) == expected


def test_earlier_rounds_of_the_study_leave_a_bucket_and_nothing_else(
    bucket: BucketServer, tmp_path: Path
) -> None:
    path = tmp_path / "update"
    path.write_bytes(bytes(CHUNK_BYTES))
    row = Row("n0", path)
    hashes = b"".join(hash_chunks(path))
    store, other = (
        SharedStore(bucket.place, federation="retina", study=study) for study in ("a", "ab")
    )
    for number in (1, 2, 10):
        store.shared(row, RoundId(number), chunk_hashes=hashes)
    other.shared(row, RoundId(1), chunk_hashes=hashes)
    store.discard_before(RoundId(2))
    found = bucket.file("retina").rglob("n0-*.update")
    kept = {f"{each.parent.relative_to(bucket.file('retina'))}" for each in found}
    assert kept == {"a/round-2", "a/round-10", "ab/round-1"}


def test_rows_in_two_places_are_no_pass(
    rows: list[Row], in_store: Callable[[str], list[Row]]
) -> None:
    stored = in_store("folder")
    with pytest.raises(AggregationError, match="some do not"):
        list(aggregate_chunks(PLANS[0], [*stored[:4], *rows[4:]], elements=D))
    other = in_store("bucket")
    with pytest.raises(AggregationError, match="different stores"):
        list(aggregate_chunks(PLANS[0], [*stored[:4], *other[4:]], elements=D))
    assert stored[0].stored is not None
    short = replace(stored[0], stored=replace(stored[0].stored, byte_count=4))
    with pytest.raises(AggregationError, match="row n0 has 4 bytes"):
        list(aggregate_chunks(PLANS[0], [short, *stored[1:]], elements=D))


@pytest.mark.crash
def test_a_cluster_that_is_lost_in_mid_pass_costs_a_warning_and_no_bit(
    in_store: Callable[[str], list[Row]], cluster: RayExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = in_store("folder")

    def kill() -> None:
        assert cluster.driver_pid is not None
        os.kill(cluster.driver_pid, signal.SIGKILL)

    found = whole_mean(stored, cluster, after_first=kill)
    np.testing.assert_array_equal(found, whole_mean(stored, LocalExecutor(), after_first=int))
    assert "pass_goes_on_locally" in capsys.readouterr().out
    assert cluster.driver_pid is None
