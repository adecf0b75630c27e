"""The fast core of ``make evidence-faults``: daemons that die wherever they write."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.marches import Ending, march, undisturbed
from tests.faults.points import Mode
from tests.faults.warm_worker import warm_workers
from tests.system.federation import COORDINATOR, HOSPITALS, Material, prepare_material

pytestmark = [pytest.mark.system, pytest.mark.crash, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return prepare_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Ending:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), material)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with warm_workers(tmp_path_factory.mktemp("warm")) as found:
        yield found


def test_a_coordinator_that_dies_after_every_commit_of_an_update_ends_with_the_same_model_and_log(
    tmp_path: Path, material: Material, expected: Ending, python: str
) -> None:
    found = march(
        tmp_path / "march",
        material,
        expected,
        victim=COORDINATOR,
        mode=Mode.KILL_AFTER,
        only="commit .*updates",
        python=python,
    )
    assert found.verdict.findings == ()
    assert any("updates[receiving]" in point for point in found.points)
    assert any("updates[admitted]" in point for point in found.points)
    assert found.lives == len(found.points) + 1


def test_a_hospital_that_loses_its_power_at_every_write_pays_for_what_it_trains_and_no_more(
    tmp_path: Path, material: Material, expected: Ending
) -> None:
    found = march(
        tmp_path / "march",
        material,
        expected,
        victim=HOSPITALS[0],
        mode=Mode.POWER_CUT,
        only="ledger|sealed|receipts|work",
    )
    assert found.verdict.findings == ()
    for part in ("(RESERVE)", "(SEAL)", "(ACK)", "sealed/round", "receipts/round"):
        assert any(part in point for point in found.points), part
    assert found.lives == len(found.points) + 1
