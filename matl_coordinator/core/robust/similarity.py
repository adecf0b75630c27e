"""Rules that look at what hospitals did over many rounds."""

from __future__ import annotations

import numpy as np

from matl_coordinator.core.robust.gram import AggregationError, Float64Array, Gram
from matl_coordinator.core.robust.plan import Plan
from matl_coordinator.core.robust.rules import check_rows, mixture_of

_MOST = 0.99


def foolsgold(gram: Gram, *, confidence: float = 1.0) -> Plan:
    """Mean by how unlike the others a hospital is, FoolsGold (Fung et al., RAID 2020).

    With cs_ij the cosine of the sums of i's and j's updates over all rounds and
    v_i = max_j cs_ij: cs_ij ← cs_ij v_i/v_j where v_j > v_i (pardoning);
    α_i = 1 − max_j cs_ij, scaled to a largest of 1; weight = κ (ln(α_i/(1 − α_i)) + ½) cut
    to [0, 1]. The paper adds the weighted updates up; here they are averaged, and sizes
    and trust count too. Needs n > 0. Bears any number of hostile hospitals that act
    alike, none that does not; harms honest ones with like data.

    Args:
        gram: the round, with its history.
        confidence: κ of the paper.

    Raises:
        AggregationError: no history, nobody has weight, or a value is not finite.
    """
    check_rows(gram, minimum=1, rule="FoolsGold")
    if gram.history is None:
        raise AggregationError("FoolsGold needs the updates summed over rounds; none were measured")
    if not np.isfinite(gram.history).all():
        raise AggregationError("FoolsGold: the sum of past updates is not finite")
    weights = gram.weights * confidence_by_unlikeness(gram.history, confidence=confidence)
    if not weights.sum() > 0:
        raise AggregationError("FoolsGold: every hospital acts like another; hold the round")
    return mixture_of(gram, weights / weights.sum())


def confidence_by_unlikeness(history: Float64Array, *, confidence: float) -> Float64Array:
    """FoolsGold's weights, each from 0 to 1, from inner products of updates summed over rounds."""
    norms = np.sqrt(np.maximum(np.diagonal(history), 0.0))
    lengths = np.outer(norms, norms)
    alike = np.divide(history, lengths, out=np.zeros_like(history), where=lengths > 0)
    np.fill_diagonal(alike, -np.inf)
    # A lone hospital is like nobody.
    most = np.maximum(alike.max(axis=1), 0.0)
    pardon = np.divide(
        most[:, None], most[None, :], out=np.ones_like(alike), where=most[None, :] > most[:, None]
    )
    np.fill_diagonal(alike, 0.0)
    unlike = np.clip(1.0 - np.max(alike * pardon, axis=1), 0.0, 1.0)
    if not unlike.max() > 0:
        return np.zeros_like(unlike)
    scaled = np.minimum(unlike / unlike.max(), _MOST)
    logit = np.full_like(scaled, -np.inf)
    some = scaled > 0
    logit[some] = confidence * (np.log(scaled[some] / (1.0 - scaled[some])) + 0.5)
    weights: Float64Array = np.clip(logit, 0.0, 1.0)
    return weights
