import json
from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import IntegrityError
from matl_coordinator.core.rounds import Round
from matl_coordinator.core.trust import TrustRecord
from matl_coordinator.ports import ModelRecord, StudyRecord, UpdateRecord
from matl_coordinator.store import codec
from tests.contracts.samples import a_decided_round, an_update

# Text that UTF-8 can carry; a number that is not one equals nothing, not even itself.
st.register_type_strategy(str, st.text(st.characters(codec="utf-8")))
st.register_type_strategy(float, st.floats(allow_nan=False))
MOMENTS = st.datetimes(timezones=st.just(UTC))


def records_of(kind: type) -> st.SearchStrategy[object]:
    moments = {
        name: MOMENTS if name in ("opens_at", "released_at") else st.none() | MOMENTS
        for name in kind.__dataclass_fields__  # type: ignore[attr-defined] # a dataclass
        if name.endswith("_at") or name == "deadline"
    }
    return st.builds(kind, **moments)


@pytest.mark.parametrize(
    ("kind", "coder"),
    [
        (Round, codec.ROUND),
        (UpdateRecord, codec.UPDATE),
        (TrustRecord, codec.TRUST),
        (ModelRecord, codec.MODEL),
        (StudyRecord, codec.STUDY),
    ],
)
def test_every_record_comes_back_equal(kind: type, coder: codec.Codec[object]) -> None:
    @given(st.lists(records_of(kind), max_size=3))
    def round_trip(records: list[object]) -> None:
        assert coder.decode(coder.encode(records)) == tuple(records)

    round_trip()


def test_moments_keep_their_microseconds_and_zone() -> None:
    rnd = a_decided_round()
    back = codec.ROUND.decode_one(codec.ROUND.encode([rnd]))
    assert back.opens_at.isoformat() == rnd.opens_at.isoformat()
    assert back.rules.collect_for == rnd.rules.collect_for


def test_numbers_that_are_not_finite_come_back() -> None:
    document = codec.ROUND.encode([a_decided_round()])
    for number in ("NaN", "Infinity", "-Infinity"):
        changed = document.replace("5e-324", number)
        again = codec.ROUND.encode([codec.ROUND.decode_one(changed)])
        # Not the whole document: the members of a set come in any order.
        assert again.count(number) == changed.count(number) > 0


def changed_update(**fields: object) -> str:
    (document,) = json.loads(codec.UPDATE.encode([an_update()]))
    document.update(fields)
    return json.dumps([{key: value for key, value in document.items() if value is not ...}])


@pytest.mark.parametrize(
    "document",
    [
        changed_update(added=1),
        changed_update(byte_count=...),
        changed_update(byte_count="5"),
        changed_update(byte_count=5.5),
        changed_update(reason=5),
        changed_update(status="lost"),
        changed_update(chunk_hashes="not base64!"),
        changed_update(manifest={"payload": ""}),
        changed_update(decided_at=1234567890),
        "[]",
        "{}",
        "[",
        "",
        codec.UPDATE.encode([an_update(), an_update()]),
    ],
)
def test_a_document_of_another_shape_is_refused(document: str) -> None:
    with pytest.raises(IntegrityError):
        codec.UPDATE.decode_one(document)


def test_a_nested_unknown_field_is_refused() -> None:
    (document,) = json.loads(codec.UPDATE.encode([an_update()]))
    document["manifest"]["added"] = 1
    with pytest.raises(IntegrityError, match=r"0\.manifest\.added"):
        codec.UPDATE.decode_one(json.dumps([document]))


def test_the_error_names_the_field_and_not_the_value() -> None:
    with pytest.raises(IntegrityError, match="status") as caught:
        codec.UPDATE.decode_one(changed_update(status="canary"))
    assert "canary" not in str(caught.value)
    assert caught.value.__context__ is None
