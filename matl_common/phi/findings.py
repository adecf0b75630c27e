"""What a scan says: places, categories and keyed marks, and never a value.

A place is made of numbers, of words that this program knows, and of names that
``showing.py`` has found harmless. Nothing here reads a file.
"""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from matl_common.errors import InvalidInputError

MIN_KEY_BYTES = 16
MAX_FINDINGS = 10_000
MAX_FINDINGS_PER_FILE = 100
_MARK_CHARACTERS = 16


class Category(StrEnum):
    """What was found: the identifiers of 45 CFR 164.514(b)(2)(i), and what may hide them."""

    NAME = "name"
    GEOGRAPHY = "geographic unit below a state"
    DATE = "date finer than a year"
    AGE = "age over 89"
    PHONE = "telephone or fax number"
    EMAIL = "e-mail address"
    SSN = "social security number"
    MRN = "medical record number"
    INSURANCE = "health plan beneficiary number"
    ACCOUNT = "account number"
    LICENCE = "certificate or licence number"
    VEHICLE = "vehicle identifier"
    DEVICE = "device identifier or serial number"
    URL = "web address"
    IP = "internet address"
    BIOMETRIC = "biometric identifier"
    PHOTO = "photograph of a person"
    UNIQUE = "other unique number or code"
    UNLISTED = "near-unique column that the schema does not list"
    UNDECLARED = "value that the schema does not allow"
    FREE_TEXT = "free text"
    METADATA = "metadata that images need not have"
    THUMBNAIL = "second image inside an image"
    TRAILING = "bytes after the end of an image"
    PRIVATE = "private element of a vendor"
    BURNED_IN = "text burned into the pixels"


@dataclass(frozen=True, slots=True)
class Hit:
    """A value that a detector objects to. Never leaves the scanner."""

    category: Category
    value: str


@dataclass(frozen=True, slots=True)
class Found:
    """A hit at a place inside one file."""

    where: str
    category: Category
    value: str | bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding, fit to be shown, kept and sent."""

    file: str
    """Relative to the folder, harmless names only; see ``showing.py``."""
    where: str
    category: Category
    mark: str
    """HMAC-SHA256 of the value, shortened: equal values have equal marks under one key."""

    @property
    def place(self) -> str:
        return f"{self.file}: {self.where}"


@dataclass(frozen=True, slots=True)
class NotUnderstood:
    """A file of which the scan says nothing, and why."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class ScanReport:
    """What a scan found, and how much it could look at."""

    findings: tuple[Finding, ...]
    files_scanned: int
    files_not_understood: tuple[NotUnderstood, ...]
    not_tested: tuple[str, ...]
    """What was not looked for, and why."""
    findings_left_out: int = 0
    """At least: beyond ``MAX_FINDINGS``, or ``MAX_FINDINGS_PER_FILE`` of one file."""

    @property
    def is_clean(self) -> bool:
        """Nothing was found. What was not tested and not understood is another question."""
        return not self.findings

    def by_category(self) -> dict[Category, int]:
        """How many findings there are of each category that there is."""
        counts: dict[Category, int] = {}
        for finding in self.findings:
            counts[finding.category] = counts.get(finding.category, 0) + 1
        return counts


def mark_of(key: bytes, value: str | bytes) -> str:
    """The keyed hash under which a value is told from others, but not found out.

    Raises:
        InvalidInputError: the key is so short that values could be tried.
    """
    check_key(key)
    data = " ".join(value.split()).casefold().encode() if isinstance(value, str) else value
    return hmac.new(key, data, hashlib.sha256).hexdigest()[:_MARK_CHARACTERS]


def check_key(key: bytes) -> None:
    """Refuse a key that does not protect.

    Raises:
        InvalidInputError: it is shorter than ``MIN_KEY_BYTES``.
    """
    if len(key) < MIN_KEY_BYTES:
        raise InvalidInputError(f"the key of a scan needs at least {MIN_KEY_BYTES} random bytes")


def findings_of(
    file: str, found: Iterable[Found], *, key: bytes
) -> tuple[tuple[Finding, ...], int]:
    """The findings of one file, each place and category once, and how many were left out."""
    kept: dict[tuple[str, Category], Finding] = {}
    left_out = 0
    for each in found:
        at = (each.where, each.category)
        if at in kept:
            continue
        if len(kept) == MAX_FINDINGS_PER_FILE:
            left_out += 1
            continue
        kept[at] = Finding(file, each.where, each.category, mark_of(key, each.value))
    return tuple(kept.values()), left_out
