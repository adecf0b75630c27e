"""A coordinator that commits without end, to be killed: ``committer.py URL``.

Commit k replaces round k, whose number the k % 3 + 1 entries of the commit repeat, and
prints k once the commit has returned.
"""

import sys

from matl_coordinator.ports import PutRound, PutTrust
from matl_coordinator.store.sql import SqlStore
from tests.contracts.samples import a_round, some_trust
from tests.logs import LOG, some_entries


def main(url: str) -> None:
    store = SqlStore.connect(url, **LOG)
    newest = store.load().round
    number = newest.round_id if newest else 0
    while True:
        number += 1
        rnd = a_round(number)
        entries = some_entries(*(f"{number}/{part}" for part in range(entries_of(number))))
        store.commit([PutRound(rnd), PutTrust(rnd.round_id, some_trust())], entries)
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


def entries_of(number: int) -> int:
    """Entries in the commit of a round."""
    return number % 3 + 1


if __name__ == "__main__":
    main(sys.argv[1])
