"""What every ``ports.Store`` promises."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from matl_common.errors import IntegrityError
from matl_common.ids import Digest, NodeId, RoundId, digest_of
from matl_common.tlog.merkle import (
    EMPTY_ROOT,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    merkle_root,
    verify_consistency,
    verify_inclusion,
)
from matl_coordinator.core.admission import RefusalCode
from matl_coordinator.core.rounds import Phase
from matl_coordinator.ports import (
    Change,
    LogHead,
    PutModel,
    PutRound,
    PutStudy,
    PutTrust,
    PutUpdate,
    StaleReaderError,
    StaleWriterError,
    State,
    Store,
    StoreError,
    UpdateStatus,
)
from tests.contracts.samples import (
    MODEL,
    NODES,
    a_decided_round,
    a_model,
    a_round,
    a_study,
    an_admitted_update,
    an_update,
    some_trust,
)
from tests.logs import an_entry, events_of, some_entries

OpenStore = Callable[[], Store]
EMPTY = LogHead(0, Digest(EMPTY_ROOT.hex()))


def entries_of(store: Store) -> list[str]:
    return events_of(store.log_entries(start=0, limit=10_000))


def test_a_new_store_is_empty(store: Store) -> None:
    assert store.load() == State(None, None, (), (), 0, None)
    assert store.log_head() == EMPTY
    assert store.log_entries(start=0, limit=10) == ()
    assert store.round(RoundId(1)) is None
    assert store.rounds(after=0, limit=10) == ()
    assert store.update(RoundId(1), NODES[0]) is None
    assert store.updates(RoundId(1)) == ()
    assert store.trust_history(after=-1, limit=10) == ()
    assert store.model(MODEL) is None


def test_everything_comes_back_as_it_was_put(open_store: OpenStore) -> None:
    store = open_store()
    store.load()
    rnd = a_decided_round(2)
    changes: list[Change] = [
        # Updates before their round: order is free.
        PutStudy(a_study(paused=True)),
        PutModel(a_model()),
        *(PutUpdate(an_admitted_update(2, node)) for node in reversed(NODES)),
        PutRound(a_round(1)),
        PutRound(rnd),
        PutTrust(RoundId(2), some_trust()),
    ]
    store.commit(changes, some_entries("one", "two"))
    updates = tuple(an_admitted_update(2, node) for node in NODES)
    for reader in (store, open_store()):
        assert reader.load() == State(
            a_study(paused=True), rnd, some_trust(), updates, 1, a_model()
        )
        assert reader.round(RoundId(1)) == a_round(1)
        assert reader.round(RoundId(2)) == rnd
        assert reader.updates(RoundId(2)) == updates
        assert reader.update(RoundId(2), NODES[1]) == updates[1]
        assert reader.updates(RoundId(1)) == ()
        assert reader.model(MODEL) == a_model()
        assert reader.trust_history(after=0, limit=5) == (PutTrust(RoundId(2), some_trust()),)
        assert entries_of(reader) == ["one", "two"]


def test_a_later_record_replaces_an_earlier_one(store: Store) -> None:
    first: list[Change] = [PutModel(a_model()), PutStudy(a_study()), PutRound(a_round())]
    store.commit([*first, PutUpdate(an_update()), PutTrust(RoundId(1), some_trust(0.5))], [])
    rnd = replace(a_round(), phase=Phase.ABORTED, abort_reason="no quorum")
    second: list[Change] = [PutStudy(a_study(paused=True)), PutRound(rnd)]
    refused = replace(an_update(), status=UpdateStatus.REFUSED, reason="not finite")
    store.commit([*second, PutUpdate(refused), PutTrust(RoundId(1), some_trust(0.25))], [])
    assert store.load() == State(
        a_study(paused=True), rnd, some_trust(0.25), (refused,), 0, a_model()
    )
    assert store.trust_history(after=0, limit=9) == (PutTrust(RoundId(1), some_trust(0.25)),)


def test_the_latest_model_is_that_of_the_newest_round(store: Store) -> None:
    other = a_model(digest_of(b"other"), round_id=2)
    store.commit([PutModel(a_model()), PutModel(other)], [])
    assert store.load().latest_model == other
    assert store.model(other.digest) == other
    # Released again, unchanged: known by its first release, and the latest all the same.
    store.commit([PutModel(a_model(round_id=10))], [])
    assert store.load().latest_model == a_model(round_id=10)
    assert store.model(MODEL) == a_model()


def test_the_latest_model_knows_what_the_next_round_goes_on_from(store: Store) -> None:
    own = replace(a_model(), round_model=digest_of(b"the round's own"))
    store.commit([PutModel(own)], [])
    latest = store.load().latest_model
    assert latest == own
    assert (own.digest, own.base) == (MODEL, digest_of(b"the round's own"))
    assert a_model().base == MODEL


def test_trust_can_be_put_before_the_first_round(store: Store) -> None:
    store.commit([PutTrust(RoundId(0), some_trust())], [])
    assert store.load().trust == some_trust()


def test_histories_are_oldest_first_and_paged(store: Store) -> None:
    for number in (3, 1, 12, 2):
        store.commit([PutRound(a_round(number)), PutTrust(RoundId(number), some_trust())], [])
    assert [each.round_id for each in store.rounds(after=0, limit=10)] == [1, 2, 3, 12]
    assert [each.round_id for each in store.rounds(after=1, limit=2)] == [2, 3]
    assert store.rounds(after=12, limit=2) == ()
    assert [each.round_id for each in store.trust_history(after=0, limit=10)] == [1, 2, 3, 12]
    assert [each.round_id for each in store.trust_history(after=2, limit=1)] == [3]
    assert store.load().round == a_round(12)


def test_the_state_counts_released_rounds(store: Store) -> None:
    for number in (1, 2):
        store.commit([PutRound(a_decided_round(number))], [])
    store.commit([PutRound(a_round(3, phase=Phase.ABORTED))], [])
    assert store.load().rounds_released == 2


def test_an_update_learns_the_leaf_that_decides_it(store: Store) -> None:
    store.commit([PutRound(a_round())], some_entries("opened"))
    decided = [PutUpdate(an_admitted_update(1, NODES[0]), decided_by=1)]
    undecided = [PutUpdate(an_update(1, NODES[1]))]
    logged = store.commit([*decided, *undecided], some_entries("other", "admitted"))
    update = store.update(RoundId(1), NODES[0])
    assert update is not None
    assert (update.log_index, update.log_leaf_hash) == (2, logged[1].leaf_hash)
    assert logged[1].leaf_hash == leaf_hash(logged[1].leaf).hex()
    assert store.update(RoundId(1), NODES[1]) == an_update(1, NODES[1])
    # Putting it again without a decision keeps what it learnt.
    store.commit([PutUpdate(update)], some_entries("later"))
    assert store.update(RoundId(1), NODES[0]) == update


BROKEN: dict[str, Change] = {
    "an update of an unknown round": PutUpdate(an_update(9)),
    "a decision past the last entry": PutUpdate(an_update(1), decided_by=2),
    "a decision before the first entry": PutUpdate(an_update(1), decided_by=-1),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_a_commit_that_cannot_be_whole_leaves_nothing(
    store: Store, broken: Change, *, first: bool
) -> None:
    whole: list[Change] = [PutRound(a_round()), PutModel(a_model()), PutStudy(a_study())]
    store.commit(whole, some_entries("kept"))
    before, head = store.load(), store.log_head()
    sound: list[Change] = [PutRound(a_round(2)), PutTrust(RoundId(1), some_trust())]
    changes = [broken, *sound] if first else [*sound, broken]
    with pytest.raises(StoreError):
        store.commit(changes, some_entries("lost", "lost, too"))
    assert store.log_head() == head
    assert store.rounds(after=1, limit=5) == ()
    assert store.load() == before
    store.commit([PutRound(a_round(2))], some_entries("next"))
    assert entries_of(store) == ["kept", "next"]


def test_nothing_is_committed_before_a_load_or_after_a_failure(open_store: OpenStore) -> None:
    store = open_store()
    with pytest.raises(StoreError, match="load"):
        store.commit([], some_entries("never loaded"))
    store.load()
    with pytest.raises(StoreError):
        store.commit([PutUpdate(an_update(9))], [])
    with pytest.raises(StoreError, match="load"):
        store.commit([], some_entries("of unknown end"))
    store.load()
    store.commit([], some_entries("loaded"))
    assert entries_of(store) == ["loaded"]


def test_a_writer_that_was_replaced_is_refused(open_store: OpenStore) -> None:
    old, new = open_store(), open_store()
    old.load()
    old.commit([], some_entries("old"))
    new.load()
    with pytest.raises(StaleWriterError):
        old.commit([PutRound(a_round())], some_entries("stale"))
    new.commit([], some_entries("new"))
    assert new.round(RoundId(1)) is None
    assert entries_of(new) == ["old", "new"]


def test_a_store_that_was_replaced_shows_and_keeps_nothing_of_the_log(
    open_store: OpenStore,
) -> None:
    old, new = open_store(), open_store()
    old.load()
    old.commit([], some_entries("old"))
    assert not list(old.checkpoints())
    new.load()
    reads: list[Callable[[], object]] = [
        old.log_head,
        lambda: old.log_entries(start=0, limit=1),
        lambda: old.log_node(0, 0),
        lambda: old.log_nodes([(0, 0)]),
        lambda: list(old.checkpoints()),
    ]
    for read in reads:
        with pytest.raises(StaleReaderError, match=r"after this one|took over"):
            read()
    for write in (
        lambda: old.put_checkpoint(1, b"note"),
        lambda: old.put_cosignature(1, NODES[0], b"line"),
    ):
        with pytest.raises(StaleWriterError):
            write()
    # Not by reading the state once more: only another start takes over.
    with pytest.raises(StaleWriterError):
        old.load()
    assert entries_of(new) == ["old"]
    newest = open_store()
    newest.load()
    assert entries_of(newest) == ["old"]
    with pytest.raises(StaleReaderError):
        new.log_head()


def test_every_take_over_has_an_epoch_of_its_own(open_store: OpenStore) -> None:
    first, second = open_store(), open_store()
    epoch = first.load().epoch
    assert first.load().epoch == epoch
    assert second.load().epoch > epoch


def test_no_checkpoint_is_kept_before_a_load(open_store: OpenStore) -> None:
    with pytest.raises(StoreError, match="loaded"):
        open_store().put_checkpoint(0, b"note")


def test_only_one_of_two_writers_gets_through_at_once(open_store: OpenStore) -> None:
    stores = [[open_store() for _ in range(6)] for _ in range(4)]

    def write(starts: list[Store]) -> int:
        written = 0
        for store in starts:
            try:
                store.load()
                store.commit([], some_entries("entry"))
            except StaleWriterError:
                continue
            written += 1
        return written

    with ThreadPoolExecutor(len(stores)) as pool:
        written = sum(pool.map(write, stores))
    assert written > 0
    last = open_store()
    last.load()
    assert [each.index for each in last.log_entries(start=0, limit=99)] == [*range(written)]


@pytest.mark.parametrize("batches", [(1,) * 17, (2, 3, 7, 64, 1, 1, 128, 5), (33, 31)])
def test_the_root_is_that_of_all_leaves(store: Store, batches: tuple[int, ...]) -> None:
    leaves: list[bytes] = []
    for batch in batches:
        numbers = range(len(leaves), len(leaves) + batch)
        written = some_entries(*(f"number {number}" for number in numbers))
        logged = store.commit([], written)
        assert [each.index for each in logged] == [*range(len(leaves), len(leaves) + batch)]
        assert [each.data for each in logged] == [each.data for each in written]
        leaves += [leaf_hash(each.leaf) for each in logged]
        assert [each.leaf_hash for each in logged] == [each.hex() for each in leaves[-batch:]]
        assert store.log_head() == LogHead(len(leaves), Digest(merkle_root(leaves).hex()))
        assert store.log_entries(start=len(leaves) - batch, limit=batch) == logged


def test_proofs_from_stored_nodes_verify(store: Store) -> None:
    size = 21
    logged = [store.commit([], [an_entry(str(number))])[0] for number in range(size)]
    leaves = [leaf_hash(each.leaf) for each in logged]
    root = merkle_root(leaves)
    for index in range(size):
        proof = inclusion_proof(index, size, store.log_node)
        verify_inclusion(index=index, size=size, leaf=leaves[index], proof=proof, root=root)
    for old in range(1, size + 1):
        verify_consistency(
            old_size=old,
            new_size=size,
            old_root=merkle_root(leaves[:old]),
            new_root=root,
            proof=consistency_proof(old, size, store.log_node),
        )


def test_a_node_that_is_not_complete_is_not_stored(store: Store) -> None:
    logged = store.commit([], some_entries("0", "1", "2"))
    assert store.log_node(0, 2) == leaf_hash(logged[2].leaf)
    for address in ((0, 3), (1, 1), (2, 0)):
        with pytest.raises(IntegrityError):
            store.log_node(*address)
        with pytest.raises(IntegrityError):
            store.log_nodes([(0, 0), address])


def test_nodes_are_read_together(store: Store) -> None:
    store.commit([], some_entries("0", "1", "2"))
    addresses = [(0, 2), (1, 0), (0, 0)]
    assert store.log_nodes(addresses) == {each: store.log_node(*each) for each in addresses}
    assert store.log_nodes([]) == {}


def test_a_large_commit_is_one_commit(store: Store) -> None:
    logged = store.commit([], some_entries(*map(str, range(600))))
    assert [each.index for each in logged] == [*range(600)]
    assert store.log_entries(start=0, limit=999) == logged
    assert store.log_head().root == merkle_root([leaf_hash(each.leaf) for each in logged]).hex()


def test_log_entries_are_paged(store: Store) -> None:
    store.commit([], some_entries("0", "1", "2", "3"))
    assert events_of(store.log_entries(start=1, limit=2)) == ["1", "2"]
    assert store.log_entries(start=4, limit=2) == ()
    assert store.log_entries(start=0, limit=0) == ()


def test_readers_see_only_whole_commits(open_store: OpenStore) -> None:
    writer = open_store()
    writer.load()
    writer.commit([PutRound(a_round(1))], some_entries("1", "1"))
    readers = [open_store() for _ in range(3)]

    def read(reader: Store) -> int:
        for _ in range(30):
            head = reader.log_head()
            newest = reader.rounds(after=0, limit=99)[-1].round_id
            entries = reader.log_entries(start=0, limit=999)
            assert len(entries) % 2 == 0
            assert head.size <= 2 * newest <= len(entries)
            leaves = [leaf_hash(each.leaf) for each in entries]
            assert merkle_root(leaves[: head.size]).hex() == head.root
        return len(entries)

    with ThreadPoolExecutor(len(readers)) as pool:
        running = [pool.submit(read, reader) for reader in readers]
        for number in range(2, 40):
            writer.commit([PutRound(a_round(number))], some_entries(str(number)) * 2)
        for each in running:
            assert each.result() >= 2


def test_a_commit_may_change_nothing(store: Store) -> None:
    assert store.commit([], []) == ()
    assert store.log_head() == EMPTY


def test_node_names_sort_by_their_bytes(store: Store) -> None:
    names = [NodeId(name) for name in ("ab", "a_c", "a-d", "a0", "a")]
    store.commit([PutRound(a_round()), *(PutUpdate(an_update(1, name)) for name in names)], [])
    assert [each.node_id for each in store.updates(RoundId(1))] == sorted(names)


def test_admitted_updates_are_counted_for_each_hospital(store: Store) -> None:
    assert store.admitted_counts() == {}
    for number in (1, 2, 3):
        refused = replace(
            an_update(number, NODES[2]), status=UpdateStatus.REFUSED, code=RefusalCode.NOT_FINITE
        )
        received = [an_admitted_update(number, NODES[0]), an_update(number, NODES[1]), refused]
        changes = [PutUpdate(record) for record in received]
        store.commit([PutRound(a_round(number)), *changes], [])
    assert store.admitted_counts() == {NODES[0]: 3}
    store.commit([PutUpdate(an_admitted_update(2, NODES[1]))], [])
    assert store.admitted_counts() == {NODES[0]: 3, NODES[1]: 1}
    assert store.updates(RoundId(1))[2].code is RefusalCode.NOT_FINITE


def test_the_newest_admitted_update_of_a_hospital_is_found(store: Store) -> None:
    assert store.last_admitted(NODES[0]) is None
    for number in (1, 2, 3, 10):
        mine = an_admitted_update(number) if number != 10 else an_update(number)
        others = an_admitted_update(number, NODES[1])
        store.commit([PutRound(a_round(number)), PutUpdate(mine), PutUpdate(others)], [])
    newest = store.last_admitted(NODES[0])
    assert newest is not None
    assert (newest.node_id, newest.round_id) == (NODES[0], 3)
    assert store.last_admitted(NODES[2]) is None
