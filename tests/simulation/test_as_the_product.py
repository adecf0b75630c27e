"""What the simulation computes for itself is what a hospital and the scoring worker compute."""

from dataclasses import replace

import numpy as np
import pytest

from matl.simulation.cohort import Cohort, split_images
from matl.simulation.datasets import DataSet, load_images
from matl.simulation.learners import HeadLearner
from matl.simulation.study import Study
from matl_common.vision.linear_head import LinearHead, fit_projection
from matl_coordinator.scoring.judges import HeadJudge
from matl_participant.training.head import HeadTraining, train_head

STUDY = Study.model_validate(
    {
        "hospitals": {"count": 3, "between": [300, 400]},
        "training": {"recipe": "head", "steps": 3, "learning_rate": 24.0, "dimensions": 20},
        "privacy": {"epsilon": 1.0},
    }
)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    dealt = split_images(load_images(DataSet.DIGITS), STUDY, seed=0)
    # On digits a hospital stands for more patients than it has images; here each image is one.
    return replace(dealt, patients=tuple(map(len, dealt.members)))


@pytest.fixture(scope="module")
def learner(cohort: Cohort) -> HeadLearner:
    return HeadLearner(cohort, STUDY, seed=0)


@pytest.fixture(scope="module")
def base(learner: HeadLearner) -> np.ndarray:
    drawn = np.random.default_rng(1).normal(0.0, 0.1, len(learner.initial()))
    return drawn.astype(np.float32)


def head_of(cohort: Cohort, base: np.ndarray) -> LinearHead:
    """The product's head at these parameters."""
    recipe = STUDY.training
    projection = fit_projection(
        cohort.public_values, dimensions=recipe.dimensions, whitening=recipe.whitening
    )
    weight, bias = np.split(base, [recipe.dimensions * cohort.classes])
    return LinearHead(projection, weight.reshape(cohort.classes, -1), bias)


@pytest.mark.parametrize("number", range(3))
def test_a_hospital_trains_as_the_participant_does(
    cohort: Cohort, learner: HeadLearner, base: np.ndarray, number: int
) -> None:
    rows = cohort.members[number]
    recipe = STUDY.training
    update = train_head(
        head_of(cohort, base),
        cohort.values[rows],
        cohort.labels[rows],
        training=HeadTraining(
            steps=recipe.steps,
            learning_rate=recipe.learning_rate,
            # The simulation draws its noise by seed, so what is compared is all but the noise.
            noise_multiplier=0.0,
            max_grad_norm=recipe.longest_gradient,
            declared_patients=len(rows),
        ),
    )
    calm = HeadLearner(cohort, STUDY.model_copy(update={"privacy": Study().privacy}), seed=0)
    sent = calm.train(base, calm.draw(round_number=1), [number]).sent
    np.testing.assert_allclose(sent[0], update, rtol=1e-5, atol=1e-7)


def test_the_holdout_set_is_judged_as_the_scoring_worker_does(
    cohort: Cohort, learner: HeadLearner, base: np.ndarray
) -> None:
    judge = HeadJudge(
        head_of(cohort, base),
        learner.plan.schema,
        features=cohort.root_values,
        labels=cohort.root_labels,
    )
    rows = np.arange(0, len(cohort.root_labels), 3)
    np.testing.assert_allclose(
        learner.descent(base, rows), judge.descent(rows), rtol=1e-5, atol=1e-8
    )
    update = np.random.default_rng(2).normal(0.0, 0.1, len(base)).astype(np.float32)
    losses = learner.root_losses(base, np.stack([np.zeros_like(base), update]), rows)
    expected = [judge.losses(rows), judge.losses(rows, update=update)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
