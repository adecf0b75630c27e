"""A coordinator killed in the middle of commits loses nothing it had confirmed."""

import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from matl_common.tlog.merkle import leaf_hash, merkle_root
from matl_coordinator.store.sql import SqlStore
from tests.contracts.committer import entries_of
from tests.logs import LOG, events_of

KILLS = 6
ROOT = Path(__file__).parents[2]


def confirmed_before_kill(url: str, *, after_seconds: float) -> int:
    """Run a committer, kill it some time after its first commit; return the last it printed."""
    command = [sys.executable, "-m", "tests.contracts.committer", url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(after_seconds)
        child.kill()
        # A line cut short by the kill was not confirmed to anyone.
        whole = [line for line in [first, *child.stdout] if line.endswith("\n")]
    assert whole, "the committer did not start"
    return int(whole[-1])


@pytest.mark.crash
def test_a_killed_coordinator_leaves_whole_commits_without_gap(database_url: str) -> None:
    newest = 0
    for kill in range(KILLS):
        confirmed = confirmed_before_kill(database_url, after_seconds=0.02 + 0.0137 * kill)
        with closing(SqlStore.connect(database_url, **LOG)) as store:
            state = store.load()
            assert state.round is not None
            # One commit may have been durable when its confirmation was cut off.
            assert confirmed <= state.round.round_id <= confirmed + 1
            assert state.round.round_id > newest
            newest = state.round.round_id
            numbers = range(1, newest + 1)
            rounds = store.rounds(after=0, limit=newest + 5)
            assert [each.round_id for each in rounds] == [*numbers]
            assert len(store.trust_history(after=0, limit=newest + 5)) == newest
            entries = store.log_entries(start=0, limit=3 * newest + 5)
            expected = [f"{n}/{part}" for n in numbers for part in range(entries_of(n))]
            assert events_of(entries) == expected
            assert [each.index for each in entries] == [*range(len(expected))]
            root = merkle_root([leaf_hash(each.leaf) for each in entries])
            assert store.log_head().root == root.hex()
