"""Records as JSON documents, and back.

A document is a JSON list of records. Reading is strict: no field may be missing
without a default, unknown or of another type. Bytes are base64. Only this module
knows how a record looks in the database.
"""

from collections.abc import Iterable
from typing import Generic, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from matl_common.errors import IntegrityError
from matl_coordinator.core.rounds import Round
from matl_coordinator.core.trust import TrustRecord
from matl_coordinator.ports import ModelRecord, StudyRecord, UpdateRecord

_Record = TypeVar("_Record")

_STRICT = ConfigDict(
    strict=True,
    extra="forbid",
    ser_json_bytes="base64",
    val_json_bytes="base64",
    # A recall of a class without images is not a number; null would not read back.
    ser_json_inf_nan="constants",
)


class Codec(Generic[_Record]):
    """Writes and reads the documents of one record type."""

    def __init__(self, kind: type[_Record]) -> None:
        self._name = kind.__name__
        # Wrapped in a tuple, because a bare dataclass would not take the configuration.
        self._adapter: TypeAdapter[tuple[_Record, ...]] = TypeAdapter(
            tuple[kind, ...],  # type: ignore[valid-type] # built from a value, once
            config=_STRICT,
        )

    def encode(self, records: Iterable[_Record]) -> str:
        return self._adapter.dump_json(tuple(records)).decode()

    def decode(self, document: str) -> tuple[_Record, ...]:
        """Read every record of a document.

        Raises:
            IntegrityError: it is not what ``encode`` of this version writes.
        """
        try:
            return self._adapter.validate_json(document)
        except ValidationError as error:
            places = ", ".join(
                ".".join(str(part) for part in each["loc"])
                for each in error.errors(include_url=False, include_context=False)[:5]
            )
        raise IntegrityError(
            f"a stored {self._name} cannot be read (at {places or 'its start'}); start the "
            "version that wrote this database, or restore it from a backup"
        )

    def decode_one(self, document: str) -> _Record:
        """Read a document that holds exactly one record.

        Raises:
            IntegrityError: as ``decode``, or another number of records.
        """
        match self.decode(document):
            case (record,):
                return record
            case others:
                raise IntegrityError(
                    f"a document holds {len(others)} records of {self._name} instead of one; "
                    "restore the database from a backup"
                )


ROUND = Codec(Round)
UPDATE = Codec(UpdateRecord)
TRUST = Codec(TrustRecord)
MODEL = Codec(ModelRecord)
STUDY = Codec(StudyRecord)
