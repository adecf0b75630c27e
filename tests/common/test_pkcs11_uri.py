"""PKCS#11 URIs: what names an object in a token, and what is refused."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from matl_common.errors import ConfigurationError
from matl_common.identity.key_places import parse_key_place
from matl_common.identity.pkcs11.uri import ObjectType, TokenUri, parse_token_uri

MODULE = "?module-path=/usr/lib/hsm.so"
NAMES = st.one_of(
    st.sampled_from(
        ["token", "manufacturer", "model", "serial", "slot-id", "object", "id", "type"]
    ),
    st.sampled_from(["module-path", "pin-source", "pin-value", "x-y", "library-version"]),
)
VALUES = st.one_of(st.sampled_from(["/a", "%00", "%FF", "7", "secret-key", "a b", ""]), st.text())
ATTRIBUTES = st.lists(st.tuples(NAMES, VALUES).map("=".join), max_size=6)
URIS = st.builds(
    lambda path, query: f"pkcs11:{';'.join(path)}?{'&'.join(query)}", ATTRIBUTES, ATTRIBUTES
)


def test_every_attribute_is_read() -> None:
    text = (
        "pkcs11:token=The%20log%E2%80%99s;manufacturer=Maker+Co.;model=M2;serial=0a:1;slot-id=12;"
        "object=log;id=%00%01x;type=secret-key?module-path=/opt/h%20sm/lib.so"
        "&pin-source=file:/run/pin"
    )
    assert parse_token_uri(text) == TokenUri(
        text=text,
        module=Path("/opt/h sm/lib.so"),
        token="The log’s",  # noqa: RUF001
        manufacturer="Maker+Co.",
        model="M2",
        serial="0a:1",
        slot_id=12,
        label="log",
        id=b"\x00\x01x",
        type=ObjectType.SECRET_KEY,
        pin_source=Path("/run/pin"),
    )


def test_an_ampersand_separates_nothing_before_the_question_mark() -> None:
    assert parse_token_uri(f"pkcs11:token=t;object=o&type=cert{MODULE}").label == "o&type=cert"


@pytest.mark.parametrize(
    "source", ["/run/pin", "file:/run/pin", "file:///run/pin", "file://localhost/run/pin"]
)
def test_a_file_with_the_pin_is_a_path_or_its_uri(source: str) -> None:
    found = parse_token_uri(f"pkcs11:token=t;object=o{MODULE}&pin-source={source}")
    assert found.pin_source == Path("/run/pin")


@pytest.mark.parametrize("text", ["pkcs11:", "PKCS11:", "Pkcs11:object=o"])
def test_what_begins_like_a_uri_is_never_taken_for_a_path(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_key_place(text)
    assert parse_key_place(f"./{text}") == Path(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pkcs11:token=t;object=o", "names no module"),
        (f"pkcs11:token=t{MODULE}", "names no object"),
        (f"pkcs11:object=o{MODULE}", "names no token"),
        (f"pkcs11:token=t;token=t;object=o{MODULE}", "token twice"),
        (f"pkcs11:token=t;object=o;library-version=2{MODULE}", "library-version means nothing"),
        (f"pkcs11:token=t;object=o;module-path=/a{MODULE}", "module-path means nothing"),
        (f"pkcs11:token=a b;object=o{MODULE}", "token is empty, or has characters"),
        (f"pkcs11:token=;object=o{MODULE}", "token is empty"),
        (f"pkcs11:token=%0A;object=o{MODULE}", "token is not text"),
        (f"pkcs11:token=%FF;object=o{MODULE}", "token is not text"),
        (f"pkcs11:slot-id=+1;object=o{MODULE}", "slot-id is not a number"),
        (f"pkcs11:slot-id=99999999999999999999;object=o{MODULE}", "slot-id is not a number"),
        (f"pkcs11:token=t;object=o;type=key{MODULE}", "type is not one of"),
        ("pkcs11:token=t;object=o?module-path=hsm.so", "module-path is not the absolute"),
        (f"pkcs11:token=t;object=o{MODULE}&pin-source=|cat", "pin-source is not the absolute"),
        (f"pkcs11:token=t;object=o{MODULE}&pin-source=file://host/pin", "pin-source is not"),
        (f"pkcs11:token=t;;object=o{MODULE}", "no attribute"),
        (f"pkcs11:token={'t' * 2000};object=o{MODULE}", "at most 2000"),
    ],
)
def test_what_would_not_be_honoured_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse_token_uri(text)


@pytest.mark.parametrize(
    "text",
    [
        f"pkcs11:token=t;object=o{MODULE}&pin-value=canary4711",
        f"pkcs11:token=t;object=o;pin-value=canary4711{MODULE}",
        f"pkcs11:token=t;object=o{MODULE}&pin-valeu=canary4711",
        f"pkcs11:token=t;object=o{MODULE}&pin-source=canary4711",
        f"pkcs11:token=t;object=o{MODULE}&canary4711",
        "pkcs11:canary 4711",
    ],
)
def test_a_pin_in_a_uri_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_token_uri(text)
    assert "canary" not in str(refused.value)
    if "pin-value" in text:
        assert "pin-source" in str(refused.value)
        assert "MATL_PKCS11_PIN" in str(refused.value)


@given(st.one_of(URIS, st.text(), st.text().map("pkcs11:".__add__)))
@example("pkcs11:slot-id=%D9%A1;object=o?module-path=/a")
@example("pkcs11:token=t;id=%0?module-path=/a")
def test_any_text_is_an_object_in_a_token_or_refused(text: str) -> None:
    with suppress(ConfigurationError):
        found = parse_token_uri(text)
        assert str(found) == text
        assert found.label or found.id
        assert found.module.is_absolute()
