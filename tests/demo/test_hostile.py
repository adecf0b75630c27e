"""The demonstration's hostile hospital as a process, at a live coordinator."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

from pathlib import Path

import pytest

from matl.demo.study import Attack
from tests.attacks.arena import ATTACKERS, HONEST, Villain, fight, prepare_arena_material

pytestmark = [pytest.mark.system, pytest.mark.hostile, pytest.mark.timeout(300)]
FLIPPER = ATTACKERS[0]


def test_the_hostile_hospital_is_admitted_counts_for_nothing_and_ends_no_round(
    tmp_path: Path,
) -> None:
    outcome = fight(
        tmp_path,
        prepare_arena_material(tmp_path / "material"),
        {FLIPPER: Villain(demonstrates=Attack.SIGN_FLIP.value)},
        honest=3,
        study={"rounds": 1},
        rounds={"minimum_participants": 4, "maximum_participants": 4, "collect_seconds": 60.0},
    )
    assert outcome.released() == [1]
    assert outcome.outputs[FLIPPER].events("update_admitted", round=1)
    assert outcome.weights(1)[FLIPPER] == 0.0
    assert all(outcome.weights(1)[node] > 0.0 for node in HONEST[:3])
    assert set(outcome.statuses.values()) == {0}
