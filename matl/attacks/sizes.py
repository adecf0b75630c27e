"""Lies of a hospital about itself, told when it is enrolled.

Nothing here is about updates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from matl.attacks.attack import AttackError


@dataclass(frozen=True, slots=True)
class Profile:
    """What a hospital says of itself; it decides its weight, its noise and its reference."""

    patients: int
    label_shares: tuple[float, ...] | None = None
    """Of each class, adding up to 1; None where the hospital did not say."""


Claim = Callable[[Profile], Profile]
"""What an attacker says of itself, given the truth."""


def inflated(profile: Profile, *, factor: int = 100) -> Profile:
    """So many times the patients: more weight in a mean, and less noise asked for."""
    return replace(profile, patients=factor * profile.patients)


def complement_shares(profile: Profile) -> Profile:
    """The label mix of a hospital whose patients are everything this one's are not.

    Raises:
        AttackError: there are no label shares, or only one class.
    """
    shares = profile.label_shares
    if shares is None or len(shares) < 2:
        raise AttackError("a false label mix needs the shares of two classes or more; give them")
    others = len(shares) - 1
    return replace(profile, label_shares=tuple((1.0 - share) / others for share in shares))
