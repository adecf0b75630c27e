"""Identifiers in text: patterns, each with what makes a number one, and context where none does.

Pure. Every detector is a function from a text to hits; ``DETECTORS`` lists them. What no
pattern can know (a name in no list, a record number without a word beside it) is not found.
"""

import re
from collections.abc import Callable, Iterator
from datetime import date
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from matl_common.phi.findings import Category, Hit
from matl_common.phi.words import GIVEN_NAMES, NAMES

MIN_CHARACTERS: Final = 4
"""No pattern has fewer, and most cells of a table do."""
FIRST_YEAR: Final = 1880
LAST_YEAR: Final = 2099
_OLDEST = 125
_STATES = (
    "AL|AK|AZ|AR|CA|CO|CT|DE|DC|FL|GA|HI|ID|IL|IN|IA|KS|KY|LA|ME|MD|MA|MI|MN|MS|MO|MT|NE|NV|NH|NJ|"
    "NM|NY|NC|ND|OH|OK|OR|PA|PR|RI|SC|SD|TN|TX|UT|VT|VA|WA|WV|WI|WY"
)
_MONTHS = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|"
    r"sep(?:t(?:ember)?)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)"
)
_NUMBER = r"(?:[ _]?(?:no|nr|num|number|id|code)\b)?[^0-9A-Za-z]{0,6}(?:is[ :]{1,3})?"

_SSN = re.compile(r"(?<![\d-])(\d{3})([- ])(\d{2})\2(\d{4})(?![\d-])")
_SSN_IN_CONTEXT = re.compile(
    r"(?:\bssn|social[ _]security)" + _NUMBER + r"(\d{3}-?\d{2}-?\d{4})\b", re.I
)
_TEN_DIGITS = re.compile(r"(?<![\d.+-])[12]\d{9}(?![\d-]|\.\d)")
_MBI = re.compile(
    r"\b[1-9][AC-HJKMNP-RT-Y][0-9AC-HJKMNP-RT-Y]\d-?[AC-HJKMNP-RT-Y][0-9AC-HJKMNP-RT-Y]\d-?"
    r"[AC-HJKMNP-RT-Y]{2}\d{2}\b"
)
_PHONE = re.compile(
    r"(?<![\d.-])(?:\+?1[-. ]?)?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-. ])[2-9]\d{2}[-. ]\d{4}"
    r"(?![\d-]|\.\d)"
)
_PHONE_ABROAD = re.compile(r"(?<![\w+])\+[1-9](?:[-. ()/]{0,2}\d){7,13}(?!\d)")
_PHONE_IN_CONTEXT = re.compile(
    r"\b(?:tel(?:ephone)?|phone|fax|mobile|cell|pager)"
    + _NUMBER
    + r"(\+?\d(?:[-. ()/]{0,2}\d){6,13})",
    re.I,
)
_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}")
_URL = re.compile(r"\b(?:https?|ftp|file)://[^\s\"'<>]{3,}|\bwww\.[\w-]{2,63}\.[\w.-]{2,}", re.I)
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])", re.I)
_MAC = re.compile(r"(?<![\w:-])[0-9a-f]{2}([:-])(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}(?![\w:-])", re.I)
_VIN = re.compile(r"\b[A-HJ-NPR-Z0-9]{17}\b")
_YEAR_FIRST = re.compile(r"(?<![\d.])(\d{4})([-/._])(\d{1,2})\2(\d{1,2})(?!\d|[.]\d)")
_YEAR_LAST = re.compile(r"(?<![\d.])(\d{1,2})([-/._])(\d{1,2})\2(\d{4})(?!\d|[.]\d)")
_SHORT_YEAR = re.compile(r"(?<![\d/])(\d{1,2})/(\d{1,2})/(\d{2})(?![\d/])")
_COMPACT = re.compile(r"(?<![\d.])(\d{4})(\d{2})(\d{2})(?:\d{6}|[T_ -]?\d{4,6})?(?!\d|\.\d)")
_MONTH = re.compile(r"(?<![\d.-])(?:19|20)\d{2}-(?:0[1-9]|1[0-2])(?![\d-])")
_MONTH_IN_WORDS = re.compile(
    rf"(?:\b|(?<=\d))(?:\d{{1,2}}(?:st|nd|rd|th)?[ .-]{{1,2}})?{_MONTHS}\.?[ ,-]{{0,2}}"
    r"(?:\d{1,2}(?:st|nd|rd|th)?[ ,-]{1,2})?(?:1[89]|20)\d{2}\b",
    re.I,
)
_AGE = re.compile(
    r"\b(?:age[ds]?|alter)[^0-9A-Za-z]{0,4}(\d{2,3})\b"
    r"|\b(\d{2,3})[ -]?(?:y/?o\b|yrs?\b|years?\b|Y\b)",
    re.I,
)
_ZIP = re.compile(
    rf"(?<![\d-])\d{{5}}-\d{{4}}(?![\d-])|, ?(?:{_STATES}) {{1,2}}\d{{5}}\b"
    rf"|\b[A-Z][a-z]{{2,20}}, (?:{_STATES})\b"
    r"|(?i:\b(?:zip|post(?:al)?)[ _]?(?:code)?)[^0-9A-Za-z]{0,4}\d{5}\b"
)
_STREET = re.compile(
    r"\b\d{1,5} (?:[NSEW]\.? )?(?:[A-Z][a-z]+ ){1,3}"
    r"(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Way|Place|Pl)\b"
)
_UID = re.compile(r"(?<![\d.])[0-2](?:\.(?:0|[1-9]\d*)){5,}(?!\d|\.\d)")
_STANDARD_UID = "1.2.840.10008."
_IN_CONTEXT: Final = {
    Category.MRN: r"""mrn|mr\#|medical[\x20_]rec(?:ord)?|pat(?:ient)?[\x20_]?(?=id|no|num)
        |(?:chart|hospital|case)[\x20_](?=no|num)""",
    Category.INSURANCE: r"""medicare|medicaid|policy|subscriber|member[\x20_](?=id|no|num)|insurance
        |beneficiary|mbi""",
    Category.ACCOUNT: r"account|acct|iban",
    Category.LICENCE: r"licen[cs]e|dea\b|certificate",
    Category.DEVICE: r"serial|s/n|device[\x20_](?=id|no|num)|implant",
    Category.UNIQUE: r"""accession|npi|passport|encounter|(?:study|visit)[\x20_](?=id|no|num)""",
}
_A_NUMBER = r"((?=[\w-]{0,8}\d{3})[A-Z]{0,4}[\d-]{4,32}\w{0,32})"
_NUMBERS_IN_CONTEXT: Final = tuple(
    (category, re.compile(rf"(?<![^\W\d_])(?x:{words}){_NUMBER}{_A_NUMBER}", re.I))
    for category, words in _IN_CONTEXT.items()
)
_TITLE = re.compile(
    r"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Herr|Frau)\b\.? {1,3}"
    r"((?:[^\W\d_a-z][^\W\d_]+|[A-Z]\.)(?: [^\W\d_a-z][^\W\d_]+)?)"
)
_LABEL = re.compile(
    r"\b(?:patient(?:'s)?(?: name)?|name|surname|operator|physician|doctor|nurse"
    r"|(?:seen|referred) by)"
    r"[ \t]{0,2}[:=][ \t]{0,2}([^\W\d_]{2,}(?:[ ,^'-]{1,2}[^\W\d_]+){0,3})",
    re.I,
)
_PERSON_NAME = re.compile(r"\b[^\W\d_]{2,}\^[^\W\d_]{2,}(?:\^[^\W\d_]*){0,3}")
_WORD = re.compile(r"[^\W\d_]+")
_WORD_PAIR = re.compile(r"\b([^\W\d_]{2,}),? ((?:[A-Z]\. )?)([^\W\d_]{2,})\b")


def detect(text: str) -> Iterator[Hit]:
    """Every identifier that some detector finds in a text."""
    if len(text) < MIN_CHARACTERS:
        return
    for detector in DETECTORS:
        yield from detector(text)


def _ssn(text: str) -> Iterator[Hit]:
    for found in _SSN.finditer(text):
        area, group, serial = found[1], found[3], found[4]
        if area not in ("000", "666") and area < "900" and group != "00" and serial != "0000":
            yield Hit(Category.SSN, found[0])
    yield from (Hit(Category.SSN, found[1]) for found in _SSN_IN_CONTEXT.finditer(text))


def _provider(text: str) -> Iterator[Hit]:
    for found in _TEN_DIGITS.finditer(text):
        if is_npi(found[0]):
            yield Hit(Category.UNIQUE, found[0])


def is_npi(digits: str) -> bool:
    """Whether ten digits are a National Provider Identifier: Luhn's sum with 80840 before them."""
    total = 0
    for place, digit in enumerate(reversed("80840" + digits)):
        number = int(digit) * (1 + place % 2)
        total += number - 9 if number > 9 else number
    return len(digits) == 10 and total % 10 == 0


def is_vin(code: str) -> bool:
    """Whether 17 characters are a vehicle's number: the ninth is the check digit (49 CFR 565)."""
    if code.isdigit() or code.isalpha():
        return False
    weights = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
    values = dict(zip("ABCDEFGHJKLMNPRSTUVWXYZ", "12345678123457923456789", strict=True))
    total = sum(
        weight * int(values.get(each, each)) for weight, each in zip(weights, code, strict=True)
    )
    return code[8] == "0123456789X"[total % 11]


def _vehicle(text: str) -> Iterator[Hit]:
    for found in _VIN.finditer(text):
        if is_vin(found[0]):
            yield Hit(Category.VEHICLE, found[0])


def _pattern(category: Category, *patterns: re.Pattern[str]) -> Callable[[str], Iterator[Hit]]:
    def detector(text: str) -> Iterator[Hit]:
        for pattern in patterns:
            for found in pattern.finditer(text):
                yield Hit(category, found[0])

    return detector


def _internet(text: str) -> Iterator[Hit]:
    for found in _IPV4.finditer(text):
        try:
            IPv4Address(found[0])
        except AddressValueError:
            continue
        yield Hit(Category.IP, found[0])
    for found in _IPV6.finditer(text):
        try:
            address = IPv6Address(found[0])
        except AddressValueError:
            continue
        if address != IPv6Address("::"):
            yield Hit(Category.IP, found[0])


def _dates(text: str) -> Iterator[Hit]:
    for found in _YEAR_FIRST.finditer(text):
        if _is_date(found[1], found[3], found[4]):
            yield Hit(Category.DATE, found[0])
    for found in _YEAR_LAST.finditer(text):
        if _is_date(found[4], found[1], found[3]) or _is_date(found[4], found[3], found[1]):
            yield Hit(Category.DATE, found[0])
    for found in _SHORT_YEAR.finditer(text):
        year = f"20{found[3]}"
        if _is_date(year, found[1], found[2]) or _is_date(year, found[2], found[1]):
            yield Hit(Category.DATE, found[0])
    for found in _COMPACT.finditer(text):
        if _is_date(found[1], found[2], found[3]):
            yield Hit(Category.DATE, found[0])
    for pattern in (_MONTH, _MONTH_IN_WORDS):
        yield from (Hit(Category.DATE, found[0]) for found in pattern.finditer(text))


def _is_date(year: str, month: str, day: str) -> bool:
    try:
        return FIRST_YEAR <= date(int(year), int(month), int(day)).year <= LAST_YEAR
    except ValueError:
        return False


def _ages(text: str) -> Iterator[Hit]:
    for found in _AGE.finditer(text):
        if 89 < int(found[1] or found[2]) <= _OLDEST:
            yield Hit(Category.AGE, found[0])


def _unique_identifiers(text: str) -> Iterator[Hit]:
    for found in _UID.finditer(text):
        if len(found[0]) >= 16 and not found[0].startswith(_STANDARD_UID):
            yield Hit(Category.UNIQUE, found[0])


def _numbers_in_context(text: str) -> Iterator[Hit]:
    for category, pattern in _NUMBERS_IN_CONTEXT:
        yield from (Hit(category, found[1]) for found in pattern.finditer(text))


def _names(text: str) -> Iterator[Hit]:
    for pattern in (_TITLE, _LABEL):
        yield from (Hit(Category.NAME, found[1]) for found in pattern.finditer(text))
    yield from (Hit(Category.NAME, found[0]) for found in _PERSON_NAME.finditer(text))
    at = 0
    # Pairs may overlap: "saw Mary Smith" is "saw Mary" and "Mary Smith".
    while found := _WORD_PAIR.search(text, at):
        first, second = found[1], found[3]
        if (
            first[0].isupper()
            and second[0].isupper()
            and _are_a_name(first.lower(), second.lower())
        ):
            yield Hit(Category.NAME, found[0])
        at = found.start(3)


def _are_a_name(first: str, second: str) -> bool:
    return {first, second} <= NAMES or first in GIVEN_NAMES or second in GIVEN_NAMES


def names_in(words: list[str]) -> Iterator[Hit]:
    """The words that are names in the lists, whatever stands beside them."""
    yield from (Hit(Category.NAME, word) for word in words if word.lower() in NAMES)


DETECTORS: Final[tuple[Callable[[str], Iterator[Hit]], ...]] = (
    _ssn,
    _provider,
    _pattern(Category.INSURANCE, _MBI),
    _pattern(Category.PHONE, _PHONE, _PHONE_ABROAD, _PHONE_IN_CONTEXT),
    _pattern(Category.EMAIL, _EMAIL),
    _pattern(Category.URL, _URL),
    _internet,
    _pattern(Category.DEVICE, _MAC),
    _vehicle,
    _dates,
    _ages,
    _pattern(Category.GEOGRAPHY, _ZIP, _STREET),
    _unique_identifiers,
    _numbers_in_context,
    _names,
)
