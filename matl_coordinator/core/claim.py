"""How many hostile hospitals a federation may say it tolerates, and on what condition.

The sentence belongs beside every figure that is printed. Nothing here measures anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from matl_common.modes import MATLMode


@dataclass(frozen=True, slots=True)
class Claim:
    """A tolerance and the sentence that must go with it."""

    f: int
    sentence: str


def claimed_tolerance(mode: MATLMode, n: int) -> Claim:
    """How many of ``n`` hospitals may be hostile.

    Without a root set no rule tolerates f / n of 1/(2 + B²) and more, B² the spread of the
    honest gradients over their mean (Allouah et al., NeurIPS 2023): a fifth, less one, for
    spreads up to 3. With one, the bound is the 45 % that is measured, not a theorem. An attested
    coordinator withstands no more hostile hospitals than another one.
    """
    match mode:
        case MATLMode.MODE0:
            f = max(0, (n - 1) // 5)
            return Claim(
                f,
                f"without a holdout set up to {f} of {n} hospitals may be hostile; similar "
                "hospitals and an honest majority among their updates are assumed",
            )
        case MATLMode.MODE1 | MATLMode.MODE2:
            f = max(0, 45 * n // 100)
            return Claim(
                f,
                f"up to {f} of {n} hospitals may be hostile (45 %), given a clean root set of at "
                "least 500 images and authenticated members",
            )
