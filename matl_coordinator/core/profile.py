"""Whether a hospital's update has the parts its enrolled label mix predicts.

A full-batch update of a linear head is the sum over classes of the class gradient times the
share of the class, times one step length common to all hospitals. Class gradients are those
along the round's step, where the noise lets it be taken (``scoring.path``). An update that
helps the holdout set on average but lacks a class, or most of everything, does not have that
profile. Nothing here decides what a deficit costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from matl_common.ids import NodeId
from matl_common.protocol import Recipe, StudyPlan
from matl_coordinator.core.robust.gram import Float64Array, Gram
from matl_coordinator.core.robust.root import (
    RootRow,
    class_members,
    class_shares,
    reference_rank,
)
from matl_coordinator.core.trust_record import TrustPolicy, TrustRecord


@dataclass(frozen=True, slots=True)
class Profile:
    """What one update holds of each class's holdout gradient, beyond what was predicted."""

    node_id: NodeId
    classes: tuple[int, ...]
    shares: tuple[float, ...]
    """By class, of the enrolled label mix."""
    surplus: tuple[float, ...]
    """By class, in shares of one class's gradient; negative where the update lacks it."""
    variance: tuple[float, ...]
    """Of each surplus, from the finite holdout set and from privacy noise."""


@dataclass(frozen=True, slots=True)
class ProfileReading:
    """One hospital's profile over the rounds, beside those of the others."""

    signal: tuple[float, ...]
    """By class: faded sum of surplus / variance."""
    information: tuple[float, ...]
    """By class: faded sum of 1 / variance."""
    worst_class: int
    surplus: float
    """Of that class, averaged over rounds."""
    deficit: float
    """The same in multiples of what an honest hospital may lack; negative for a surplus."""
    z: float
    """The surplus in standard errors; understated where the past has faded."""
    harm: bool = False


def has_profiles(plan: StudyPlan) -> bool:
    """Whether an update of this study is the sum of its classes' gradients, behind noise.

    Many local steps of a network are not such a sum: there honest updates would be refused.
    """
    return plan.training.recipe is Recipe.HEAD and plan.privacy.noise_multiplier > 0.0


def profiles_of(
    gram: Gram,
    rows: Sequence[RootRow],
    *,
    label_shares: Mapping[NodeId, Sequence[float]],
    f: int,
    policy: TrustPolicy,
) -> tuple[Profile, ...]:
    """Compare every update with its enrolled label mix p, for updates of a linear head.

    Predicted is λ Σ_c p_c r_c with r_c the gradient of class c. An update x then holds
    ⟨x, r_c⟩ / λ‖r_c‖² of class c where Σ_k p_k ⟨r_k, r_c⟩ / ‖r_c‖² is due. The scale λ is that
    of the other hospitals, at the rank that ``f`` of them cannot lift above all the honest; a
    hospital whose own scale is a little lower is measured by its own.

    Args:
        gram: its extra rows include all of ``rows``, by name.
        rows: at least two folds of every class that occurs.
        label_shares: enrolled, by node; others have no profile.
        f: bound on hostile updates.
        policy: for how much lower is a little.

    Returns:
        Nothing in a round where the updates together do not go downhill.

    Raises:
        AggregationError: rows and Gram do not fit together.
    """
    nodes = [node for node in gram.nodes if node in label_shares]
    classes, members = class_members(gram, rows)
    means = np.zeros((len(classes), gram.matrix.shape[0]))
    for index, member in enumerate(members):
        means[index, member] = 1.0 / len(member)
    gradients = means @ gram.matrix @ means.T
    squared = np.diagonal(gradients)
    if not nodes or not (squared > 0.0).all():
        return ()
    places = [gram.nodes.index(node) for node in nodes]
    inner = gram.matrix[places]
    found = inner @ means.T
    shares = np.stack([class_shares(classes, label_shares[node]) for node in nodes])
    lengths = np.einsum("ic,cd,id->i", shares, gradients, shares)
    along = np.divide(
        np.einsum("ic,ic->i", shares, found), lengths, out=np.zeros(len(nodes)), where=lengths > 0
    )
    common = float(np.sort(along)[::-1][reference_rank(len(nodes), f) - 1])
    if common <= 0.0:
        return ()
    scale = np.clip(along, policy.profile_scale * common, common)[:, None]
    spread = np.stack([inner[:, m].var(axis=1, ddof=1) / len(m) for m in members], axis=1)
    std = np.zeros(gram.n) if gram.noise is None else gram.noise.std
    variance = (std[places, None] ** 2 / squared + spread / squared**2) / scale**2
    surplus = found / squared / scale - shares @ gradients / squared
    return tuple(
        Profile(node, tuple(classes), *(tuple(map(float, each)) for each in parts))
        for node, *parts in zip(nodes, shares, surplus, variance, strict=True)
    )


def read_profiles(
    records: Sequence[TrustRecord],
    profiles: Sequence[Profile],
    *,
    f: int,
    policy: TrustPolicy,
) -> dict[NodeId, ProfileReading]:
    """Add a round to what is remembered, and tell who lacks a class as no honest one does.

    Harm is a deficit above what an honest hospital may lack, and above ``profile_spread`` times
    that of a middling one, which no noise explains. May lack: the margin, or ``profile_saturation``
    of what is due, whichever is more, for a hospital of one class mostly has learnt it before
    its local steps are over. At most ``f`` do harm in a round, the worst ones: were it more,
    the enrolled mixes would be what is wrong.
    """
    before = {record.node_id: record for record in records}
    readings = {
        each.node_id: reading
        for each in profiles
        if (reading := _added(before[each.node_id], each, policy)) is not None
    }
    if not readings:
        return {}
    deficits = sorted(max(0.0, reading.deficit) for reading in readings.values())
    bound = min(f, (len(deficits) - 1) // 2)
    middling = deficits[-(-(len(deficits) - bound) // 2) - 1]
    limit = max(1.0, policy.profile_spread * middling)
    suspects = sorted(
        (-reading.deficit, node)
        for node, reading in readings.items()
        if reading.deficit > limit and reading.z < policy.profile_z
    )
    for _, node in suspects[:f]:
        readings[node] = replace(readings[node], harm=True)
    return readings


def _added(record: TrustRecord, profile: Profile, policy: TrustPolicy) -> ProfileReading | None:
    count = len(profile.classes)
    is_known = len(record.profile_signal) == count == len(record.profile_information)
    old: Float64Array = np.array(
        [record.profile_signal, record.profile_information] if is_known else np.zeros((2, count))
    )
    surplus, variance = np.array(profile.surplus), np.array(profile.variance)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        signal = policy.memory * old[0] + surplus / variance
        information = policy.memory * old[1] + 1.0 / variance
    # Without noise and without spread a surplus has no standard error to be measured in.
    if not np.isfinite([signal, information]).all():
        return None
    mean = signal / information
    lacking = -mean / np.maximum(
        policy.profile_margin, policy.profile_saturation * np.array(profile.shares)
    )
    worst = int(lacking.argmax())
    return ProfileReading(
        signal=tuple(map(float, signal)),
        information=tuple(map(float, information)),
        worst_class=profile.classes[worst],
        surplus=float(mean[worst]),
        deficit=float(lacking[worst]),
        z=float(mean[worst]) * math.sqrt(float(information[worst])),
    )
