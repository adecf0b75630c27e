"""A small study, and its first round."""

from pathlib import Path
from typing import Any

import numpy as np

from matl.simulation.arms import Arm, Decision, RoundInput, make_arm
from matl.simulation.federation import (
    FOLDS,
    Simulation,
)
from matl.simulation.learners import LocalUpdates
from matl.simulation.study import ArmName, Study
from matl_coordinator.core.robust.root import RootRow
from matl_coordinator.scoring.split import split_holdout

HEAD = {"recipe": "head", "rounds": 3, "steps": 2, "learning_rate": 24.0}


def study(attack: str = "none", **tables: Any) -> Study:
    return Study.model_validate(
        {
            "hospitals": {"count": 20, "alpha": 0.5},
            "training": {"rounds": 3},
            "hostile": {"attack": attack, "share": 0.45},
        }
        | tables
    )


def private(attack: str = "none") -> Study:
    return study(attack, training=HEAD, privacy={"epsilon": 1.0})


def trained(simulation: Simulation, base: np.ndarray, *, round_number: int = 1) -> LocalUpdates:
    """One round at every hospital."""
    everybody = range(len(simulation.cohort.nodes))
    return simulation.trainer(simulation.learner, base, round_number, everybody)


def closed_round(simulation: Simulation, sent: np.ndarray, *, losses: float = 0.01) -> RoundInput:
    """A round in which these updates were admitted."""
    learner, nodes = simulation.learner, simulation.cohort.nodes
    split = split_holdout(simulation.cohort.root_labels, folds=FOLDS)
    base = learner.initial()
    updates = dict(zip(nodes, sent, strict=True))
    rows = [RootRow(f"root-{c}-{k}", c, k, len(own)) for (c, k), own in split.folds.items()]
    return RoundInput(
        number=1,
        base=base,
        sent=updates,
        updates=updates,
        violations={},
        root=rows,
        descent=lambda part, step: learner.descent(
            base if step is None else base + step, split.folds[part.class_index, part.fold]
        ),
        root_update=lambda: base,
        pooled_update=lambda: base,
        loss_improvement=dict.fromkeys(nodes, losses),
        losses_before=learner.root_losses(base, np.zeros_like(base)[None], split.validation)[0],
        losses=lambda update: learner.root_losses(base, update[None], split.validation)[0],
    )


def begun(
    simulation: Simulation, name: ArmName, folder: Path
) -> tuple[Arm, LocalUpdates, RoundInput]:
    """An arm, and the first round, in which everybody was honest and admitted."""
    base = simulation.learner.initial()
    local = trained(simulation, base)
    arm = make_arm(name, simulation.federation, folder, first_model=base)
    return arm, local, closed_round(simulation, local.sent)


def decided(simulation: Simulation, name: ArmName, folder: Path) -> Decision:
    (folder / name).mkdir()
    arm, _, closed = begun(simulation, name, folder / name)
    return arm.decide(closed)
