"""The model that a round releases in place of its own, where the study averages.

It follows from the last release and the round's own model alone, so a round that is taken up
again after a crash ends in the identical model.
"""

from __future__ import annotations

from matl_common.ids import Digest
from matl_common.tensors import MODEL_SUFFIX
from matl_coordinator.aggregation import extend_mean
from matl_coordinator.core.averaging import models_before
from matl_coordinator.core.rounds import Average
from matl_coordinator.ports import ModelStore, State
from matl_coordinator.service.survey import checked_model


def average_with_earlier(
    state: State, candidate: Digest, *, average_from: int, models: ModelStore
) -> Average | None:
    """Average a round's own model with those that the last release is the mean of.

    Args:
        state: while the round is aggregated.
        candidate: the round's own model.
        average_from: as in the study plan.
        models: holds the last release and ``candidate``; takes the mean.

    Returns:
        ``None`` where the round releases its own model.

    Raises:
        IntegrityError: a model on disk is not what it was.
    """
    earlier = models_before(state.rounds_released, average_from=average_from)
    if earlier == 0:
        return None
    assert state.latest_model is not None, "a study that released rounds has a model"
    digest = extend_mean(
        checked_model(models, state.latest_model.digest),
        checked_model(models, candidate),
        models=earlier,
        folder=models.incoming,
    )
    return Average(models.adopt(models.incoming / f"{digest}{MODEL_SUFFIX}"), earlier + 1)
