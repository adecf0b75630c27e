"""What the registry says of its attacks is what they do."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from matl.attacks import ATTACKS, Knowledge
from tests.attacks.knowledge import crafted, known


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_whose_training_is_spared_looks_at_none_of_it_and_no_other_is(name: str) -> None:
    entry, looks = ATTACKS[name], False
    for round_number, is_private in product((1, 2, 5, 40), (False, True)):
        if Knowledge.NOISE in entry.needs and not is_private:
            continue
        honest = known(round=round_number, private=is_private)
        for each in (honest, replace(honest, previous=None)):
            untrained = replace(each, own=np.full_like(each.own, np.nan))
            found, without = crafted(name, each), crafted(name, untrained)
            looks |= not np.array_equal(found, without, equal_nan=True)
    assert looks is entry.trains
    assert entry.trains or entry.poison is None, "whoever poisons his data trains on it"
