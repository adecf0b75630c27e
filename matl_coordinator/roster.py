"""Who is enrolled now: the one place where a changed allow-list takes effect.

It does so in two steps. A list is ``admitting`` from the moment it was found good: callers
that it does not enrol are cut off, whatever the store does. It is ``on_record`` once the log
has it, and rounds are judged by that one alone, so that a judgement can be done again from
the log. In between nothing is scored.

Runs on one event loop. Reads no file and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from matl_common.identity.allowlist import AllowedNode, Allowlist
from matl_common.identity.certificates import Role
from matl_common.ids import NodeId


class Roster:
    """The allow-list of a running coordinator."""

    def __init__(self, allowlist: Allowlist) -> None:
        """Begin with a list that is both; whoever starts a coordinator logs it."""
        self._admitting = allowlist
        self._on_record = allowlist
        self._followers: list[Callable[[], None]] = []

    @property
    def admitting(self) -> Allowlist:
        """Who may call."""
        return self._admitting

    @property
    def on_record(self) -> Allowlist:
        """By which list rounds are judged."""
        return self._on_record

    @property
    def settled(self) -> Allowlist | None:
        """The list in every sense; ``None`` while one is not on record yet."""
        return self._on_record if self._admitting is self._on_record else None

    @property
    def participants(self) -> Mapping[NodeId, AllowedNode]:
        """The hospitals on record."""
        nodes = self._on_record.nodes.items()
        return {node_id: node for node_id, node in nodes if node.role is Role.PARTICIPANT}

    def follow(self, on_change: Callable[[], None]) -> None:
        """Have ``on_change`` called after each of the two steps; it must not block or raise."""
        self._followers.append(on_change)

    def admit(self, allowlist: Allowlist) -> None:
        """Let in whom this list enrols, and nobody else."""
        self._admitting = allowlist
        self._tell()

    def record(self, allowlist: Allowlist) -> None:
        """Judge by this list, which the log has."""
        self._on_record = allowlist
        self._tell()

    def _tell(self) -> None:
        for follower in self._followers:
            follower()
