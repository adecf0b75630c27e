"""What DICOM's own profile of de-identification does with each attribute (PS3.15, E.1-1)."""

from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final

from matl_common.phi.findings import Category

_FILE: Final = "dicom_profile.txt"


class Action(StrEnum):
    """What becomes of an attribute."""

    REMOVE = "X"
    EMPTY = "Z"
    DUMMY = "D"
    REPLACE_UID = "U"


_ACTIONS: Final = {
    "X": Action.REMOVE,
    "Z": Action.EMPTY,
    "D": Action.DUMMY,
    "U": Action.REPLACE_UID,
    # The gentler of the alternatives, since which one an object's module allows is not known here.
    "X/Z": Action.EMPTY,
    "X/D": Action.DUMMY,
    "Z/D": Action.DUMMY,
    "X/Z/D": Action.DUMMY,
    "X/Z/U*": Action.REMOVE,
}
_REPEATING: Final = (0x50, 0x60)
_GROUPS: Final[Mapping[str, Category]] = {
    "PN": Category.NAME,
    "DA": Category.DATE,
    "DT": Category.DATE,
    "TM": Category.DATE,
    "UI": Category.UNIQUE,
    "AS": Category.AGE,
    "LT": Category.FREE_TEXT,
    "ST": Category.FREE_TEXT,
    "UT": Category.FREE_TEXT,
}
_WORDS: Final = (
    ("address", Category.GEOGRAPHY),
    ("countryofresidence", Category.GEOGRAPHY),
    ("regionofresidence", Category.GEOGRAPHY),
    ("telephone", Category.PHONE),
    ("telecom", Category.PHONE),
    ("patientid", Category.MRN),
    ("otherpatientids", Category.MRN),
    ("medicalrecord", Category.MRN),
    ("insurance", Category.INSURANCE),
    ("serialnumber", Category.DEVICE),
    ("deviceid", Category.DEVICE),
    ("stationname", Category.DEVICE),
    ("machinename", Category.DEVICE),
    ("institution", Category.GEOGRAPHY),
    ("name", Category.NAME),
    ("accession", Category.UNIQUE),
    ("comments", Category.FREE_TEXT),
    ("description", Category.FREE_TEXT),
)


@cache
def table() -> Mapping[str, Action]:
    """The action of each attribute, by eight hexadecimal digits."""
    lines = files(__package__).joinpath(_FILE).read_text("ascii").splitlines()
    pairs = (line.split(" ") for line in lines if not line.startswith("#"))
    return MappingProxyType({tag: _ACTIONS[action] for tag, action in pairs})


def action_on(tag: int) -> Action | None:
    """What becomes of an attribute, or nothing."""
    actions = table()
    found = actions.get(f"{tag:08X}")
    if found is not None:
        return found
    group = tag >> 24
    if group in _REPEATING:
        wildcard = f"{group:02X}XX"
        return actions.get(f"{wildcard}{tag & 0xFFFF:04X}") or actions.get(f"{wildcard}XXXX")
    return None


def category_of(keyword: str, kind: str) -> Category:
    """Which identifier an attribute holds, by its keyword and value representation."""
    plain = keyword.lower()
    for word, category in _WORDS:
        if word in plain and kind not in ("DA", "TM", "DT", "UI"):
            return category
    return _GROUPS.get(kind, Category.METADATA)
