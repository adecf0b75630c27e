"""A scrubbed copy of a folder: what identifies is left out, and the copy is scanned again.

The folder itself is never changed. The copy appears under its name at once and whole, or not
at all. What cannot be scrubbed for certain is not in it.
"""

import csv
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from matl_common.durable import fsync_directory
from matl_common.errors import ConfigurationError, InvalidInputError, MatlError
from matl_common.phi.codes import detect_in_code
from matl_common.phi.content import MAX_FILE_BYTES, Kind, Look, kind_of
from matl_common.phi.dicom import NoDicomError, read_dicom
from matl_common.phi.dicom_cleaning import clean_dicom
from matl_common.phi.findings import NotUnderstood, ScanReport, check_key
from matl_common.phi.folders import Entry, entries_of
from matl_common.phi.jpeg import clean_jpeg
from matl_common.phi.png import clean_png
from matl_common.phi.pseudonyms import Pseudonyms
from matl_common.phi.scan import UNKNOWN, Progress, scan_folder
from matl_common.phi.schema import LABELS_SCHEMA, CodeColumn, Schema
from matl_common.phi.text import decode, table_rows
from matl_common.phi.tiff import clean_tiff
from matl_common.phi.tokens import random_lengths

_MODE = 0o600
_SUFFIX = ".partial"


class CopyNotCleanError(MatlError):
    """The scan of the copy found something, so the copy was thrown away."""


@dataclass(frozen=True, slots=True)
class CleanReport:
    """What became of a folder."""

    files_written: int
    files_changed: int
    left_out: tuple[NotUnderstood, ...]
    """Files that are not in the copy, and why."""
    rows_left_out: int
    scan: ScanReport
    """Of the copy."""


@dataclass(slots=True)
class _Cleaner:
    """One run. Owned by the one thread that copies."""

    look: Look
    names: Pseudonyms
    rows_left_out: int = 0

    def cleaned(self, path: Path) -> bytes:
        """The content of a file without what identifies.

        Raises:
            InvalidInputError: why it cannot be had.
        """
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidInputError(f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
        data = path.read_bytes()
        kind = kind_of(data, path.suffix.lower()) if data else Kind.TEXT
        if kind is None:
            raise InvalidInputError(UNKNOWN)
        scrubbed = self._scrubbed(kind, data)
        if any(self.look.scan(kind, scrubbed)):
            raise InvalidInputError("something in it identifies, and cannot be taken out")
        return scrubbed

    def _scrubbed(self, kind: Kind, data: bytes) -> bytes:
        match kind:
            case Kind.JPEG:
                return clean_jpeg(data)
            case Kind.PNG:
                return clean_png(data)
            case Kind.TIFF:
                return clean_tiff(data)
            case Kind.DICOM:
                return clean_dicom(read_dicom(data), new_uid=self.names.uid)
            case Kind.TABLE:
                return self._table(data)
        return data

    def _table(self, data: bytes) -> bytes:
        """The listed columns, and the rows that hold what these declare."""
        rows = list(table_rows(decode(data)))
        header = [name.strip().lower() for name in rows[0]] if rows else []
        kept = [at for at, name in enumerate(header) if name in self.look.schema.columns]
        if not kept:
            raise InvalidInputError("it is a table without a column that the schema lists")
        lengths = {
            at: random_lengths(row[at].strip() for row in rows[1:] if at < len(row)) for at in kept
        }
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([header[at] for at in kept])
        for row in rows[1:]:
            fields = list(self._fields(row, header, kept, lengths))
            if len(fields) == len(kept):
                writer.writerow(fields)
            elif any(field.strip() for field in row):
                self.rows_left_out += 1
        return buffer.getvalue().encode()

    def _fields(
        self, row: list[str], header: list[str], kept: list[int], lengths: dict[int, frozenset[int]]
    ) -> Iterator[str]:
        for at in kept:
            value = row[at].strip() if at < len(row) else ""
            column = self.look.schema.columns[header[at]]
            if isinstance(column, CodeColumn):
                identifies = any(detect_in_code(value, lengths=lengths[at]))
                yield self.names.name(value, identifies=identifies)
            elif not value or column.allows(value):
                yield value


def clean_folder(
    path: Path,
    out: Path,
    *,
    key: bytes,
    ocr: bool = False,
    progress: Progress | None = None,
    schema: Schema = LABELS_SCHEMA,
) -> CleanReport:
    """Write a scrubbed copy of a folder, and scan it.

    Names of files and codes in tables that identify become random ones, the same everywhere
    in the copy. Order and number of rows, and the pixels of images, stay.

    Args:
        path: the folder, which is only read.
        out: the copy, which must not exist.
        key: of the marks of the report.
        ocr: leave out images with text in their pixels, too.
        progress: called after each file.
        schema: the columns that tables may have.

    Raises:
        ConfigurationError: the folder or the copy's place does not do.
        CopyNotCleanError: the copy still holds something; it is thrown away.
        InvalidInputError: the key is too short.
        OSError: the copy cannot be written.
    """
    check_key(key)
    _check_places(path, out)
    try:
        entries = list(entries_of(path, key=key))
    except OSError as error:
        raise ConfigurationError("a folder cannot be listed; check that this user may") from error
    cleaner = _Cleaner(Look(schema, ocr), Pseudonyms())
    partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-", suffix=_SUFFIX))
    try:
        written, changed, left_out = _copy(entries, path, partial, cleaner, progress)
        report = scan_folder(partial, key=key, ocr=ocr, schema=schema)
        if report.findings or report.files_not_understood:
            raise CopyNotCleanError(
                "the copy was thrown away, since something in it still identifies: "
                + "; ".join(f"{each.place}: {each.category}" for each in report.findings[:5])
            )
        _sync(partial)
        partial.rename(out)
        fsync_directory(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return CleanReport(written, changed, tuple(left_out), cleaner.rows_left_out, report)


def _check_places(path: Path, out: Path) -> None:
    if not path.is_dir():
        raise ConfigurationError(f"there is no such folder to clean: {path}")
    if out.exists() or out.is_symlink():
        raise ConfigurationError("the place of the copy exists already; name a new folder")
    if not out.parent.is_dir():
        raise ConfigurationError("the folder that the copy is to be in does not exist")
    source, target = path.resolve(), out.parent.resolve() / out.name
    if source == target or source in target.parents or target in source.parents:
        raise ConfigurationError("the copy must lie outside of the folder; name another place")


def _copy(
    entries: list[Entry], path: Path, partial: Path, cleaner: _Cleaner, progress: Progress | None
) -> tuple[int, int, list[NotUnderstood]]:
    written = changed = 0
    left_out: list[NotUnderstood] = []
    folders = {path: partial}
    for done, entry in enumerate(entries, start=1):
        try:
            if entry.reason:
                raise InvalidInputError(entry.reason)
            if entry.is_folder:
                folders[entry.path] = folders[entry.path.parent] / _new_name(entry, cleaner.names)
            else:
                target = folders[entry.path.parent] / _new_name(entry, cleaner.names)
                data = cleaner.cleaned(entry.path)
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                _write_new(target, data)
                written += 1
                changed += data != entry.path.read_bytes()
        except (InvalidInputError, NoDicomError) as error:
            left_out.append(NotUnderstood(entry.shown, str(error)))
        if progress:
            progress(done, len(entries))
    return written, changed, left_out


def _new_name(entry: Entry, names: Pseudonyms) -> str:
    identifies = bool(entry.in_name)
    if entry.is_folder:
        return names.name(entry.path.name, identifies=identifies)
    return names.name(entry.path.stem, identifies=identifies) + entry.path.suffix


def _write_new(path: Path, data: bytes) -> None:
    """Write a file of the copy, which nobody sees before it is whole."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    for parent, _, _ in os.walk(folder, topdown=False):
        fsync_directory(Path(parent))
