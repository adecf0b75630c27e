"""The version of the software, as installed, and which versions speak to each other."""

import re
from importlib.metadata import version
from typing import Final

from matl_common.errors import MatlError

__version__ = version("matl")

MINOR_APART: Final = 1
"""How many minor versions a participant and its coordinator may be apart."""
_NUMBERS: Final = re.compile(r"(\d{1,6})\.(\d{1,6})(?:[.+-].*)?", re.ASCII | re.DOTALL)


class IncompatibleVersionError(MatlError):
    """The software on the other side is too far from ours."""


def check_compatible(ours: str, theirs: str) -> None:
    """See that two versions are of one major version, and at most one minor version apart.

    Fields that only one of the two knows are absent on the other, which is no error within these
    bounds. What is no version, such as that of a source tree, is let pass: the check spares
    operators a riddle and keeps nobody out.

    Args:
        ours: version of this software.
        theirs: what the other side calls its own.

    Raises:
        IncompatibleVersionError: they are further apart; the message says who has to upgrade.
    """
    own, other = _NUMBERS.fullmatch(ours), _NUMBERS.fullmatch(theirs)
    if own is None or other is None:
        return
    here, there = (tuple(map(int, each.groups())) for each in (own, other))
    if here[0] == there[0] and abs(here[1] - there[1]) <= MINOR_APART:
        return
    older = "the other side" if there < here else "this side"
    raise IncompatibleVersionError(
        f"MATL {theirs[:40]} and MATL {ours} do not work together: versions of one major number, "
        f"at most {MINOR_APART} minor number apart, do; upgrade {older}"
    )
