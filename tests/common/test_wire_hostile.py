"""Documents whose fields hold anything: each is read as it was sent, or refused in one way."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import InvalidInputError
from matl_common.wire import documents
from matl_common.wire import federation_pb2 as pb
from tests.fuzz.samples import MANIFEST, PLAN, RECEIPT, START
from tests.messages import messages

pytestmark = pytest.mark.hostile


@dataclass(frozen=True)
class Kind:
    """A signed document, with a sound one of it."""

    message: type[Message]
    sound: bytes
    parse: Callable[[bytes], Any]
    form: Callable[[Any], bytes]

    @property
    def descriptor(self) -> Any:
        return self.message.DESCRIPTOR


KINDS = {
    "study plan": Kind(
        pb.StudyPlan,
        documents.format_study_plan(PLAN),
        documents.parse_study_plan,
        documents.format_study_plan,
    ),
    "round start": Kind(
        pb.RoundStart,
        documents.format_round_start(START),
        documents.parse_round_start,
        documents.format_round_start,
    ),
    "update manifest": Kind(
        pb.UpdateManifest,
        documents.format_update_manifest(MANIFEST),
        documents.parse_update_manifest,
        documents.format_update_manifest,
    ),
    "receipt": Kind(
        pb.Receipt,
        documents.format_receipt(RECEIPT),
        documents.parse_receipt,
        documents.format_receipt,
    ),
}


def check(kind: Kind, payload: bytes) -> None:
    try:
        document = kind.parse(payload)
    except InvalidInputError:
        return
    again = kind.form(document)
    assert kind.form(kind.parse(again)) == again


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
def test_a_document_with_other_values_is_read_or_refused(name: str, data: st.DataObject) -> None:
    kind = KINDS[name]
    message = kind.message.FromString(kind.sound)
    # One field at a time, or the first bad one would hide the others.
    other = data.draw(messages(kind.descriptor))
    field = data.draw(st.sampled_from(list(kind.descriptor.fields)))
    message.ClearField(field.name)
    for each, value in other.ListFields():
        if each.name == field.name:
            message.MergeFrom(kind.message(**{field.name: value}))
    check(kind, message.SerializeToString())


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
def test_a_document_of_any_values_is_read_or_refused(name: str, data: st.DataObject) -> None:
    kind = KINDS[name]
    check(kind, data.draw(messages(kind.descriptor)).SerializeToString())


@given(messages(pb.Envelope.DESCRIPTOR))
def test_an_envelope_comes_off_the_wire_as_it_was_put_there_or_not_at_all(message: Message) -> None:
    assert isinstance(message, pb.Envelope)
    try:
        envelope = documents.envelope_from_wire(message)
    except InvalidInputError:
        return
    assert documents.envelope_to_wire(envelope) == message


@given(messages(pb.Standing.DESCRIPTOR))
def test_a_standing_that_makes_no_sense_is_refused_in_one_way(message: Message) -> None:
    assert isinstance(message, pb.Standing)
    try:
        standing = documents.standing_from_wire(message)
    except InvalidInputError:
        return
    assert 0.0 <= standing.trust <= 1.0
