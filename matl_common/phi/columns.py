"""What the name of a column says about its values."""

import re
from typing import Final

from matl_common.phi.findings import Category

_CASES = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_OTHER = re.compile(r"[\W_]+")

_WORDS: Final[dict[Category, str]] = {
    Category.SSN: "ssn|social_sec(urity)?|national_id|nino|sin_number",
    Category.MRN: """mrn|medical_rec(ord)?|record_(no|num|number|id)|pid|patid|pat_id|subject_?id
        |patients?_?(id|no|num|number|key)?|subject|person_?id|chart_(no|num|number)
        |hospital_(no|num|number)|case_?(no|num|number)""",
    Category.NAME: """names?|first_?name|last_?name|full_?name|surname|given_?name|family_?name
        |maiden(_name)?|initials|physician|doctor|operator|technician|nurse|next_of_kin|mother
        |father|spouse|employer""",
    Category.INSURANCE: """insurance|insurer|policy(_no|_num|_number)?|member_?id|beneficiary|mbi
        |hicn|medicare|medicaid|subscriber|health_plan|payer_id""",
    Category.DATE: """dob|date|birth_?(date|day|month)?|born|birthdate|birthday|admission|admitted
        |discharged?|exam_?date|study_?date|visit_?date|death|deceased|dod|timestamp|datetime|time
        |created|updated|month|day""",
    Category.GEOGRAPHY: """address|addr|street|city|town|county|zip|zip_?code|post_?code
        |postal(_code)?|precinct|geocode|lat|latitude|lon|lng|longitude|gps|location|residence
        |district|neighbou?rhood""",
    Category.PHONE: "phone|telephone|tel|mobile|cell|fax|pager",
    Category.EMAIL: "e_?mail",
    Category.ACCOUNT: "account|acct|iban|billing|invoice",
    Category.LICENCE: "licen[cs]e|certificate|dea|passport",
    Category.VEHICLE: "vehicle|vin|plate|license_plate",
    Category.DEVICE: """device(_id|_no|_number|_serial)?|serial(_no|_number)?|implant
        |mac(_address)?|imei|udi""",
    Category.URL: "url|uri|website|web_?page|link",
    Category.IP: "ip|ip_?addr(ess)?|hostname",
    Category.BIOMETRIC: "fingerprint|voice_?print|iris_?code|biometric|retina_?print|genome|dna",
    Category.PHOTO: "photo|face|portrait|selfie",
    Category.UNIQUE: """accession(_no|_number)?|encounter(_id)?|visit_?(id|no|number)|npi|uid
        |(study|series|sop)_?(instance_)?uid|episode_?id|order_?(id|no|number)""",
    Category.FREE_TEXT: """notes?|comments?|remarks?|report|history|free_?text|description
        |findings?_text""",
}
_PATTERNS: Final = tuple(
    (category, re.compile(rf"_(?:{words})_", re.VERBOSE)) for category, words in _WORDS.items()
)


def category_of_column(name: str) -> Category | None:
    """Which identifier a column of this name tends to hold.

    "age" is none: an age up to 89 may stay, and its values are looked at.
    """
    words = _words(name)
    return next((category for category, found in _PATTERNS if found.search(words)), None)


def is_only_known(name: str) -> bool:
    """Whether the name of a column is one of those words and nothing else, and so nobody's."""
    return any(found.fullmatch(_words(name)) for _, found in _PATTERNS)


def _words(name: str) -> str:
    return f"_{_OTHER.sub('_', _CASES.sub('_', name.strip())).strip('_').lower()}_"
