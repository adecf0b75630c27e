"""A log verified whole, by whoever has read access to a copy of it.

Which keys to believe is the caller's to say. The result is what was found sound; what was not is
an error that names the first entry it concerns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from matl.log.bundle import BundleSource
from matl.log.gaps import Gaps
from matl.log.reigns import Reigns
from matl.log.sources import CoordinatorSource, DatabaseSource, LogSource
from matl.log.told import facts_of
from matl_common.errors import ConfigurationError, IntegrityError, InvalidInputError
from matl_common.memory import without_collecting
from matl_common.tlog.checkpoint import SignedCheckpoint, open_checkpoint
from matl_common.tlog.entry import parse_entry
from matl_common.tlog.leaf import Leaf, parse_leaf
from matl_common.tlog.merkle import NodeRun
from matl_common.tlog.note import VerifierKey
from matl_common.tlog.policy import NO_QUORUM, Policy, assess
from matl_common.tlog.sealing import DataKey, open_sealed
from matl_common.tlog.tiles import TILE_LEVELS
from matl_common.tlog.verification import (
    LogDamagedError,
    LogVerifier,
    StoredLeaf,
    Tally,
    check_nodes,
)


@dataclass(frozen=True, slots=True)
class Believed:
    """Whose signatures count.

    Attributes:
        log: the log's key; its name is the origin of every leaf.
        policy: the witnesses and their quorum; ``None`` to take no notice of cosignatures.
        notes: further signed checkpoints, such as those that hospitals keep.
        keys: data keys, to open entries with as well.
        key_damage: what is wrong with the table that the data keys are in, if anything is.
        unread_orders: whether leaves may be gone though nothing here can read by whose order.
    """

    log: VerifierKey
    policy: Policy | None = None
    notes: Collection[bytes] = ()
    keys: Mapping[str, DataKey] | None = None
    key_damage: str | None = None
    unread_orders: bool = False

    def has_quorum(self, signed: SignedCheckpoint) -> bool:
        """Whether so many witnesses have cosigned a checkpoint that it counts as witnessed.

        Raises:
            IntegrityError: as ``assess``.
        """
        if self.policy is None or self.policy.quorum == NO_QUORUM:
            return False
        return assess(signed, self.policy).quorum_met

    def cosigners(self, signed: SignedCheckpoint) -> tuple[str, ...]:
        """Who of the witnesses has cosigned a checkpoint, by their short names.

        Raises:
            IntegrityError: as ``assess``.
        """
        if self.policy is None:
            return ()
        cosigned = assess(signed, self.policy).cosigned
        return tuple(name.rpartition("/")[2] for name in sorted(cosigned))


@dataclass(frozen=True, slots=True)
class AuditReport:
    """A log that is sound.

    Attributes:
        tally: what was gone over.
        signed_size: leaves under the largest checkpoint; nothing vouches for later ones.
        witnessed_size: leaves under the largest checkpoint that a quorum cosigned.
        opened: entries that were decrypted and agree with their leaves; ``None`` without keys.
        reigns: coordinators that wrote what was opened, one after the other.
        warnings: what was found that proves nothing wrong and deserves a look.
    """

    tally: Tally
    signed_size: int
    witnessed_size: int
    opened: int | None
    warnings: tuple[str, ...]
    reigns: int = 0


def verify_log(
    source: LogSource, believed: Believed, *, on_progress: Callable[[int], None] = lambda _: None
) -> AuditReport:
    """Go over every leaf, every node that is stored, and every checkpoint.

    Args:
        source: the log.
        believed: whose signatures count.
        on_progress: told of leaves as they are done.

    Raises:
        LogDamagedError: a leaf or the tree is not what was signed, or two coordinators wrote at
            once; it says where.
        IntegrityError: a checkpoint is not signed as it should be.
        InvalidInputError: a checkpoint is none.
        ConfigurationError: leaves are gone, and without data keys no order can be read.
        StoreError, OperationsError: the log cannot be read.
    """
    reader = source.reader if isinstance(source, DatabaseSource) else None
    # Before the notes: of one that is signed in between, the note is read alone.
    sizes = [] if reader is None else reader.checkpoint_sizes()
    own = [_opened(note, believed, size) for note, size in zip_longest(source.notes(), sizes)]
    judged = [*own, *(_opened(note, believed) for note in believed.notes)]
    signed = [each for each, _ in judged]
    _check_forks(signed)
    # The same one may be kept in several places.
    verifier = LogVerifier(believed.log.name, [*{each.checkpoint for each in signed}])
    if reader is not None:
        _check_filed([each for each, _ in own], sizes)
        if strays := reader.stray_entries():
            raise IntegrityError(f"the table of entries holds {strays} that the tree does not know")
    opened, gaps, reigns, closed = 0, Gaps(), Reigns(), list[LogDamagedError]()
    in_tiles: list[NodeRun] = []
    # A checkpoint that is signed while this runs must not look like a log that was cut off.
    end = max((source.size(), *(each.checkpoint.size for each in signed)), default=0)
    with without_collecting(), _after(closed):
        for page in source.pages(end=end):
            read = _reading(source, believed)
            try:
                runs = verifier.add(page)
            except LogDamagedError as error:
                before = [each for each in page if each.index < error.first]
                _open_all(before, read, gaps, reigns, closed)
                raise
            if reader is not None:
                # The lowest level came with the page.
                inner = [run for run in runs if run.level > 0]
                check_nodes(inner, reader.nodes(inner))
            if isinstance(source, BundleSource):
                in_tiles += [run for run in runs if run.level and run.level % TILE_LEVELS == 0]
            opened += _open_all(page, read, gaps, reigns, closed)
            on_progress(len(page))
        tally = verifier.finish()
    if closed:
        raise _first_of(closed)
    if isinstance(source, BundleSource):
        source.check_tiles(in_tiles)
    if reader is not None and (damage := believed.key_damage or reader.damage()):
        raise IntegrityError(damage)
    is_read = _reading(source, believed) is not None
    if is_read:
        # Whoever shows a log over the wire has read it with every key there is.
        gaps.check(held=() if reader is None else reader.data_key_names())
    elif not believed.unread_orders:
        _check_whole(tally)
    signed_size = max((each.checkpoint.size for each in signed), default=0)
    witnessed_size = max((each.checkpoint.size for each, met in judged if met), default=0)
    return AuditReport(
        tally=tally,
        signed_size=signed_size,
        witnessed_size=witnessed_size,
        opened=opened if is_read else None,
        warnings=(
            *_warnings(tally, believed, signed_size, witnessed_size),
            *gaps.warnings(),
            *_unknown_cosigners(signed, believed),
        ),
        reigns=len(reigns.found),
    )


def opened_entries(
    pages: Iterable[Iterable[StoredLeaf]],
    keys: Mapping[str, DataKey],
    *,
    wanted: Callable[[Leaf], bool] = lambda _: True,
    on_damage: Callable[[str], None],
) -> Iterator[Mapping[str, Any]]:
    """What entries say, in order, without those that were dropped or whose key was erased.

    Args:
        pages: of leaves.
        keys: data keys by name.
        wanted: says by its leaf whether an entry is to be opened.
        on_damage: told of each entry that is passed over, because it is not what its leaf commits
            to, or its leaf is none: what somebody put there must not end the reading.
    """
    for page in pages:
        for stored in page:
            if stored.leaf is None or stored.payload is None:
                continue
            try:
                leaf = parse_leaf(stored.leaf)
                key = keys.get(leaf.key)
                if key is None or not wanted(leaf):
                    continue
                facts = parse_entry(open_sealed(leaf, stored.payload, key).data)
            except (IntegrityError, InvalidInputError) as error:
                on_damage(f"entry {stored.index}: {error}")
                continue
            yield facts


def _opened(
    note: bytes, believed: Believed, size: int | None = None
) -> tuple[SignedCheckpoint, bool]:
    """A checkpoint that the log signed, and whether a quorum of witnesses has cosigned it.

    ``size`` is what a database has it filed under.
    """
    try:
        signed, policy = open_checkpoint(note, [believed.log]), believed.policy
        if policy is None:
            return signed, False
        # Also verifies every cosignature of a known witness.
        assessment = assess(signed, policy)
    except (IntegrityError, InvalidInputError) as error:
        where = "a checkpoint" if size is None else f"the checkpoint filed under {size}"
        raise IntegrityError(f"{where}: {error}") from error
    return signed, assessment.quorum_met and policy.quorum != NO_QUORUM


def _check_forks(signed: Collection[SignedCheckpoint]) -> None:
    roots: dict[int, bytes] = {}
    for each in signed:
        size, root = each.checkpoint.size, each.checkpoint.root
        if roots.setdefault(size, root) != root:
            raise LogDamagedError(
                f"the log has signed two different checkpoints of {size} entries: it was forked, "
                "and both notes together prove it",
                first=0,
                last=max(0, size - 1),
            )


def _check_filed(signed: Sequence[SignedCheckpoint], sizes: Sequence[int]) -> None:
    """Checkpoints are filed under the sizes that they state."""
    for each, size in zip(signed, sizes, strict=False):
        if each.checkpoint.size != size:
            raise IntegrityError(
                f"a checkpoint of {each.checkpoint.size} entries is filed under {size}: somebody "
                "changed the table"
            )


def _check_whole(tally: Tally) -> None:
    """Without data keys nothing tells whether what is gone was dropped by order."""
    if tally.dropped:
        raise ConfigurationError(
            f"{tally.dropped} entries are not here, entry {tally.first_gone} first: of them, "
            "hashes alone were gone over, and whether their months were dropped by order is told "
            "by entries that cannot be read here. Verify with the coordinator's keys, or say "
            "--allow-unread-orders if you know it"
        )


_Read = Callable[[Leaf, bytes], bytes | None]
"""What an entry says, by leaf and payload; ``None`` where that cannot be read."""


def _reading(source: LogSource, believed: Believed) -> _Read | None:
    """How the entries of the last page are read, where they are to be."""
    if isinstance(source, CoordinatorSource):
        return (lambda leaf, _: source.disclosed(leaf)) if source.discloses else None
    keys = believed.keys
    if keys is None:
        return None

    def read(leaf: Leaf, payload: bytes) -> bytes | None:
        key = keys.get(leaf.key)
        return None if key is None else open_sealed(leaf, payload, key).data

    return read


def _open_all(
    page: Iterable[StoredLeaf],
    read: _Read | None,
    gaps: Gaps,
    reigns: Reigns,
    closed: list[LogDamagedError],
) -> int:
    """How many entries could be opened; those that should have been are put into ``closed``."""
    opened = 0
    if read is None:
        return opened
    for stored in page:
        try:
            opened += _open(stored, read, gaps, reigns)
        except LogDamagedError as error:
            # Whoever put it there may have done so to hide what is wrong further on.
            closed.append(error)
    return opened


@contextmanager
def _after(closed: Sequence[LogDamagedError]) -> Iterator[None]:
    """What is wrong with leaves and tree is told after the entries that did not open."""
    try:
        yield
    except LogDamagedError as error:
        raise _first_of([*closed, error]) from error


def _first_of(found: Sequence[LogDamagedError]) -> LogDamagedError:
    first, *further = found
    if not further:
        return first
    told = f"{first}; {len(further)} more further on, the last: {further[-1]}"
    return LogDamagedError(told, first=first.first, last=max(each.last for each in found))


def _open(stored: StoredLeaf, read: _Read, gaps: Gaps, reigns: Reigns) -> bool:
    """Read an entry and compare it with its leaf; False where that cannot be."""
    if stored.leaf is None or stored.payload is None:
        gaps.gone(stored.index)
        return False
    leaf = parse_leaf(stored.leaf)
    try:
        said = read(leaf, stored.payload)
        if said is None:
            gaps.sealed(leaf)
            return False
        facts = facts_of(leaf, said)
    except (IntegrityError, InvalidInputError) as error:
        raise LogDamagedError(str(error), first=stored.index, last=stored.index) from error
    gaps.told(leaf.index, facts)
    reigns.told(leaf.index, facts)
    return True


def _warnings(tally: Tally, believed: Believed, signed_size: int, witnessed_size: int) -> list[str]:
    found = []
    if tally.size > signed_size:
        found.append(
            f"no checkpoint vouches for entries {signed_size} to {tally.size - 1} yet: whoever "
            "can write to the database can still change them"
        )
    if believed.policy is None:
        found.append("cosignatures were not looked at: without a policy nothing tells whose count")
    elif believed.policy.quorum == NO_QUORUM:
        found.append("nobody witnesses this log: its coordinator could show everybody another one")
    elif witnessed_size < signed_size:
        found.append(
            f"a quorum of hospitals has cosigned the first {witnessed_size} of {signed_size} "
            "signed entries"
        )
    if believed.keys is None and tally.dropped:
        found.append(
            f"{tally.dropped} entries are not here, entry {tally.first_gone} first: of them, "
            "hashes alone were gone over, and the orders to drop their months were not read"
        )
    if tally.backdated:
        found.append(
            f"{tally.backdated} entries are dated before the one in front: a clock went back"
        )
    return found


def _unknown_cosigners(signed: Iterable[SignedCheckpoint], believed: Believed) -> list[str]:
    """Of lines by keys that nobody enrolled holds, nothing can be told but that they are there."""
    if believed.policy is None:
        return []
    known = {(key.name, key.key_id) for key in (believed.log, *believed.policy.witnesses.values())}
    found = [
        (each.checkpoint.size, line.name)
        for each in signed
        for line in each.note.signatures
        if (line.name, line.key_id) not in known
    ]
    if not found:
        return []
    size, name = found[0]
    warning = (
        f"{len(found)} cosignatures are by keys that are not enrolled, and count for nothing; the "
        f"first is of {name} under the checkpoint of {size}: was its witness_key replaced?"
    )
    return [warning]
