"""Trust policies: which logs are believed, and which witnesses' cosignatures suffice.

A policy is a text that an operator writes or a federation derives from its enrolment;
with it, anyone judges a checkpoint or a proof offline. Nothing here decides what needs a
quorum, or how old a cosignature may be.

Format: https://c2sp.org/tlog-policy. URLs are accepted and not kept: nothing is fetched.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.tlog.checkpoint import SignedCheckpoint, open_checkpoint
from matl_common.tlog.cosignature import COSIGNATURE_TYPES, verified_cosignatures
from matl_common.tlog.note import NOTE_TYPES, VerifierKey, parse_verifier_key

MAX_POLICY_BYTES = 256 << 10
NO_QUORUM = "none"

_FORBIDDEN = re.compile(rb"[^\t\n\x20-\x7e\x80-\xff]")
_NAME = re.compile(r"[^\x00-\x20\x7f]+")
_THRESHOLD = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Group:
    """Members, witnesses or earlier groups, of which ``threshold`` must have witnessed."""

    name: str
    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """A trust policy.

    Attributes:
        logs: keys of the logs that are believed; a key's name is its log's origin.
        witnesses: the known witnesses' keys under the names this policy gives them.
        groups: in an order in which none refers to a later one.
        quorum: the witness or group that must have witnessed a checkpoint, or "none".

    Raises:
        InvalidInputError: a name or key is repeated, a key is of the wrong type, a name is
            unknown where it is used, a member has a place already, or a threshold cannot
            be reached.
    """

    logs: tuple[VerifierKey, ...]
    witnesses: Mapping[str, VerifierKey]
    groups: tuple[Group, ...]
    quorum: str

    def __post_init__(self) -> None:
        for keys, types, what in (
            (self.logs, NOTE_TYPES, "logs"),
            (self.witnesses.values(), COSIGNATURE_TYPES, "witnesses"),
        ):
            _check_unique((key.public_key for key in keys), f"two {what} share a public key")
            for key in keys:
                if key.signature_type not in types:
                    raise InvalidInputError(f"the key {key.name!r} is not of a type for {what}")
        names = [*self.witnesses, *(group.name for group in self.groups)]
        _check_unique(names, "two witnesses or groups share a name")
        for name in names:
            if name == NO_QUORUM or not _NAME.fullmatch(name):
                raise InvalidInputError(f"{name[:80]!r} cannot name a witness or a group")
        # In this order each group can only find what was defined before it, once.
        free = set(self.witnesses)
        for group in self.groups:
            if not free.issuperset(group.members):
                raise InvalidInputError(
                    f"a member of group {group.name[:80]!r} is not defined before it, "
                    "or belongs to another"
                )
            _check_unique(group.members, f"group {group.name[:80]!r} repeats a member")
            if not 1 <= group.threshold <= len(group.members):
                raise InvalidInputError(
                    f"group {group.name[:80]!r} wants {group.threshold} "
                    f"of {len(group.members)} members"
                )
            free.difference_update(group.members)
            free.add(group.name)
        if self.quorum != NO_QUORUM and self.quorum not in names:
            raise InvalidInputError(f"the quorum {self.quorum[:80]!r} is not defined")


@dataclass(frozen=True, slots=True)
class Assessment:
    """Which witnesses cosigned a checkpoint, and whether they suffice.

    Attributes:
        cosigned: names of the policy's witnesses, with the latest time at which each
            says to have seen the checkpoint, in seconds since 1970.
        quorum_met: whether the policy's quorum has witnessed it.
    """

    cosigned: Mapping[str, int]
    quorum_met: bool


def threshold_policy(
    logs: Iterable[VerifierKey], witnesses: Mapping[str, VerifierKey], *, threshold: int
) -> Policy:
    """The policy by which ``threshold`` of the witnesses suffice.

    Raises:
        InvalidInputError: a key is repeated, or the threshold cannot be reached.
    """
    group = Group("witnesses", threshold, tuple(witnesses))
    return Policy(tuple(logs), witnesses, (group,), group.name)


def intersecting_quorum(n: int, *, f: int) -> int:
    """The least q > (n + f) / 2: two quorums of ``n`` witnesses share an honest one.

    Two checkpoints of a forked log cannot both reach it, unless more than ``f`` witnesses
    sign what they should not.

    Raises:
        InvalidInputError: no such quorum exists.
    """
    if not 0 <= f < n:
        raise InvalidInputError(f"of {n} witnesses, {f} cannot be faulty; every quorum could fork")
    return (n + f) // 2 + 1


def quorum_met(policy: Policy, cosigners: Collection[str]) -> bool:
    """Whether these witnesses, by the policy's names, make up its quorum."""
    witnessed = set(policy.witnesses).intersection(cosigners)
    for group in policy.groups:
        if len(witnessed.intersection(group.members)) >= group.threshold:
            witnessed.add(group.name)
    return policy.quorum == NO_QUORUM or policy.quorum in witnessed


def assess(signed: SignedCheckpoint, policy: Policy) -> Assessment:
    """Verify the cosignatures of the policy's witnesses, and weigh them.

    Raises:
        IntegrityError: a line names a known witness and does not verify with its key.
    """
    names = {key: name for name, key in policy.witnesses.items()}
    cosigned: dict[str, int] = {}
    for cosignature in verified_cosignatures(signed.note, names):
        name = names[cosignature.key]
        cosigned[name] = max(cosignature.unix_seconds, cosigned.get(name, 0))
    return Assessment(MappingProxyType(cosigned), quorum_met(policy, cosigned))


def open_witnessed(data: bytes, policy: Policy) -> SignedCheckpoint:
    """Return a checkpoint that a log of the policy signed and its quorum witnessed.

    Raises:
        InvalidInputError: the bytes are not a signed checkpoint to the last one.
        IntegrityError: it is not signed by a known log, a signature does not verify, or
            the quorum is not met.
    """
    signed = open_checkpoint(data, policy.logs)
    require_quorum(signed, policy)
    return signed


def require_quorum(signed: SignedCheckpoint, policy: Policy) -> Assessment:
    """``assess``, where less than a quorum is an error.

    Raises:
        IntegrityError: the quorum is not met, or a signature does not verify.
    """
    assessment = assess(signed, policy)
    if not assessment.quorum_met:
        seen = ", ".join(sorted(assessment.cosigned)) or "nobody"
        raise IntegrityError(
            f"the checkpoint of size {signed.checkpoint.size} lacks the quorum "
            f"{policy.quorum!r}; cosigned by {seen}"
        )
    return assessment


def encode_policy(policy: Policy) -> bytes:
    """The policy as text that ``parse_policy`` reads back."""
    return "".join(f"{line}\n" for line in _lines(policy)).encode(errors="surrogateescape")


def parse_policy(data: bytes) -> Policy:
    """Parse a policy.

    Names may hold any bytes but white space and control characters; those that are not
    UTF-8 come out as surrogate escapes, one to one.

    Raises:
        InvalidInputError: it is not a policy; the message names the line.
    """
    if len(data) > MAX_POLICY_BYTES:
        raise InvalidInputError(f"the policy has more than {MAX_POLICY_BYTES} bytes")
    if _FORBIDDEN.search(data):
        raise InvalidInputError("the policy holds a control character")
    logs: list[VerifierKey] = []
    witnesses: dict[str, VerifierKey] = {}
    groups: list[Group] = []
    quorums: list[str] = []
    for number, line in enumerate(data.decode(errors="surrogateescape").split("\n"), start=1):
        words = [word for word in line.replace("\t", " ").split(" ") if word]
        if not words or words[0].startswith("#"):
            continue
        defined = {*witnesses, *(group.name for group in groups), NO_QUORUM}
        try:
            match words:
                case ["log", vkey] | ["log", vkey, _]:
                    logs.append(parse_verifier_key(vkey))
                case ["witness", name, vkey] | ["witness", name, vkey, _]:
                    if name in defined:
                        raise InvalidInputError(f"{name[:80]!r} is defined already")
                    witnesses[name] = parse_verifier_key(vkey, COSIGNATURE_TYPES)
                case ["group", name, threshold, *members]:
                    _check_defined(members, defined)
                    groups.append(Group(name, _parse_threshold(threshold, members), tuple(members)))
                case ["quorum", name]:
                    _check_defined([name], defined)
                    quorums.append(name)
                case _:
                    raise InvalidInputError("not a statement of a policy")
        except InvalidInputError as error:
            raise InvalidInputError(f"line {number} of the policy: {error}") from error
    if len(quorums) != 1:
        raise InvalidInputError(f"the policy has {len(quorums)} quorum lines; it needs one")
    return Policy(tuple(logs), MappingProxyType(witnesses), tuple(groups), quorums[0])


def _lines(policy: Policy) -> Iterator[str]:
    for key in policy.logs:
        yield f"log {key.vkey}"
    for name, key in policy.witnesses.items():
        yield f"witness {name} {key.vkey}"
    for group in policy.groups:
        yield f"group {group.name} {group.threshold} {' '.join(group.members)}"
    yield f"quorum {policy.quorum}"


def _parse_threshold(word: str, members: list[str]) -> int:
    match word:
        case "all":
            return len(members)
        case "any":
            return 1
        case _ if _THRESHOLD.fullmatch(word):
            return int(word)
    raise InvalidInputError("a group's threshold is 'all', 'any' or a number")


def _check_defined(names: Iterable[str], defined: Collection[str]) -> None:
    for name in names:
        if name not in defined:
            raise InvalidInputError(f"{name[:80]!r} is not defined before it is used")


def _check_unique(values: Iterable[object], otherwise: str) -> None:
    listed = list(values)
    if len(set(listed)) != len(listed):
        raise InvalidInputError(otherwise)
