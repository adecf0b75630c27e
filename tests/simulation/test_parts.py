"""Hospitals trained in parts are what they are all at once."""

import numpy as np
import pytest

from matl.simulation.campaign import Job, images_of
from matl.simulation.federation import prepare
from matl.simulation.parts import (
    BLOCK,
    Divisible,
    divided,
    draw,
    hospitals_of,
    in_blocks,
    train_part,
)
from matl.simulation.study import Study

STUDIES = {
    "network": {
        "hospitals": {"count": 2 * BLOCK + 5, "between": [20, 40]},
        "training": {"steps": 2},
    },
    "head": {
        "hospitals": {"count": 2 * BLOCK + 5, "between": [20, 40]},
        "training": {"recipe": "head", "steps": 2, "dimensions": 8},
        "privacy": {"epsilon": 8.0},
    },
}


@pytest.mark.parametrize("recipe", STUDIES)
def test_parts_send_to_the_bit_what_the_learner_sends(recipe: str) -> None:
    job = Job(Study.model_validate(STUDIES[recipe]), 0, ())
    learner = prepare(images_of(job), job.study, seed=0).learner
    assert isinstance(learner, Divisible)
    base = learner.train(learner.initial(), round_number=1).sent[0]
    whole = learner.train(base, round_number=3)
    blocks = in_blocks(learner).train(base, round_number=3)
    drawn = draw(learner, round_number=3)
    parts = [
        train_part(learner, base, drawn, part) for part in divided(hospitals_of(learner), parts=2)
    ]
    for kind in ("sent", "clean"):
        expected = getattr(whole, kind)
        assert np.array_equal(getattr(blocks, kind), expected)
        assert np.array_equal(np.concatenate([getattr(each, kind) for each in parts]), expected)


def test_hospitals_are_divided_into_whole_blocks() -> None:
    for count in (1, BLOCK, BLOCK + 1, 1000):
        for parts in (1, 2, 8, 2000):
            found = divided(count, parts=parts)
            assert len(found) <= parts
            assert [number for part in found for number in part] == list(range(count))
            assert all(len(part) % BLOCK == 0 for part in found[:-1])
