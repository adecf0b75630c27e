"""The scan of a folder: every file once, and a report without a single value of it."""

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.phi.content import MAX_FILE_BYTES, Look, kind_of
from matl_common.phi.dicom import NoDicomError
from matl_common.phi.findings import (
    MAX_FINDINGS,
    MAX_FINDINGS_PER_FILE,
    Finding,
    Found,
    NotUnderstood,
    ScanReport,
    check_key,
    findings_of,
)
from matl_common.phi.folders import Entry, entries_of
from matl_common.phi.schema import LABELS_SCHEMA, Schema

Progress = Callable[[int, int], None]
"""Told how many files are done, and how many there are."""

SCANNER_VERSION = 2
"""Raised with every change after which the same data may be judged differently."""

_MAX_FOUND = 10 * MAX_FINDINGS_PER_FILE

UNKNOWN = "it is of a kind that is not understood"


def scan_folder(
    path: Path,
    *,
    key: bytes,
    ocr: bool = False,
    progress: Progress | None = None,
    schema: Schema = LABELS_SCHEMA,
    only: frozenset[Path] | None = None,
) -> ScanReport:
    """Look for what identifies patients in every file below a folder, and in their names.

    Args:
        path: the folder, or one file. Its own name is not looked at, and nothing is changed.
        key: of the marks, at least 16 random bytes; who has it can try values.
        ocr: read text in images, with the system's ``tesseract``, a second or so for each.
        progress: called after each file with the number done and the number of all.
        schema: the columns that tables may have.
        only: the files of the folder itself to look at, through links as well, where not all
            are meant.

    Raises:
        ConfigurationError: there is no such folder, or it cannot be listed.
        InvalidInputError: the key is too short.
    """
    check_key(key)
    try:
        entries = list(entries_of(path, key=key, is_deep=only is None))
    except OSError as error:
        raise ConfigurationError("a folder cannot be listed; check that this user may") from error
    if not path.exists():
        raise ConfigurationError(f"there is no such folder: {path}")
    if only is not None:
        entries = [each for each in entries if each.path in only]
    return _scan(entries, Look(schema, ocr), key=key, progress=progress)


def _scan(entries: list[Entry], look: Look, *, key: bytes, progress: Progress | None) -> ScanReport:
    findings: list[Finding] = []
    not_understood: list[NotUnderstood] = []
    scanned = left_out = 0
    for done, entry in enumerate(entries, start=1):
        found, reason = list(entry.in_name), entry.reason
        if not entry.is_folder and not reason:
            inside, reason = look_at(entry.path, look)
            found += inside
        if reason:
            not_understood.append(NotUnderstood(entry.shown, reason))
        elif not entry.is_folder:
            scanned += 1
        new, more = findings_of(entry.shown, found, key=key)
        room = MAX_FINDINGS - len(findings)
        findings += new[:room]
        left_out += more + len(new[room:])
        if progress:
            progress(done, len(entries))
    return ScanReport(
        tuple(findings),
        scanned,
        tuple(not_understood),
        tuple(f"{why}; {count} images" for why, count in look.burned_in_untested.items()),
        left_out,
    )


def look_at(path: Path, look: Look) -> tuple[list[Found], str]:
    """What identifies in one file, and why it is not understood, if it is not."""
    found: list[Found] = []
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return found, f"it is larger than {MAX_FILE_BYTES >> 20} MiB"
        data = path.read_bytes()
        if not data:
            return found, ""
        kind = kind_of(data, path.suffix.lower())
        if kind is None:
            return found, UNKNOWN
        # What was found before the damage stays found.
        found.extend(islice(look.scan(kind, data), _MAX_FOUND))
    except OSError:
        return found, "it cannot be read"
    except (InvalidInputError, NoDicomError) as error:
        return found, str(error)
    return found, ""


def merged(reports: Iterable[ScanReport]) -> ScanReport:
    """What several scans say together."""
    parts = list(reports)
    return ScanReport(
        tuple(finding for each in parts for finding in each.findings),
        sum(each.files_scanned for each in parts),
        tuple(file for each in parts for file in each.files_not_understood),
        tuple(dict.fromkeys(reason for each in parts for reason in each.not_tested)),
        sum(each.findings_left_out for each in parts),
    )
