"""Which status an error becomes, and which text of it leaves the process."""

import pytest
from grpc import StatusCode

from matl_common.errors import MatlError
from matl_common.identity.pkcs11.session import TokenError
from matl_coordinator.ports import (
    SharedStoreError,
    SpoolError,
    StaleReaderError,
    StaleWriterError,
    StoreError,
)
from matl_coordinator.rpc import statuses
from matl_coordinator.rpc.statuses import ERROR_STATUS, status_of
from matl_coordinator.store.lock import LockLostError


@pytest.mark.parametrize("edited", [kind for kind, _ in ERROR_STATUS])
def test_each_row_alone_decides_the_code_of_its_errors(
    edited: type[MatlError], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {kind: status_of(kind("what went wrong"))[0] for kind, _ in ERROR_STATUS}
    assert before == dict(ERROR_STATUS)
    rows = tuple(
        (kind, StatusCode.UNKNOWN if kind is edited else code) for kind, code in ERROR_STATUS
    )
    monkeypatch.setattr(statuses, "ERROR_STATUS", rows)
    after = {kind: status_of(kind("what went wrong"))[0] for kind, _ in ERROR_STATUS}
    assert after == {**before, edited: StatusCode.UNKNOWN}


@pytest.mark.parametrize("kind", [StoreError, LockLostError, SharedStoreError, TokenError])
def test_where_a_database_a_store_or_a_token_is_is_not_told(kind: type[MatlError]) -> None:
    code, text = status_of(kind("db.internal does not answer"))
    assert code is StatusCode.UNAVAILABLE
    assert "db.internal" not in text
    assert text.endswith("try again")


@pytest.mark.parametrize("kind", [StaleWriterError, StaleReaderError, SpoolError])
def test_what_the_caller_can_act_on_is_told(kind: type[MatlError]) -> None:
    assert status_of(kind("another coordinator took over"))[1] == "another coordinator took over"
