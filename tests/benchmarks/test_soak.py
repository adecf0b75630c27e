"""Growth a round: told from noise, and not hidden by restarts."""

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import text

from benchmarks.evidence_soak import what_grows
from benchmarks.soak.usage import DATABASE_FILE, Slope, Usage, Verdict, slope_of, usage_of
from matl_coordinator.store.database import create_database_engine, reading
from matl_coordinator.store.limits import POOL_CONNECTIONS
from tests.store.proxy import proxied_port


def lives_of(per_round: float, *, lives: int, rounds: int, node: str = "a") -> list[Usage]:
    """A process that grows by so much a round, with noise of ±1, and starts at 100 in each life."""
    return [
        Usage(
            node,
            life,
            life * rounds + age,
            {"memory": 100.0 + per_round * age + (1.0 if age % 2 else -1.0)},
        )
        for life in range(lives)
        for age in range(rounds)
    ]


@pytest.mark.parametrize("lives", [1, 5])
def test_growth_is_found_however_often_the_process_starts_again(lives: int) -> None:
    slope = slope_of(lives_of(0.5, lives=lives, rounds=60), "memory", settle_rounds=10)
    assert slope is not None
    assert slope.per_round == pytest.approx(0.5, abs=0.05)
    assert slope.verdict is Verdict.GROWS


def test_taken_as_one_life_restarts_would_hide_it() -> None:
    usages = lives_of(0.5, lives=5, rounds=60)
    slope = slope_of(usages, "memory", settle_rounds=10, across_lives=True)
    assert slope is not None
    assert slope.per_round < 0.1


def test_noise_shows_neither_growth_nor_that_there_is_none() -> None:
    slope = slope_of(lives_of(0.0, lives=2, rounds=60), "memory", settle_rounds=10)
    assert slope is not None
    assert slope.verdict is Verdict.NOT_SHOWN


def test_without_growth_enough_rounds_show_that_there_is_none() -> None:
    slope = slope_of(lives_of(0.0, lives=1, rounds=500), "memory", settle_rounds=10)
    assert slope is not None
    assert slope.verdict is Verdict.FLAT


def test_a_soak_fails_for_what_grows_but_not_for_the_log() -> None:
    grows = Slope(per_round=1e-1, interval=1e-6, median=100.0, rounds=500)
    unsure = Slope(per_round=1e-1, interval=2e-1, median=100.0, rounds=500)
    slopes = {
        "coordinator_descriptors": grows,
        "coordinator_threads": unsure,
        "hospital_other_files_mib": grows,
    }
    assert what_grows(slopes) == ["coordinator descriptors"]


def test_what_a_life_begins_with_does_not_count() -> None:
    filling = [Usage("a", 0, age, {"memory": min(age, 20)}) for age in range(80)]
    slope = slope_of(filling, "memory", settle_rounds=20)
    assert slope is not None
    assert slope.per_round == pytest.approx(0.0)


def test_lives_too_short_to_tell_say_nothing() -> None:
    assert slope_of(lives_of(1.0, lives=9, rounds=12), "memory", settle_rounds=10) is None


def test_growth_that_is_sure_but_tiny_counts_as_flat() -> None:
    tiny = Slope(per_round=1e-4, interval=1e-6, median=100.0, rounds=500)
    assert tiny.verdict is Verdict.FLAT


def test_a_database_s_descriptors_are_told_apart_and_end_with_its_pool(tmp_path: Path) -> None:
    engine = create_database_engine(f"sqlite:///{tmp_path / DATABASE_FILE}")
    all_read = Barrier(POOL_CONNECTIONS)

    def read(_: int) -> None:
        for _ in range(3):
            with reading(engine) as connection:
                connection.execute(text("SELECT count(*) FROM sqlite_schema"))
                all_read.wait(30.0)

    def descriptors() -> float:
        found = usage_of(os.getpid(), tmp_path)
        assert found is not None
        return found["database_descriptors"]

    assert descriptors() == 0
    with ThreadPoolExecutor(POOL_CONNECTIONS) as threads:
        list(threads.map(read, range(POOL_CONNECTIONS)))
    # The file and its journal for each connection, and the memory that all of them share.
    assert descriptors() == 2 * POOL_CONNECTIONS + 1
    engine.dispose()
    assert descriptors() == 0


def test_a_link_whose_hospital_is_gone_keeps_the_coordinator_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as coordinator:
        coordinator.settimeout(30.0)
        with proxied_port(coordinator.getsockname()[1]) as link:
            hospital = socket.create_connection(("127.0.0.1", link.port))
            served, _ = coordinator.accept()
            with served:
                served.settimeout(30.0)
                hospital.sendall(b"x")
                assert served.recv(1) == b"x"
                hospital.close()
                assert served.recv(1) == b""
