"""Hostile hospitals that try to have an honest one excluded: peers must not be able to."""

from dataclasses import replace

import numpy as np
import pytest

from matl_common.ids import NodeId, RoundId
from matl_coordinator.core.trust import (
    HoldoutScore,
    PeerAgreement,
    TrustRecord,
    TrustState,
    initial_record,
    update_trust,
)

NODES = tuple(NodeId(f"h{index}") for index in range(5))
VICTIM = NODES[-1]


def after(rounds: int, *, cosine: float, seed: int) -> TrustRecord:
    """The victim's record: good early rounds, then late ones that waver around nothing."""
    records = tuple(initial_record(node) for node in NODES)
    draws = np.random.default_rng(seed)
    for number in range(1, rounds + 1):
        early = number <= 10
        wavering = max(-2.9, draws.normal(0.3, 1.2))
        zs = dict.fromkeys(NODES, 6.0 if early else 0.5) | {VICTIM: 6.0 if early else wavering}
        scores = [HoldoutScore(node, z / 4.0, 1.0 / 16.0, 0.0) for node, z in zs.items()]
        if early:
            scores = [replace(each, projection=8 * each.projection) for each in scores]
        peers = {VICTIM: PeerAgreement(0.5 if early else cosine, 0.02)}
        records = update_trust(records, scores, round_id=RoundId(number), agreement=peers)
    return records[-1]


@pytest.mark.parametrize("seed", range(6))
def test_a_hospital_that_the_holdout_set_has_spoken_for_is_as_it_would_be_without_them(
    seed: int,
) -> None:
    framed, alone = (after(40, cosine=cosine, seed=seed) for cosine in (-0.9, 0.5))
    assert framed.trust == alone.trust
    assert framed.state is alone.state is TrustState.TRUSTED
