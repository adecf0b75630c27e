"""Hypothesis strategies for protobuf messages: any value of any field, absurd ones included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

MAX_REPEATED = 3
MAX_DEPTH = 4

_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=80),
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_STRING: st.text(max_size=80),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
}


_EXTREMES: dict[int, tuple[int, ...]] = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (2**31, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (2**63, 2**64 - 1),
}


def messages(kind: Descriptor, *, depth: int = MAX_DEPTH) -> st.SearchStrategy[Message]:
    """Messages of a type, any of whose fields may be missing."""
    fields = {
        field.name: _values(field, depth) for field in kind.fields if depth > 0 or _is_scalar(field)
    }
    make = GetMessageClass(kind)
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: make(**values))


def extremes(kind: Descriptor, *, depth: int = MAX_DEPTH) -> Iterator[Message]:
    """Messages of a type of which one number, at any depth, is more than half its range or all."""
    make = GetMessageClass(kind)
    for field in kind.fields:
        if field.message_type is not None:
            below = extremes(field.message_type, depth=depth - 1) if depth > 0 else iter(())
            values: Iterator[Any] = below
        else:
            values = iter(_EXTREMES.get(field.type, ()))
        for value in values:
            yield make(**{field.name: [value] if field.is_repeated else value})


def _values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        single: st.SearchStrategy[Any] = messages(field.message_type, depth=depth - 1)
    else:
        single = _SCALARS[field.type]
        if field.type in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64):
            single = st.one_of(st.integers(0, 8), single)
    return st.lists(single, max_size=MAX_REPEATED) if field.is_repeated else single


def _is_scalar(field: FieldDescriptor) -> bool:
    return field.message_type is None
