"""The reference arms: what the same data gives without a federation, and without trust.

``centralised`` pools every hospital's patients with their true labels and adds no noise: the
tutorial's ideal, which no hospital may do. ``fedavg`` and ``fedavg_weighted`` average the
hospitals' noised updates, plainly and by enrolled size, and look at none of them: hospital
E's are whatever it sends. All start from the federation's first model, take as many steps
with the same learning rate, and are judged on the same images. The noise is drawn anew
several times, and the median is told: one draw of it is worth several points. Starts no
process.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from matl.demo.federation import Layout, suspect_labels
from matl.demo.hospitals import TEST
from matl.demo.hostile import forge
from matl.demo.study import RECIPE, SUSPECT, Attack, Settings, declared_patients
from matl_common.ids import NodeId
from matl_common.tensors import read_model
from matl_common.vision.backbones import Backbone, load_backbone
from matl_common.vision.dataset import OnBadImage, read_labels
from matl_common.vision.features import FeatureCache, FeatureSet, cached_features
from matl_common.vision.images import first_views
from matl_common.vision.linear_head import Labels, LinearHead, parse_head, predict
from matl_common.vision.metrics import evaluate
from matl_participant.training.head import HeadTraining, train_head

REPEATS: Final = 21

Update = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HospitalData:
    """What one hospital trains on, and what it should have.

    Attributes:
        node_id: whose.
        features: one row per patient, shape (patients, feature_dim).
        labels: as the hospital's training process sees them, shape (patients,).
        true_labels: shape (patients,).
        declared_patients: its enrolled size.
    """

    node_id: NodeId
    features: NDArray[np.float32]
    labels: Labels
    true_labels: Labels
    declared_patients: int


@dataclass(frozen=True, slots=True)
class TestSet:
    """Images that no training and no scoring has seen."""

    __test__ = False
    features: NDArray[np.float32]
    labels: Labels

    def accuracy(self, head: LinearHead) -> float:
        """As a fraction. A head that holds NaN answers with the first class."""
        with np.errstate(over="ignore", invalid="ignore"):
            return evaluate(self.labels, predict(self.features, head)).accuracy


@dataclass(frozen=True, slots=True)
class ReferenceArms:
    """Accuracy on the test images after each round, as fractions; medians over the noise."""

    centralised: tuple[float, ...]
    fedavg: tuple[float, ...]
    fedavg_weighted: tuple[float, ...]
    fedavg_weighted_all_careful: tuple[float, ...]
    """``fedavg_weighted``, had hospital E neither mislabelled nor attacked."""


def train_references(
    first: LinearHead,
    hospitals: Sequence[HospitalData],
    test: TestSet,
    *,
    rounds: int,
    training: HeadTraining,
    attack: Attack,
) -> ReferenceArms:
    """Train the three arms.

    Args:
        first: the model that the federation began with.
        hospitals: A to E.
        test: what accuracy is measured on.
        rounds: of ``training.steps`` steps each.
        training: the study's terms; ``declared_patients`` is replaced by each hospital's.
        attack: what hospital E does, with no admission check to mind.
    """
    sizes = {each.node_id: float(each.declared_patients) for each in hospitals}
    careful = [replace(each, labels=each.true_labels) for each in hospitals]

    def average(
        who: Sequence[HospitalData], weights: Mapping[NodeId, float], what: Attack
    ) -> tuple[float, ...]:
        runs = [
            _averaged(
                first, who, test, rounds=rounds, training=training, attack=what, weights=weights
            )
            for _ in range(REPEATS)
        ]
        return tuple(float(value) for value in np.median(runs, axis=0))

    return ReferenceArms(
        centralised=_centralised(first, hospitals, test, rounds=rounds, training=training),
        fedavg=average(hospitals, dict.fromkeys(sizes, 1.0), attack),
        fedavg_weighted=average(hospitals, sizes, attack),
        fedavg_weighted_all_careful=average(careful, sizes, Attack.NONE),
    )


def _centralised(
    first: LinearHead,
    hospitals: Sequence[HospitalData],
    test: TestSet,
    *,
    rounds: int,
    training: HeadTraining,
) -> tuple[float, ...]:
    features = np.concatenate([each.features for each in hospitals])
    labels = np.concatenate([each.true_labels for each in hospitals])
    terms = replace(training, noise_multiplier=0.0, declared_patients=len(labels))

    def update(head: LinearHead) -> Update:
        return train_head(head, features, labels, training=terms)

    return _accuracies(first, test, rounds=rounds, update=update)


def _averaged(
    first: LinearHead,
    hospitals: Sequence[HospitalData],
    test: TestSet,
    *,
    rounds: int,
    training: HeadTraining,
    attack: Attack,
    weights: Mapping[NodeId, float],
) -> tuple[float, ...]:
    shares = np.array([weights[each.node_id] for each in hospitals])
    shares /= shares.sum()

    def update(head: LinearHead) -> Update:
        updates = [_sent(head, each, training=training, attack=attack) for each in hospitals]
        average: Update = np.tensordot(shares, np.stack(updates), axes=1).astype(np.float32)
        return average

    with np.errstate(over="ignore", invalid="ignore"):
        return _accuracies(first, test, rounds=rounds, update=update)


def _sent(
    head: LinearHead, hospital: HospitalData, *, training: HeadTraining, attack: Attack
) -> Update:
    """What a hospital sends in a round."""
    terms = replace(training, declared_patients=hospital.declared_patients)
    if hospital.node_id != SUSPECT or attack is Attack.NONE:
        return train_head(head, hospital.features, hospital.labels, training=terms)
    terms = replace(terms, noise_multiplier=0.0)
    return forge(train_head(head, hospital.features, hospital.labels, training=terms), attack)


def _accuracies(
    first: LinearHead, test: TestSet, *, rounds: int, update: Callable[[LinearHead], Update]
) -> tuple[float, ...]:
    head, found = first, []
    for _ in range(rounds):
        head = moved(head, update(head))
        found.append(test.accuracy(head))
    return tuple(found)


def moved(head: LinearHead, update: Update) -> LinearHead:
    """The head with a flat update added."""
    weight, bias = np.split(update, [head.weight.size])
    return replace(
        head, weight=head.weight + weight.reshape(head.weight.shape), bias=head.bias + bias
    )


def load_head(path: Path) -> LinearHead:
    """A released model, as the head it is.

    Raises:
        InvalidInputError: it is something else.
    """
    schema, tensors = read_model(path)
    return parse_head(schema, tensors)


@dataclass(frozen=True, slots=True)
class ReferenceData:
    """Everything the arms need, read from the folders that the daemons used."""

    hospitals: tuple[HospitalData, ...]
    test: TestSet


def load_reference_data(
    layout: Layout, settings: Settings, *, on_set: Callable[[str], None] = lambda _: None
) -> ReferenceData:
    """Read every hospital's features from its cache, and extract those of the test images.

    Only a demonstration may: it owns all five hospitals.
    """
    backbone = load_backbone(RECIPE.backbone)
    hospitals: list[HospitalData] = []
    for spec in settings.hospitals:
        on_set(spec.node_id)
        node = spec.node_id
        labels_csv = suspect_labels(layout, settings) if node == SUSPECT else layout.labels(node)
        found = _features(layout.images(node), labels_csv, layout.feature_cache(node), backbone)
        true_labels = _true_labels(layout) if node == SUSPECT else found.labels
        hospitals.append(
            HospitalData(node, found.features, found.labels, true_labels, declared_patients(spec))
        )
    on_set(TEST)
    test = _features(layout.images(TEST), layout.labels(TEST), layout.reference_cache, backbone)
    return ReferenceData(tuple(hospitals), TestSet(test.features, test.labels))


def _features(images: Path, labels_csv: Path, cache: Path, backbone: Backbone) -> FeatureSet:
    return cached_features(
        read_labels(images, labels_csv, on_bad_image=OnBadImage.FAIL),
        backbone,
        cache=FeatureCache(cache),
        views=first_views(RECIPE.views),
        image_size=RECIPE.image_size,
        on_bad_image=OnBadImage.FAIL,
    )


def _true_labels(layout: Layout) -> Labels:
    """Hospital E's true labels, a patient's worst as in ``FeatureSet``."""
    labels = read_labels(layout.images(SUSPECT), layout.true_labels, on_bad_image=OnBadImage.FAIL)
    worst = np.zeros(labels.patients, dtype=np.int64)
    for record in labels.records:
        worst[record.patient] = max(worst[record.patient], record.level)
    return worst
