"""Two of twelve hospitals that make ten honest ones look like one author, before the judge.

One sends the honest mean without noise, so that chains of near pairs lead through it; the
other stands apart. Nobody may gain weight by it, and no honest hospital may lose any.
"""

from dataclasses import replace

import numpy as np
import pytest

from matl.attacks import ATTACKS, Honest
from matl_common.ids import NodeId, RoundId
from matl_coordinator.core.judgement import Enrolment, judge_round
from matl_coordinator.core.robust.gram import Gram, PrivacyNoise
from matl_coordinator.core.robust.root import RootRow

pytestmark = [pytest.mark.hostile, pytest.mark.privacy]
D, HONEST, BOUND = 20_000, 10, 1.0


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("noise", [0.45, 1.5, 2.7, 6.0])
def test_a_hub_makes_no_cluster_of_the_honest(noise: float, steps: int) -> None:
    draws = np.random.default_rng(0)
    std = noise * BOUND / np.sqrt(D)
    direction = draws.standard_normal(D)
    direction /= np.linalg.norm(direction)
    signals = 0.5 * BOUND * (1.0 + 0.1 * draws.standard_normal((HONEST, 1))) * direction
    signals += 0.02 * BOUND / np.sqrt(D) * draws.standard_normal((HONEST, D))
    sent = signals + std * draws.standard_normal((HONEST, D))
    known = Honest(sent, signals[:2], signals=signals, noise_std=np.full(2, std))
    hostile = ATTACKS["hub"].craft(known, draws)
    names = [NodeId(f"honest_{index}") for index in range(HONEST)]
    attackers = [NodeId("hub"), NodeId("outsider")]
    root = [RootRow(f"root-{c}-{k}", c, k, 50) for c in range(2) for k in range(3)]
    gram = Gram.of(
        dict(zip([*names, *attackers], [*sent, *hostile], strict=True)),
        {each.name: direction + 0.05 / np.sqrt(D) * draws.standard_normal(D) for each in root},
    )
    judgement = judge_round(
        replace(gram, noise=PrivacyNoise(np.full(len(gram.nodes), std), BOUND)),
        root=root,
        loss_improvement=dict.fromkeys(gram.nodes, 0.1),
        trust=(),
        enrolled={node: Enrolment(1000) for node in gram.nodes},
        violations={},
        round_id=RoundId(1),
        byzantine=2,
        steps=steps,
    )
    assert judgement.hold is None
    assert judgement.shares[attackers[1]] <= 1.01 * min(judgement.shares[node] for node in names)
    assert sum(len(cluster & set(names)) for cluster in judgement.clusters) < HONEST / 2
