"""Which columns a table may have, and what their values may be: the allow-list comes first.

A column that is listed is held to what it declares. One that is not listed is examined for
what identifies, and must not be nearly unique.
"""

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from matl_common.errors import ConfigurationError
from matl_common.validation import problems_in

_INTEGER = re.compile(r"[+-]?\d{1,18}")
_NUMBER = re.compile(r"[+-]?(?:\d{1,18}(?:\.\d{0,18})?|\.\d{1,18})(?:[eE][+-]?\d{1,3})?")


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class CodeColumn(_Strict):
    """Random codes, which may be unique. Examined like names of files."""

    kind: Literal["code"]


class NumberColumn(_Strict):
    """Numbers in a range, whole ones unless ``fractions`` is set."""

    kind: Literal["number"]
    min: float
    max: float
    fractions: bool = False

    def allows(self, value: str) -> bool:
        pattern = _NUMBER if self.fractions else _INTEGER
        return bool(pattern.fullmatch(value)) and self.min <= float(value) <= self.max


class ChoiceColumn(_Strict):
    """One of a few values."""

    kind: Literal["choice"]
    values: list[str] = Field(max_length=1000)

    def allows(self, value: str) -> bool:
        return value in self.values


Column = Annotated[CodeColumn | NumberColumn | ChoiceColumn, Field(discriminator="kind")]


class _SchemaFile(_Strict):
    columns: dict[str, Column]


@dataclass(frozen=True, slots=True)
class Schema:
    """The columns that are listed, by name in lower case."""

    columns: dict[str, CodeColumn | NumberColumn | ChoiceColumn] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Tells schemas apart."""
        return repr(sorted(self.columns.items()))


LABELS_SCHEMA: Final = Schema(
    {
        "image_id": CodeColumn(kind="code"),
        "dr_level": NumberColumn(kind="number", min=0, max=4),
        "group_key": CodeColumn(kind="code"),
    }
)
"""The labels of a study of retinopathy."""


def load_schema(path: Path) -> Schema:
    """Read a TOML file with a table ``[columns.NAME]`` for each column.

    Raises:
        ConfigurationError: unreadable, or not such a file.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        parsed = _SchemaFile.model_validate(table)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {problems_in(error, whole='file')}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    return Schema({name.strip().lower(): column for name, column in parsed.columns.items()})
