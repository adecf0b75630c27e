"""``matl phi``: look for what identifies patients in a folder, and write a copy without it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from matl.terminal import (
    EXIT_FAILED,
    Json,
    console,
    errors_in_one_line,
    print_json,
    progress,
    table,
)
from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.phi.cleaning import CleanReport, clean_folder
from matl_common.phi.findings import MIN_KEY_BYTES, NotUnderstood, ScanReport
from matl_common.phi.scan import scan_folder
from matl_common.phi.schema import LABELS_SCHEMA, load_schema

_KEY_BYTES: Final = 32
_MAX_SHOWN: Final = 100
_EXIT_NOT_UNDERSTOOD: Final = 3
_WRONG_USE: Final = (ConfigurationError, InvalidInputError)

phi_app = typer.Typer(
    no_args_is_help=True, help="Look for what identifies patients, before anybody else does."
)


@phi_app.command()
def scan(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder to look at, or one file of it.")
    ],
    *,
    as_json: Json = False,
    ocr: Annotated[
        bool,
        typer.Option(
            "--ocr", help="Also look for text in pixels, with tesseract: a second an image."
        ),
    ] = False,
    schema: Annotated[
        Path | None,
        typer.Option(help="TOML file with the columns that tables may have. Default: the labels'."),
    ] = None,
    clean: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write a scrubbed copy to OUT, which must not exist."),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            help="File of 16 random bytes or more, to compare the marks of two scans. Default: a "
            "new key each time."
        ),
    ] = None,
) -> None:
    """Say where in a folder something may identify patients: never what.

    Looked at: columns and values of tables, other text and JSON, names of files and folders,
    every segment of JPEG, chunk of PNG and tag of TIFF that is no part of the picture, and DICOM
    by the standard's own profile (PS3.15). Each finding has a place, a category of 45 CFR
    164.514(b)(2), and a mark: equal values have equal marks, and without the key a mark tells
    nothing.

    A table's columns are held to a schema first. A column that it does not list must not be
    nearly unique, whatever it is called. Without --schema that of a study's labels counts:

    ```
    [columns.image_id]      # random codes
    kind = "code"
    [columns.dr_level]      # numbers in a range; fractions = true allows more than whole ones
    kind = "number"
    min = 0
    max = 4
    [columns.camera]        # one of a few values
    kind = "choice"
    values = ["a", "b"]
    ```

    A name is shown if its parts are known to be harmless. `#17~3f2a1b4c.jpg` is the 17th entry of
    its folder: ls -A | LC_ALL=C sort | sed -n 17p

    **--clean** writes a copy and never changes DIR: images without such segments, their pixels as
    they are; DICOM by the profile's actions, with new UIDs; tables with the listed columns only;
    random names for names that identify. What cannot be scrubbed is left out, and said. The copy
    is scanned before it appears under its name.

    What is not found is not proved to be absent: names of people are hardly found in text, and
    text in pixels only with --ocr. See docs/phi.md for what was measured.

    Exit status: 0 all was understood and nothing found, or with --clean a clean copy of everything
    was written; 1 something was found, or left out of the copy; 2 wrong options, or the folder
    cannot be read; 3 nothing was found, and some file was not understood.
    """
    with errors_in_one_line(_WRONG_USE):
        key = _key(key_file)
        columns = LABELS_SCHEMA if schema is None else load_schema(schema)
        if clean is not None:
            with _files_bar() as on_file:
                cleaned = clean_folder(
                    folder, clean, key=key, ocr=ocr, schema=columns, progress=on_file
                )
            _tell_cleaned(cleaned, as_json=as_json)
            if cleaned.left_out or cleaned.rows_left_out:
                raise typer.Exit(EXIT_FAILED)
            return
        with _files_bar() as on_file:
            report = scan_folder(folder, key=key, ocr=ocr, schema=columns, progress=on_file)
    _tell(report, as_json=as_json)
    if not report.is_clean:
        raise typer.Exit(EXIT_FAILED)
    if report.files_not_understood:
        raise typer.Exit(_EXIT_NOT_UNDERSTOOD)


def _key(path: Path | None) -> bytes:
    if path is None:
        return secrets.token_bytes(_KEY_BYTES)
    try:
        key = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read the key file {path}: {error.strerror}") from error
    if len(key) < MIN_KEY_BYTES:
        raise ConfigurationError(
            f"the key file {path} has less than {MIN_KEY_BYTES} bytes; make one: "
            "head -c 32 /dev/urandom > FILE"
        )
    return key


@contextmanager
def _files_bar() -> Iterator[Callable[[int, int], None]]:
    """Takes how many files are done, and of how many."""
    with progress() as bars:
        task = bars.add_task("scanning", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _tell(report: ScanReport, *, as_json: bool) -> None:
    if as_json:
        print_json(_plain(report))
        return
    out = console()
    if report.findings:
        rows = [(each.place, each.category.value, each.mark) for each in report.findings]
        out.print(table(("Place", "Category", "Mark"), rows[:_MAX_SHOWN]))
        hidden = len(rows) - _MAX_SHOWN
        if hidden > 0:
            out.print(f"and {hidden} more; --json lists them")
        out.print()
        counts = sorted(report.by_category().items(), key=lambda pair: -pair[1])
        out.print(table(("Category", "Findings"), [(name, str(count)) for name, count in counts]))
        out.print()
    _tell_coverage(report, out)


def _tell_coverage(report: ScanReport, out: Console) -> None:
    more = report.findings_left_out
    found = len(report.findings) + more
    out.print(f"{_counted(found, 'finding')} in {_counted(report.files_scanned, 'file')}")
    if more:
        out.print(f"{more} findings are not listed one by one")
    _tell_files("not understood", report.files_not_understood, out)
    for reason in report.not_tested:
        out.print(f"NOT-TESTED {reason}")


def _tell_files(what: str, files: tuple[NotUnderstood, ...], out: Console) -> None:
    if files:
        out.print(f"{_counted(len(files), 'file')} {what}:")
        out.print(table(None, [("", each.file, each.reason) for each in files[:_MAX_SHOWN]]))


def _counted(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _tell_cleaned(report: CleanReport, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "files_written": report.files_written,
                "files_changed": report.files_changed,
                "left_out": [asdict(each) for each in report.left_out],
                "rows_left_out": report.rows_left_out,
                "scan": _plain(report.scan),
            }
        )
        return
    out = console()
    out.print(
        f"{_counted(report.files_written, 'file')} written, {report.files_changed} of them "
        "changed; the copy was scanned and nothing was found"
    )
    if report.rows_left_out:
        out.print(f"{report.rows_left_out} rows of tables left out: values the schema forbids")
    _tell_files("left out", report.left_out, out)
    for reason in report.scan.not_tested:
        out.print(f"NOT-TESTED {reason}")


def _plain(report: ScanReport) -> dict[str, Any]:
    return {
        "findings": [asdict(each) for each in report.findings],
        "by_category": {name.value: count for name, count in report.by_category().items()},
        "findings_left_out": report.findings_left_out,
        "files_scanned": report.files_scanned,
        "files_not_understood": [asdict(each) for each in report.files_not_understood],
        "not_tested": list(report.not_tested),
    }
