"""The header of a model file: one encoding for a schema, and no other is taken."""

from __future__ import annotations

from matl_common.tensors import (
    TensorSpec,
    parse_safetensors_header,
    parse_schema,
    safetensors_header,
)
from tests.fuzz.samples import SCHEMA
from tests.fuzz.target import Target


def _run(data: bytes) -> None:
    schema = parse_safetensors_header(data)
    assert safetensors_header(schema) == data


TARGET = Target(
    run=_run,
    seeds=[
        safetensors_header(SCHEMA),
        safetensors_header(parse_schema([TensorSpec("scalar", ()), TensorSpec("a/b", (1, 2, 3))])),
    ],
)
