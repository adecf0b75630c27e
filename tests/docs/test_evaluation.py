"""The figures of docs/privacy.md about evaluations are those that the code gives."""

import math
import re
from pathlib import Path

import pytest

from matl_common.privacy.budget import Budget, calibrate_noise

PAGE = Path("docs/privacy.md").read_text("utf-8")
ROUNDS = 52


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
def test_the_price_of_evaluations_is_as_told(share: float) -> None:
    noise = calibrate_noise(1.0, 1e-5, steps=ROUNDS, share=share)
    more = 1.0 / math.sqrt(1.0 - share) - 1.0
    parts = " | ".join(f"{noise / patients:.1%}" for patients in (10_000, 5_000, 1_000))
    row = f"| {share:.0%} | + {more:.1%} | {noise:.0f} | {parts} |"
    assert row in re.sub(r" %", "%", PAGE)


def test_the_five_hospitals_together_are_known_as_well_as_told() -> None:
    noise = calibrate_noise(1.0, 1e-5, steps=ROUNDS, share=0.05)
    assert f"known to {math.sqrt(5) * noise / 21_000:.1%}".replace("%", " %") in PAGE
    assert f"μ² = {Budget(1.0, 1e-5).capacity:.5f}" in PAGE
