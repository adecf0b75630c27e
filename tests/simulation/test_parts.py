"""Hospitals trained in parts are what they are all at once."""

import numpy as np
import pytest

from matl.simulation.campaign import Job, images_of
from matl.simulation.federation import prepare
from matl.simulation.parts import BLOCK, divided, in_blocks, joined, train_part
from matl.simulation.study import Study

STUDIES = {
    "network": {
        "hospitals": {"count": 2 * BLOCK + 1, "between": [20, 40]},
        "training": {"steps": 2},
    },
    "head": {
        "hospitals": {"count": 2 * BLOCK + 1, "between": [20, 40]},
        "training": {"recipe": "head", "steps": 2, "dimensions": 8},
        "privacy": {"epsilon": 8.0},
    },
}


@pytest.mark.parametrize("recipe", STUDIES)
def test_parts_send_to_the_bit_what_all_at_once_send(recipe: str) -> None:
    job = Job(Study.model_validate(STUDIES[recipe]), 0, ())
    simulation = prepare(images_of(job), job.study, seed=0)
    learner, everybody = simulation.learner, range(len(simulation.cohort.nodes))
    base = in_blocks(learner, learner.initial(), 1, everybody).sent[0]
    drawn = learner.draw(round_number=3)
    whole = learner.train(base, drawn, everybody)
    some = [number for number in everybody if number % 3]
    for kind in ("sent", "clean"):
        expected = getattr(whole, kind)
        assert np.array_equal(getattr(in_blocks(learner, base, 3, everybody), kind), expected)
        assert np.array_equal(getattr(in_blocks(learner, base, 3, some), kind), expected[some])
        for whose in (everybody, some):
            parts = divided(whose, parts=2)
            found = joined([train_part(learner, base, drawn, part) for part in parts])
            assert np.array_equal(getattr(found, kind), expected[whose])


def test_hospitals_are_divided_into_whole_blocks() -> None:
    for count in (1, BLOCK, BLOCK + 1, 1000):
        for parts in (1, 2, 8, 2000):
            found = divided(range(count), parts=parts)
            assert len(found) <= parts
            assert [number for part in found for number in part] == list(range(count))
            assert all(len(part) % BLOCK == 0 for part in found[:-1])
