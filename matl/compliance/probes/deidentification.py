"""164.514(b): what lies in the data folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final

from matl.compliance.control import BrokenControlError, NotTestedError, Outcome, attested, passed
from matl.compliance.probes.attested import check_document
from matl.compliance.site import Site
from matl_common.phi import Category, Finding, ScanReport, scan_folder

_NAMED: Final = 3


def scan(site: Site) -> Outcome:
    """Scan every file of every data folder, and the labels beside it."""
    reports = _scanned(site)
    _refuse(each for each in _findings(reports) if each.category is not Category.BURNED_IN)
    files = sum(each.files_scanned for each in reports)
    strange = [found for each in reports for found in each.files_not_understood]
    if strange:
        raise NotTestedError(
            f"{len(strange)} files could not be understood, the first of them {strange[0].file} "
            f"({strange[0].reason}); nothing was found in the other {files}",
            "move what is no data out of the data folder",
        )
    lacking = dict.fromkeys(each for report in reports for each in report.not_tested)
    limits = f"; not looked for: {'; '.join(lacking)}" if lacking else ""
    return passed(f"{files} files at {len(site.data)} places, nothing found{limits}")


def burned_in(site: Site) -> Outcome:
    """The same for text in the pixels, which takes OCR."""
    if not site.registry.probes.ocr:
        raise NotTestedError(
            "no text recognition was asked for, which takes a second an image",
            "set [probes] ocr = true in safeguards.toml, and install tesseract",
        )
    reports = _scanned(site)
    _refuse(each for each in _findings(reports) if each.category is Category.BURNED_IN)
    if lacking := [each for report in reports for each in report.not_tested]:
        raise NotTestedError("; ".join(dict.fromkeys(lacking)), "apt-get install tesseract-ocr")
    return passed(f"{sum(each.files_scanned for each in reports)} files, no text in their pixels")


def route(site: Site) -> Outcome:
    """Read who answers for it that the images count as de-identified."""
    found = site.registry.deidentification
    if found is None:
        raise NotTestedError(
            "nobody has said by which route; retinal images may be biometric identifiers "
            "(164.514(b)(2)(i)(P)), however clean their metadata is",
            "have it determined, and enter it in [deidentification] of safeguards.toml",
        )
    check_document(found)
    return attested(f"{found.route}, {found.sha256[:16]}… of {found.signed}, by {found.by}")


def _scanned(site: Site) -> tuple[ScanReport, ...]:
    if not site.data:
        raise NotTestedError(
            "no data folder is known", "name it: --data-dir, or [places] data of safeguards.toml"
        )
    return _reports(site.data, site.key, ocr=site.registry.probes.ocr)


# Two rows are about one scan; the key is of one audit.
@lru_cache(maxsize=1)
def _reports(folders: tuple[Path, ...], key: bytes, *, ocr: bool) -> tuple[ScanReport, ...]:
    return tuple(scan_folder(each, key=key, ocr=ocr) for each in folders)


def _findings(reports: Iterable[ScanReport]) -> tuple[Finding, ...]:
    return tuple(found for each in reports for found in each.findings)


def _refuse(findings: Iterable[Finding]) -> None:
    """Say what was found and where, and never the value.

    Raises:
        BrokenControlError: there is anything.
    """
    found = tuple(findings)
    if not found:
        return
    counts = Counter(each.category.value for each in found)
    told = ", ".join(f"{count} × {category}" for category, count in sorted(counts.items()))
    raise BrokenControlError(
        f"{told}; the first: {'; '.join(each.place for each in found[:_NAMED])}",
        "look at the places that matl phi scan names, and clean the folder (--clean)",
    )
