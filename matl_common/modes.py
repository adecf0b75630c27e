"""What a federation's updates are judged by, in the tutorial's words."""

from enum import StrEnum
from typing import Final


class MATLMode(StrEnum):
    """What updates are compared with, and where."""

    MODE0 = "mode0"
    """With one another only."""
    MODE1 = "mode1"
    """With the coordinator's own holdout set."""
    MODE2 = "mode2"
    """The same, on a coordinator whose program hospitals have verified by attestation."""

    @property
    def strength(self) -> int:
        """Larger for a mode that promises more; modes themselves compare as their names do."""
        return _BY_STRENGTH.index(self)


_BY_STRENGTH: Final = (MATLMode.MODE0, MATLMode.MODE1, MATLMode.MODE2)

SIMULATED = "-SIMULATED"
"""Ends the name of MODE2 where its evidence proves nothing."""


def says_attested(mode_name: str) -> bool:
    """Whether a coordinator of this mode has evidence to show, be it SIMULATED."""
    return mode_name.removesuffix(SIMULATED) == MATLMode.MODE2
