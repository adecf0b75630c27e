"""What a token says of itself and of a key that it holds, and what it does not promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matl_common.identity.keys import permission_warning

if TYPE_CHECKING:
    from matl_common.identity.pkcs11.session import Opened
    from matl_common.identity.pkcs11.uri import TokenUri


def holder_of(opened: Opened) -> str:
    """Which token it is, for people to read."""
    token = opened.session.token
    serial = token.serial.decode(errors="replace")
    return f"PKCS#11 token {token.label!r} ({token.model}, serial {serial})"


def weaknesses_of(opened: Opened, *, name: str, remedy: str) -> tuple[str, ...]:
    """What is not promised of a key, one line each.

    Args:
        opened: the key.
        name: how operators know it.
        remedy: what to do once another key is made, such as "and rewrap".
    """
    from pkcs11 import Attribute, SlotFlag

    key: Any = opened.object
    found = []
    if key[Attribute.EXTRACTABLE] or not key[Attribute.SENSITIVE]:
        found.append(
            f"{name} can be taken out of its token (CKA_EXTRACTABLE or not CKA_SENSITIVE); make "
            f"one that cannot, {remedy}"
        )
    elif not (key[Attribute.NEVER_EXTRACTABLE] and key[Attribute.ALWAYS_SENSITIVE]):
        found.append(
            f"{name} was once outside of its token, or could leave it (not "
            f"CKA_NEVER_EXTRACTABLE); make one in the token, {remedy}"
        )
    if SlotFlag.HW_SLOT not in opened.session.token.slot.flags:
        found.append(
            f"the module of {name} does not say that its token is hardware (CKF_HW_SLOT); a "
            "token in software is as safe as the files it keeps"
        )
    return tuple(found)


def pin_weaknesses(uri: TokenUri) -> tuple[str, ...]:
    """What the file of the PIN gives away."""
    pin = uri.pin_source
    readable = permission_warning(pin) if pin is not None and pin.exists() else None
    return () if readable is None else (readable,)
