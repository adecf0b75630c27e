import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.phi.codes import detect_in_code
from matl_common.phi.columns import category_of_column
from matl_common.phi.findings import Category
from matl_common.phi.showing import is_harmless, shown_column, shown_name
from matl_common.phi.tokens import random_lengths
from matl_common.phi.values import detect, is_npi, is_vin

KEY = bytes(range(32))
IDENTIFYING = {
    "SSN 123-45-6789": Category.SSN,
    "ssn: 123456789": Category.SSN,
    "MRN: 0012345": Category.MRN,
    "Patient ID 88123": Category.MRN,
    "call (415) 555-2671": Category.PHONE,
    "reach +44 20 7946 0958": Category.PHONE,
    "a.b@c.org": Category.EMAIL,
    "see https://example.org/a": Category.URL,
    "from 10.1.2.3": Category.IP,
    "fe80::1ff:fe23:4567:890a": Category.IP,
    "born 1961-03-02": Category.DATE,
    "02.03.1961": Category.DATE,
    "seen 3/14/21": Category.DATE,
    "March 2, 1961": Category.DATE,
    "2 March 1961": Category.DATE,
    "since 1961-03": Category.DATE,
    "20230405 123456": Category.DATE,
    "aged 93": Category.AGE,
    "a 93-year-old": Category.AGE,
    "Boston, MA 02115": Category.GEOGRAPHY,
    "ZIP 02115": Category.GEOGRAPHY,
    "12 Main Street": Category.GEOGRAPHY,
    "1HGCM82633A004352": Category.VEHICLE,
    "1234567893": Category.UNIQUE,
    "1EG4-TE5-MK73": Category.INSURANCE,
    "Member ID: W123456789": Category.INSURANCE,
    "account no 12345678": Category.ACCOUNT,
    "licence number A1234567": Category.LICENCE,
    "serial number SN12345": Category.DEVICE,
    "00:1a:2b:3c:4d:5e": Category.DEVICE,
    "1.2.826.0.1.3680043.8.498.1234": Category.UNIQUE,
    "Dr. Kowalczyk": Category.NAME,
    "Patient: Jane Roe": Category.NAME,
    "ROE^JANE": Category.NAME,
    "saw Mary Smith today": Category.NAME,
}
HARMLESS = (
    "severity 3 of 4 in 2019",
    "0.123456789",
    "12:30:45",
    "aged 89",
    "v1.2.3",
    "666-12-1234 000-12-1234 123-00-1234 912-34-5678",
    "1.2.840.10008.1.2.4.50",
    "256.1.1.1",
    "2023-13-45 31.02.1961",
    "1234567890",
    "moderate non-proliferative retinopathy, left eye",
    "resolution 2048 x 1536",
)
CODES = {
    "1234567": Category.UNIQUE,
    "mrn_1234567": Category.MRN,
    "john_smith_od": Category.NAME,
    "SmithJohn_OD": Category.NAME,
    "IMG_20230405_123456": Category.DATE,
    "eye-1961-03-02": Category.DATE,
    "1961_03_02": Category.DATE,
    "1.2.826.0.1.3680043.8.498.12": Category.UNIQUE,
    "0012345678": Category.UNIQUE,
}
HARMLESS_CODES = (
    "10_left",
    "image_000123",
    "12345_right",
    "000c1434d8d7",
    "1b495562a3dd",
    "f47ac10b-58cc-4372-a567-0e02b2c3d479",
    "labels_deidentified",
    "hospital_b_000123",
    "green_channel",
    "p12",
)


@pytest.mark.parametrize(("text", "category"), IDENTIFYING.items())
def test_an_identifier_in_text_is_found_in_its_category(text: str, category: Category) -> None:
    assert category in {hit.category for hit in detect(text)}


@pytest.mark.parametrize("text", HARMLESS)
def test_text_that_identifies_nobody_is_left_alone(text: str) -> None:
    assert list(detect(text)) == []


@pytest.mark.parametrize(("name", "category"), CODES.items())
def test_an_identifier_in_the_name_of_a_file_is_found(name: str, category: Category) -> None:
    assert category in {hit.category for hit in detect_in_code(name)}


@pytest.mark.parametrize("name", HARMLESS_CODES)
def test_a_random_name_or_a_counter_is_left_alone(name: str) -> None:
    assert list(detect_in_code(name)) == []


def test_a_code_of_digits_alone_is_random_only_in_the_company_of_random_ones() -> None:
    codes = [f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}" for number in range(1, 200)]
    digits = "4958273640192837"
    assert list(detect_in_code(digits))
    assert not list(detect_in_code(digits, lengths=random_lengths([*codes, digits])))
    # Record numbers are no company.
    assert random_lengths([digits] * 200) == frozenset()


def test_check_digits_tell_numbers_from_identifiers() -> None:
    assert is_npi("1234567893")
    assert not any(is_npi(f"123456789{digit}") for digit in "012456789")
    assert is_vin("1HGCM82633A004352")
    assert not is_vin("1HGCM82643A004352")


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("PatientID", Category.MRN),
        ("patient id", Category.MRN),
        ("MRN", Category.MRN),
        ("last_name", Category.NAME),
        ("DateOfBirth", Category.DATE),
        ("dob", Category.DATE),
        ("Zip-Code", Category.GEOGRAPHY),
        ("e-mail", Category.EMAIL),
        ("home phone", Category.PHONE),
        ("SSN", Category.SSN),
        ("age", None),
        ("dr_level", None),
        ("image_id", None),
        ("mild", None),
        ("updated_model", Category.DATE),
    ],
)
def test_the_name_of_a_column_tells_what_it_holds(name: str, category: Category | None) -> None:
    assert category_of_column(name) is category


@given(st.text(max_size=300))
def test_detectors_take_any_text(text: str) -> None:
    for hit in (*detect(text), *detect_in_code(text)):
        assert hit.value


def test_a_column_is_shown_by_words_that_are_nobodys() -> None:
    assert shown_column("MRN", 3) == "column 3 (mrn)"
    assert shown_column("Patient ID", 3) == "column 3 (patient id)"
    assert shown_column("camera", 3, known=("camera",)) == "column 3 (camera)"
    for name in ("patient_smith", "mrn 1234567", "Smith", "camera"):
        assert shown_column(name, 3) == "column 3"


@pytest.mark.parametrize("name", ["image\x1b[2J", "image[red]", "image\n1", "imagé", ""])
def test_a_name_that_could_steer_a_terminal_is_not_shown(name: str) -> None:
    assert not is_harmless(name)


@given(st.text(string.ascii_letters, min_size=7, max_size=20))
def test_a_word_that_is_not_known_is_never_shown(word: str) -> None:
    if not is_harmless(word):
        shown = shown_name(f"{word}.jpg", 17, key=KEY)
        assert word.lower() not in shown.lower()
        assert shown.startswith("#17~")
        assert shown.endswith(".jpg")
