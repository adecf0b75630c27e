"""Schemas, model files and updates."""

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import InvalidInputError
from matl_common.ids import digest_of_file
from matl_common.tensors import (
    CHUNK_BYTES,
    MAX_TENSORS,
    ModelSchema,
    TensorSpec,
    chunk_lengths,
    hash_chunks,
    iter_update_chunks,
    parse_safetensors_header,
    parse_schema,
    read_model,
    read_schema,
    read_update,
    safetensors_header,
    store_model,
    update_views,
    view_update_chunks,
)

HEAD = parse_schema(
    [
        TensorSpec("head.weight", (5, 7)),
        TensorSpec("projection", (7, 3), trainable=False),
        TensorSpec("head.bias", (5,)),
    ]
)
NAMES = st.text("abcXYZ019_./-", min_size=1, max_size=30).map(lambda text: f"t{text}")
SPECS = st.builds(
    TensorSpec,
    NAMES,
    st.lists(st.integers(1, 9), max_size=4).map(tuple),
    trainable=st.booleans(),
)
SCHEMAS = (
    st.lists(SPECS, min_size=1, max_size=8, unique_by=lambda spec: spec.name)
    .filter(lambda specs: any(spec.trainable for spec in specs))
    .map(parse_schema)
)


def stored(folder: Path, schema: ModelSchema) -> Path:
    values = np.arange(sum(spec.elements for spec in schema.tensors), dtype="<f4")
    return folder / f"{store_model(folder, schema, [values.data])}.safetensors"


def header_of(entries: object) -> bytes:
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@given(SCHEMAS)
def test_a_header_is_read_back_as_the_schema_it_was_written_from(schema: ModelSchema) -> None:
    header = safetensors_header(schema)
    assert parse_safetensors_header(header) == schema
    assert len(header) % 8 == 0


@given(SCHEMAS, st.data())
def test_a_header_with_any_bit_flipped_is_refused_or_is_another_schema(
    schema: ModelSchema, data: st.DataObject
) -> None:
    header = bytearray(safetensors_header(schema))
    position = data.draw(st.integers(0, len(header) * 8 - 1))
    header[position // 8] ^= 1 << position % 8
    try:
        found = parse_safetensors_header(bytes(header))
    except InvalidInputError:
        return
    assert found.digest != schema.digest
    assert safetensors_header(found) == header


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_fail_but_as_invalid_input(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        parse_safetensors_header(len(data).to_bytes(8, "little") + data)


def test_the_safetensors_library_sees_the_tensors_this_project_sees(tmp_path: Path) -> None:
    path = stored(tmp_path, HEAD)
    theirs = safetensors.numpy.load_file(path)
    schema, ours = read_model(path)
    assert schema == HEAD
    assert set(theirs) == set(ours) == {"head.weight", "projection", "head.bias"}
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name])
    assert ours["projection"][0, 0] == 35


def test_a_model_is_named_by_the_digest_of_its_file(tmp_path: Path) -> None:
    path = stored(tmp_path, HEAD)
    assert digest_of_file(path) == path.stem
    assert path.stat().st_size == HEAD.file_bytes


@pytest.mark.parametrize("missing", [-4, 4])
def test_a_model_with_too_few_or_too_many_values_is_not_stored(
    tmp_path: Path, missing: int
) -> None:
    with pytest.raises(InvalidInputError, match="the schema declares"):
        store_model(tmp_path, HEAD, [bytes(61 * 4 - missing)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.hostile
def test_values_beyond_the_schema_are_not_awaited(tmp_path: Path) -> None:
    endless = (bytes(4) for _ in iter(int, 1))
    with pytest.raises(InvalidInputError, match="more than"):
        store_model(tmp_path, HEAD, endless)


@pytest.mark.parametrize("extra", [b"", b"0000"])
def test_a_model_file_of_another_size_than_declared_is_refused(
    tmp_path: Path, extra: bytes
) -> None:
    path = stored(tmp_path, HEAD)
    content = path.read_bytes()
    path.write_bytes(content + extra if extra else content[:-1])
    with pytest.raises(InvalidInputError, match="its header declares"):
        read_schema(path)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec("", (1,)),
        TensorSpec("a b", (1,)),
        TensorSpec("../a", (1,)),
        TensorSpec("__metadata__", (1,)),
        TensorSpec("a" * 201, (1,)),
        TensorSpec("a", (0, 9_999_999_999)),
        TensorSpec("a", (-1,)),
        TensorSpec("a", (1,) * 9),
        TensorSpec("a", (2**62, 2**62)),
        TensorSpec("a", (True,)),
        TensorSpec("a", (1,), trainable=False),
    ],
)
def test_a_declaration_out_of_bounds_is_refused(spec: TensorSpec) -> None:
    with pytest.raises(InvalidInputError):
        parse_schema([spec])


@pytest.mark.hostile
def test_the_limit_on_bytes_counts_every_tensor() -> None:
    specs = [TensorSpec("a", (10,)), TensorSpec("b", (10,))]
    assert parse_schema(specs, max_bytes=80).update_bytes == 80
    with pytest.raises(InvalidInputError, match="79 bytes"):
        parse_schema(specs, max_bytes=79)


@pytest.mark.hostile
def test_a_declaration_is_read_no_further_than_the_limit() -> None:
    endless = (TensorSpec(f"t{number}", (1,)) for number in range(10**12))
    with pytest.raises(InvalidInputError, match=str(MAX_TENSORS)):
        parse_schema(endless)


@pytest.mark.hostile
def test_a_repeated_name_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="twice"):
        parse_schema([TensorSpec("a", (1,)), TensorSpec("a", (2,))])


@pytest.mark.hostile
@pytest.mark.parametrize(
    "entries",
    [
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"__metadata__": {"matl.frozen": "[]"}},
        {
            "__metadata__": {"matl.frozen": "[]"},
            "a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]},
        },
        {
            "__metadata__": {"matl.frozen": "[]"},
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        },
        {
            "__metadata__": {"matl.frozen": '["b"]'},
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        },
        {
            "__metadata__": {"matl.frozen": "[]"},
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "more": 1},
        },
        {"__metadata__": {"matl.frozen": "[[]]"}, "a": {"shape": [1]}},
        {"__metadata__": [], "a": {"shape": [1]}},
        [],
    ],
)
def test_a_header_that_is_not_canonical_is_refused(entries: object) -> None:
    with pytest.raises(InvalidInputError):
        parse_safetensors_header(header_of(entries))


@pytest.mark.hostile
def test_a_header_that_repeats_a_tensor_is_refused() -> None:
    entry = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    text = f'{{"__metadata__":{{"matl.frozen":"[]"}},{entry},{entry}}}'.encode()
    with pytest.raises(InvalidInputError, match="repeats a key"):
        parse_safetensors_header(len(text).to_bytes(8, "little") + text)


@pytest.mark.hostile
def test_a_declared_header_length_is_checked_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(InvalidInputError, match="exceeds"):
        read_schema(path)


@pytest.mark.hostile
def test_deep_nesting_is_refused() -> None:
    text = b"[" * 100_000
    with pytest.raises(InvalidInputError):
        parse_safetensors_header(len(text).to_bytes(8, "little") + text)


def test_an_update_covers_the_trainable_tensors_in_order(tmp_path: Path) -> None:
    path = tmp_path / "update"
    np.arange(40, dtype="<f4").tofile(path)
    views = update_views(read_update(path, HEAD), HEAD)
    assert list(views) == ["head.weight", "head.bias"]
    assert views["head.weight"].shape == (5, 7)
    np.testing.assert_array_equal(views["head.bias"], [35, 36, 37, 38, 39])


def test_an_update_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "update"
    path.write_bytes(bytes(HEAD.update_bytes + 4))
    with pytest.raises(InvalidInputError, match="164 bytes"):
        read_update(path, HEAD)
    with pytest.raises(InvalidInputError, match="shape"):
        update_views(np.zeros(41, dtype=np.float32), HEAD)


@pytest.mark.parametrize("size", [1, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 5])
def test_an_update_is_cut_into_chunks_of_at_most_one_mebibyte(tmp_path: Path, size: int) -> None:
    path = tmp_path / "update"
    path.write_bytes(np.random.default_rng(size).bytes(size))
    chunks = list(iter_update_chunks(path))
    assert tuple(len(chunk) for chunk in chunks) == chunk_lengths(size)
    assert b"".join(chunks) == path.read_bytes()
    assert list(iter_update_chunks(path, first_chunk=1)) == chunks[1:]
    assert [bytes(view) for view in view_update_chunks(path)] == chunks


@pytest.mark.parametrize("size", [1, CHUNK_BYTES, 2 * CHUNK_BYTES + 5])
def test_an_update_is_hashed_chunk_by_chunk(tmp_path: Path, size: int) -> None:
    path = tmp_path / "update"
    path.write_bytes(np.random.default_rng(size).bytes(size))
    leaves = [sha256(b"\x00" + chunk).digest() for chunk in iter_update_chunks(path)]
    assert hash_chunks(path) == leaves
