"""The noise as it leaves the hospital: its size, its independence, and where it comes from."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from matl_participant.training.head import HeadTraining, train_head
from tests.privacy.attacks import (
    CLIP,
    Mechanism,
    claimed,
    gradient_sum,
    identity_head,
)

pytestmark = pytest.mark.privacy

# Two-sided tails this thin fail by chance once in a million runs.
TAIL = 5e-7
NOBODY = (np.zeros((0, 200)), np.zeros(0, dtype=np.int64))


def test_the_variance_of_what_is_released_lies_within_chi_squared_limits() -> None:
    mechanism = claimed(steps=3)
    draws = np.concatenate(
        [gradient_sum(identity_head(200, 100), *NOBODY, mechanism).ravel() for _ in range(6)]
    )
    assert draws.size > 1e5
    stddev = mechanism.noise_multiplier * CLIP * np.sqrt(3)
    statistic = float(np.square(draws / stddev).sum())
    low, high = stats.chi2.ppf([TAIL, 1.0 - TAIL], df=draws.size)
    assert low < statistic < high


@pytest.mark.parametrize("factor", [0.5, 0.98, 1.02])
def test_those_limits_notice_a_fiftieth_more_or_less(factor: float) -> None:
    mechanism = claimed(steps=3, times_noise=factor)
    draws = np.concatenate(
        [gradient_sum(identity_head(200, 100), *NOBODY, mechanism).ravel() for _ in range(6)]
    )
    stddev = claimed(steps=3).noise_multiplier * CLIP * np.sqrt(3)
    low, high = stats.chi2.ppf([TAIL, 1.0 - TAIL], df=draws.size)
    assert not low < float(np.square(draws / stddev).sum()) < high


def test_rounds_and_steps_are_uncorrelated() -> None:
    head = identity_head(200, 100)
    rounds = np.stack([gradient_sum(head, *NOBODY, Mechanism(3.0, 1)).ravel() for _ in range(6)])
    limit = 5.5 / np.sqrt(rounds.shape[1])
    correlations = np.asarray(np.corrcoef(rounds))[np.triu_indices(6, k=1)]
    assert np.abs(correlations).max() < limit
    # Steps that shared their noise would add up to 6² and not to 6 times its variance.
    steps = gradient_sum(head, *NOBODY, Mechanism(3.0, 6))
    assert np.var(steps) == pytest.approx(6 * (3.0 * CLIP) ** 2, rel=0.06)


@settings(max_examples=60)
@given(
    patients=st.integers(1, 12),
    scale=st.floats(1e-3, 1e6),
    norm=st.floats(0.05, 1.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_one_patient_moves_a_step_by_at_most_the_clipping_norm(
    patients: int, scale: float, norm: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    head = identity_head(6, 5)
    head.weight[:] = 3.0 * rng.normal(size=head.weight.shape)
    features, labels = scale * rng.normal(size=(patients, 6)), rng.integers(0, 5, patients)
    step = HeadTraining(
        steps=1, learning_rate=1.0, noise_multiplier=0.0, max_grad_norm=norm, declared_patients=1
    )
    whole = train_head(head, features, labels, training=step).astype(np.float64)
    rest = train_head(head, features[1:], labels[1:], training=step).astype(np.float64)
    assert np.linalg.norm(whole - rest) <= norm * (1.0 + 1e-5)


def test_training_takes_nothing_from_any_generator_that_could_be_seeded() -> None:
    def states() -> tuple[object, bytes, bytes]:
        legacy = np.random.get_state(legacy=True)  # noqa: NPY002 - the global generator is tested
        return random.getstate(), repr(legacy).encode(), torch.get_rng_state().numpy().tobytes()

    random.seed(1)
    before = states()
    rng = np.random.default_rng(0)
    data = rng.normal(size=(30, 8)), rng.integers(0, 5, 30)
    gradient_sum(identity_head(8, 5), *data, claimed(steps=3))
    assert states() == before


def test_two_processes_with_the_same_seeds_everywhere_release_different_noise() -> None:
    program = (
        "import random, numpy\n"
        "random.seed(7); numpy.random.seed(7)\n"
        "from tests.privacy.attacks import claimed, gradient_sum, identity_head\n"
        "nobody = numpy.zeros((0, 8)), numpy.zeros(0, dtype=numpy.int64)\n"
        "print(gradient_sum(identity_head(8, 5), *nobody, claimed()).tolist())\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[2],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert outputs[0] != outputs[1]
