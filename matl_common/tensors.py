"""Models and updates as bytes: schemas, the safetensors header, chunks and views.

A model is a safetensors file whose header is a deterministic function of its
schema; an update is the flat float32 difference of the trainable tensors. Headers
from outside are compared byte for byte with the one the schema implies, so no
ambiguity of JSON or of a tensor library survives. Nothing here unpickles, imports
torch or knows what a tensor means.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from matl_common.durable import write_named_by_digest
from matl_common.errors import InvalidInputError
from matl_common.ids import Digest, digest_of
from matl_common.tlog.merkle import leaf_hash

CHUNK_BYTES = 1 << 20
DTYPE = "F32"
ELEMENT_BYTES = 4
MAX_TENSORS = 4096
MAX_DIMENSIONS = 8
MAX_HEADER_BYTES = 4 << 20
DEFAULT_MAX_MODEL_BYTES = 1 << 30
MODEL_SUFFIX = ".safetensors"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}")
_METADATA = "__metadata__"
_FROZEN = "matl.frozen"
_LENGTH_BYTES = 8
_ALIGNMENT = 8

Float32Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One float32 tensor of a model; frozen public tensors are not trainable."""

    name: str
    shape: tuple[int, ...]
    trainable: bool = True

    @property
    def elements(self) -> int:
        """Number of values; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def byte_count(self) -> int:
        """Bytes of the tensor's values."""
        return self.elements * ELEMENT_BYTES


# Not slotted: the derived sizes are cached on the instance.
@dataclass(frozen=True)
class ModelSchema:
    """The ordered tensors of a model. Obtain one from ``parse_schema``."""

    tensors: tuple[TensorSpec, ...]

    @cached_property
    def digest(self) -> Digest:
        """SHA-256 of the header this schema implies."""
        return digest_of(safetensors_header(self))

    @cached_property
    def trainable(self) -> tuple[TensorSpec, ...]:
        """The tensors an update covers, in schema order."""
        return tuple(spec for spec in self.tensors if spec.trainable)

    @cached_property
    def update_elements(self) -> int:
        """Values in an update."""
        return sum(spec.elements for spec in self.trainable)

    @property
    def update_bytes(self) -> int:
        """Bytes of an update file."""
        return self.update_elements * ELEMENT_BYTES

    @cached_property
    def file_bytes(self) -> int:
        """Bytes of a model file, header included."""
        return len(safetensors_header(self)) + sum(spec.byte_count for spec in self.tensors)


def parse_schema(
    tensors: Iterable[TensorSpec], *, max_bytes: int = DEFAULT_MAX_MODEL_BYTES
) -> ModelSchema:
    """Check a declared list of tensors before anything is allocated for it.

    Args:
        tensors: the declaration, in order; read no further than the limit allows.
        max_bytes: bound on the bytes of all values together.

    Raises:
        InvalidInputError: too many tensors, a bad or repeated name, a bad shape, no
            trainable tensor, or more than ``max_bytes``.
    """
    specs = tuple(islice(tensors, MAX_TENSORS + 1))
    if len(specs) > MAX_TENSORS:
        raise InvalidInputError(f"the model declares more than {MAX_TENSORS} tensors")
    names: set[str] = set()
    total_bytes = 0
    for spec in specs:
        _check_tensor(spec)
        if spec.name in names:
            raise InvalidInputError(f"the model declares tensor {spec.name!r} twice")
        names.add(spec.name)
        # Python integers cannot overflow, whatever shape was declared.
        total_bytes += spec.byte_count
        if total_bytes > max_bytes:
            raise InvalidInputError(f"the model declares more than the {max_bytes} bytes allowed")
    if not any(spec.trainable for spec in specs):
        raise InvalidInputError("the model declares no trainable tensor")
    return ModelSchema(specs)


def _check_tensor(spec: TensorSpec) -> None:
    if not _NAME.fullmatch(spec.name) or spec.name == _METADATA:
        raise InvalidInputError(
            f"{spec.name[:80]!r} is not a tensor name; use at most 200 of A-Z a-z 0-9 _ . / -"
        )
    if len(spec.shape) > MAX_DIMENSIONS:
        raise InvalidInputError(
            f"tensor {spec.name!r} has {len(spec.shape)} dimensions; at most {MAX_DIMENSIONS}"
        )
    # ``type``, not ``isinstance``: JSON's ``true`` would pass for the integer 1.
    if any(type(size) is not int or size < 1 for size in spec.shape):
        raise InvalidInputError(f"tensor {spec.name!r} has a dimension that is not at least 1")


def safetensors_header(schema: ModelSchema) -> bytes:
    """The one header of a model with this schema, its eight length bytes included."""
    frozen = [spec.name for spec in schema.tensors if not spec.trainable]
    entries: dict[str, object] = {_METADATA: {_FROZEN: json.dumps(frozen, separators=(",", ":"))}}
    start = 0
    for spec in schema.tensors:
        end = start + spec.byte_count
        entries[spec.name] = {
            "dtype": DTYPE,
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    # The format pads with spaces, so that the values start on an eight-byte boundary.
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def parse_safetensors_header(
    header: bytes, *, max_bytes: int = DEFAULT_MAX_MODEL_BYTES
) -> ModelSchema:
    """Read a schema from exactly the bytes of a header, its length bytes included.

    Raises:
        InvalidInputError: the bytes are not the header of a model of this project, to
            the last byte: another dtype, order, gap, duplicate key or extra field.
    """
    _header_length(header[:_LENGTH_BYTES])
    schema = parse_schema(_declared_tensors(header[_LENGTH_BYTES:]), max_bytes=max_bytes)
    if safetensors_header(schema) != header:
        raise InvalidInputError(
            "the model's header is not in canonical form; write models with this project, "
            f"as contiguous {DTYPE} tensors in schema order"
        )
    return schema


def _header_length(prefix: bytes) -> int:
    length = int.from_bytes(prefix, "little")
    if len(prefix) < _LENGTH_BYTES or not 0 < length <= MAX_HEADER_BYTES:
        raise InvalidInputError(
            f"the model's header is missing or exceeds {MAX_HEADER_BYTES} bytes"
        )
    return length


def _declared_tensors(text: bytes) -> Iterator[TensorSpec]:
    if len(text) > MAX_HEADER_BYTES:
        raise InvalidInputError(f"the model's header exceeds {MAX_HEADER_BYTES} bytes")
    try:
        entries = json.loads(text, object_pairs_hook=_unique_pairs)
        metadata = entries.pop(_METADATA)
        frozen = frozenset(json.loads(metadata[_FROZEN]))
        declared = [(name, tuple(entry["shape"])) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInputError("the model's header is not a safetensors header") from error
    for name, shape in declared:
        yield TensorSpec(name, shape, trainable=name not in frozen)


def _unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise InvalidInputError("the model's header repeats a key")
    return result


def read_schema(path: Path, *, max_bytes: int = DEFAULT_MAX_MODEL_BYTES) -> ModelSchema:
    """Read and check the schema of a model file; the values are not read.

    Raises:
        InvalidInputError: a bad header, or a file of another size than it declares.
    """
    with path.open("rb") as file:
        prefix = file.read(_LENGTH_BYTES)
        header = prefix + file.read(_header_length(prefix))
    schema = parse_safetensors_header(header, max_bytes=max_bytes)
    if (size := path.stat().st_size) != schema.file_bytes:
        raise InvalidInputError(
            f"the model file has {size} bytes; its header declares {schema.file_bytes}"
        )
    return schema


def store_model(
    folder: Path, schema: ModelSchema, blocks: Iterable[Buffer], *, mode: int = 0o644
) -> Digest:
    """Write a model durably as ``<folder>/<digest>.safetensors`` and return the digest.

    Args:
        folder: an existing folder.
        schema: the model's schema.
        blocks: the values of all tensors, frozen ones included, in schema order as
            little-endian float32, cut anywhere (``array.data`` of a C-ordered array).
        mode: permissions of the new file.

    Raises:
        InvalidInputError: the blocks do not hold exactly the schema's bytes; nothing
            is stored.
    """
    return write_named_by_digest(
        folder, _model_blocks(schema, blocks), suffix=MODEL_SUFFIX, mode=mode
    )


def _model_blocks(schema: ModelSchema, blocks: Iterable[Buffer]) -> Iterator[Buffer]:
    header = safetensors_header(schema)
    expected = schema.file_bytes - len(header)
    yield header
    received = 0
    for block in blocks:
        received += memoryview(block).nbytes
        if received > expected:
            raise InvalidInputError(f"more than the {expected} bytes of values the schema declares")
        yield block
    if received != expected:
        raise InvalidInputError(f"{received} bytes of values; the schema declares {expected}")


def read_model(
    path: Path, *, max_bytes: int = DEFAULT_MAX_MODEL_BYTES
) -> tuple[ModelSchema, Mapping[str, Float32Vector]]:
    """Map a model file into memory, read-only, as one array per tensor.

    Raises:
        InvalidInputError: as ``read_schema``.
    """
    schema = read_schema(path, max_bytes=max_bytes)
    values = np.memmap(path, dtype="<f4", mode="r", offset=len(safetensors_header(schema)))
    return schema, _views(values, schema.tensors)


def read_trainable(path: Path) -> Float32Vector:
    """The trainable values of a model file in schema order; shape ``(update_elements,)``.

    Raises:
        InvalidInputError: as ``read_schema``.
    """
    schema, tensors = read_model(path)
    return np.concatenate([tensors[spec.name].ravel() for spec in schema.trainable])


def read_update(path: Path, schema: ModelSchema) -> Float32Vector:
    """Map an update file into memory, read-only; shape ``(update_elements,)``.

    Raises:
        InvalidInputError: the file does not have exactly ``schema.update_bytes`` bytes.
    """
    if (size := path.stat().st_size) != schema.update_bytes:
        raise InvalidInputError(
            f"the update file has {size} bytes; its schema needs {schema.update_bytes}"
        )
    return np.memmap(path, dtype="<f4", mode="r")


def update_views(update: Float32Vector, schema: ModelSchema) -> Mapping[str, Float32Vector]:
    """Look at a flat update as one array per trainable tensor, without copying.

    Raises:
        InvalidInputError: the shape is not ``(schema.update_elements,)``.
    """
    if update.shape != (schema.update_elements,):
        raise InvalidInputError(
            f"the update has shape {update.shape}; its schema needs ({schema.update_elements},)"
        )
    return _views(update, schema.trainable)


def _views(values: Float32Vector, specs: tuple[TensorSpec, ...]) -> Mapping[str, Float32Vector]:
    views: dict[str, Float32Vector] = {}
    start = 0
    for spec in specs:
        views[spec.name] = values[start : start + spec.elements].reshape(spec.shape)
        start += spec.elements
    return views


def chunk_lengths(total_bytes: int) -> tuple[int, ...]:
    """Lengths in bytes of the chunks a byte string of this size is cut into."""
    whole, rest = divmod(total_bytes, CHUNK_BYTES)
    return (CHUNK_BYTES,) * whole + ((rest,) if rest else ())


def iter_update_chunks(path: Path, *, first_chunk: int = 0) -> Iterator[bytes]:
    """Yield the chunks of an update file in order, from number ``first_chunk`` on."""
    with path.open("rb") as file:
        file.seek(first_chunk * CHUNK_BYTES)
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def view_update_chunks(path: Path) -> Iterator[memoryview]:
    """The chunks of an update file in order, each in the place of the one before."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := _fill(file, buffer):
            yield buffer[:count]


def _fill(file: FileIO, buffer: memoryview) -> int:
    """Read until the buffer is full or the file ends; a read may be short."""
    filled = 0
    while filled < len(buffer) and (count := file.readinto(buffer[filled:])):
        filled += count
    return filled


def hash_chunks(path: Path) -> list[bytes]:
    """RFC 6962 leaf hash of every chunk of an update file, in order."""
    return [leaf_hash(chunk) for chunk in view_update_chunks(path)]
