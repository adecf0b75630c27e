"""The wrapper that fails commits for other tests does what it says."""

import pytest

from matl_common.ids import RoundId
from matl_coordinator.ports import PutRound, Store, StoreError
from tests.contracts.samples import a_round
from tests.fakes import FakeStore, Fault, FaultyStore
from tests.logs import events_of, some_entries


@pytest.mark.parametrize("fault", Fault)
def test_the_chosen_commit_fails_and_a_load_tells_the_truth(fault: Fault) -> None:
    store = FaultyStore(FakeStore())
    store.load()
    store.fail_commit(1, fault)
    store.commit([], some_entries("0"))
    with pytest.raises(StoreError):
        store.commit([PutRound(a_round())], some_entries("1"))
    with pytest.raises(StoreError, match="load"):
        store.commit([], some_entries("without a look"))
    is_kept = fault is Fault.PERSISTED
    assert store.load().round == (a_round() if is_kept else None)
    assert store.round(RoundId(1)) == (a_round() if is_kept else None)
    store.commit([], some_entries("2"))
    expected = ["0", "1", "2"] if is_kept else ["0", "2"]
    assert events_of(store.log_entries(start=0, limit=9)) == expected


def test_the_wrapper_fits_any_store() -> None:
    inner: Store = FakeStore()
    outer: Store = FaultyStore(inner)
    outer.load()
    outer.commit([PutRound(a_round())], some_entries("0"))
    assert outer.log_head() == inner.log_head()
    assert outer.rounds(after=0, limit=1) == inner.rounds(after=0, limit=1)
    assert outer.log_node(0, 0) == inner.log_node(0, 0)
    assert outer.log_nodes([(0, 0)]) == inner.log_nodes([(0, 0)])
