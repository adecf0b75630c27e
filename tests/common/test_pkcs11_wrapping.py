"""A key-encryption key in a real token: what it wraps, and what is said when it cannot."""

import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pkcs11
import pytest
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass

from matl_common.errors import ConfigurationError, IntegrityError
from matl_common.identity.key_places import create_wrapping_key, load_wrapping_key
from matl_common.identity.pkcs11.session import TokenError
from matl_common.identity.pkcs11.uri import PIN_VARIABLE, parse_token_uri
from matl_common.identity.pkcs11.wrapping import TokenKeyEncryptionKey, create_token_key
from matl_common.identity.wrapping import KEY_BYTES, SoftwareKeyEncryptionKey
from tests.softhsm import PIN, TokenFolder

pytestmark = pytest.mark.hsm

DATA_KEY = bytes(range(100, 132))


def import_key(
    tokens: TokenFolder,
    label: str,
    value: bytes,
    *,
    extractable: bool = False,
    more: Mapping[Attribute, object] | None = None,
) -> None:
    """Put a key into the token that was known outside of it."""
    template = {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.KEY_TYPE: KeyType.AES,
        Attribute.TOKEN: True,
        Attribute.PRIVATE: True,
        Attribute.LABEL: label,
        Attribute.VALUE: value,
        Attribute.SENSITIVE: not extractable,
        Attribute.EXTRACTABLE: extractable,
        Attribute.WRAP: True,
        Attribute.UNWRAP: True,
    }
    with tokens.session("hsm") as session:
        session.create_object({**template, **(more or {})})


def refusal(open_key: Callable[[], object], kind: type[Exception] = ConfigurationError) -> str:
    """What is said, in one line that has no PIN in it."""
    with pytest.raises(kind) as refused:
        open_key()
    said = str(refused.value)
    assert "\n" not in said
    assert PIN not in said
    return said


def test_a_token_and_a_file_with_the_same_key_are_one_key(tokens: TokenFolder) -> None:
    value = bytes(range(32))
    import_key(tokens, "log", value)
    ours, theirs = SoftwareKeyEncryptionKey(value), load_wrapping_key(tokens.uri("hsm"))
    assert theirs.name == ours.name
    assert theirs.wrap(DATA_KEY) == ours.wrap(DATA_KEY)
    assert theirs.unwrap(ours.wrap(DATA_KEY)) == DATA_KEY


def test_a_key_made_in_the_token_never_leaves_it(tokens: TokenFolder) -> None:
    key = create_wrapping_key(tokens.uri("hsm"))
    assert key.unwrap(key.wrap(DATA_KEY)) == DATA_KEY
    assert "PKCS#11 token 'hsm' (SoftHSM v2, serial " in key.holder
    (only,) = key.weaknesses
    assert "hardware" in only
    with tokens.session("hsm") as session:
        found = session.get_key(label="log")
        assert found[Attribute.NEVER_EXTRACTABLE]
        assert found[Attribute.ALWAYS_SENSITIVE]
        assert not found[Attribute.DECRYPT]
        with pytest.raises(pkcs11.PKCS11Error):
            found[Attribute.VALUE]


def test_data_keys_only_pass_through_the_token(tokens: TokenFolder) -> None:
    key = create_token_key(tokens.uri("hsm"))
    assert key.unwrap(key.wrap(DATA_KEY)) == DATA_KEY
    with tokens.session_beside("hsm") as session:
        assert len(list(session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY}))) == 1


def test_a_key_that_is_there_is_not_made_again(tokens: TokenFolder) -> None:
    key = create_token_key(tokens.uri("hsm"))
    assert "never replaced" in refusal(lambda: create_token_key(tokens.uri("hsm")))
    assert load_wrapping_key(tokens.uri("hsm")).name == key.name


@pytest.mark.parametrize("wrapped", [b"", b"x", bytes(40), bytes(41), bytes(8)])
def test_what_another_key_wrapped_is_refused(tokens: TokenFolder, wrapped: bytes) -> None:
    key = create_token_key(tokens.uri("hsm"))
    with pytest.raises(IntegrityError, match="does not unwrap"):
        key.unwrap(wrapped)
    assert key.unwrap(key.wrap(DATA_KEY)) == DATA_KEY


def test_a_key_that_can_leave_or_was_outside_is_told(tokens: TokenFolder) -> None:
    import_key(tokens, "loose", bytes(32), extractable=True)
    import_key(tokens, "imported", bytes(32))
    loose = load_wrapping_key(tokens.uri("hsm", "loose")).weaknesses
    assert "can be taken out" in loose[0]
    imported = load_wrapping_key(tokens.uri("hsm", "imported")).weaknesses
    assert "was once outside" in imported[0]


def test_a_pin_that_others_can_read_is_told(tokens: TokenFolder, tmp_path: Path) -> None:
    file = tmp_path / "pin"
    file.write_text(PIN)
    file.chmod(0o600)
    key = create_token_key(tokens.uri("hsm", query=f"&pin-source={file}"))
    assert not any(str(file) in each for each in key.weaknesses)
    file.chmod(0o644)
    assert f"chmod 600 {file}" in key.weaknesses[-1]


def test_without_the_library_it_is_told_what_to_install(
    tokens: TokenFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    assert "pip install 'matl[hsm]'" in refusal(lambda: load_wrapping_key(tokens.uri("hsm")))


def test_an_object_is_found_by_its_id_alone(tokens: TokenFolder) -> None:
    text = tokens.uri_text("hsm").replace("object=log", "id=%00%ff")
    key = create_token_key(parse_token_uri(text))
    assert create_token_key(tokens.uri("hsm")).name != key.name
    assert load_wrapping_key(parse_token_uri(text)).name == key.name


@pytest.mark.parametrize("attribute", ["serial=1", "model=M", "manufacturer=M", "slot-id=1"])
def test_a_token_fits_only_with_all_that_is_said_of_it(tokens: TokenFolder, attribute: str) -> None:
    create_token_key(tokens.uri("hsm"))
    text = tokens.uri_text("hsm").replace("object=", f"{attribute};object=")
    said = refusal(lambda: load_wrapping_key(parse_token_uri(text)), TokenError)
    assert "is not there" in said


def test_an_object_of_another_type_is_no_key(tokens: TokenFolder) -> None:
    text = tokens.uri_text("hsm").replace("?", ";type=private?")
    assert "names no secret-key" in refusal(lambda: load_wrapping_key(parse_token_uri(text)))


def test_a_wrong_pin_is_tried_once(
    tokens: TokenFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    create_token_key(tokens.uri("hsm"))
    file = tmp_path / "pin"
    file.write_text(f"{PIN}\n")
    key = TokenKeyEncryptionKey(tokens.uri("hsm", query=f"&pin-source={file}"))
    file.write_text("wrong-4712")
    tokens.restart()
    assert "refuses the PIN" in refusal(lambda: key.wrap(DATA_KEY))
    assert "not tried again" in refusal(lambda: key.wrap(DATA_KEY))
    file.write_text(PIN)
    assert key.unwrap(key.wrap(DATA_KEY)) == DATA_KEY
    tokens.restart()
    monkeypatch.setenv(PIN_VARIABLE, "wrong-4713")
    said = refusal(lambda: load_wrapping_key(tokens.uri("hsm")))
    assert "refuses the PIN" in said
    assert "4713" not in said


def test_without_a_pin_the_two_places_for_one_are_named(
    tokens: TokenFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(PIN_VARIABLE)
    said = refusal(lambda: load_wrapping_key(tokens.uri("hsm")))
    assert PIN_VARIABLE in said
    assert "pin-source" in said
    file = tmp_path / "pin"
    uri = tokens.uri("hsm", query=f"&pin-source={file}")
    assert "cannot read the PIN" in refusal(lambda: load_wrapping_key(uri))
    file.write_bytes(b"\n")
    assert "no PIN in" in refusal(lambda: load_wrapping_key(uri))
    file.write_bytes(b"\xff")
    assert "no PIN in" in refusal(lambda: load_wrapping_key(uri))


def test_a_token_that_is_not_there_is_told_with_those_that_are(tokens: TokenFolder) -> None:
    said = refusal(lambda: load_wrapping_key(tokens.uri("hms")), TokenError)
    assert "is not there" in said
    assert "'hsm'" in said


def test_two_tokens_of_one_name_are_told_apart_by_serial(tokens: TokenFolder) -> None:
    tokens.add("hsm")
    assert "add serial" in refusal(lambda: load_wrapping_key(tokens.uri("hsm")))


def test_a_missing_and_an_ambiguous_object_are_refused(tokens: TokenFolder) -> None:
    assert "there is no secret-key" in refusal(lambda: load_wrapping_key(tokens.uri("hsm")))
    import_key(tokens, "log", bytes(32))
    import_key(tokens, "log", bytes(32))
    assert "add id" in refusal(lambda: load_wrapping_key(tokens.uri("hsm")))


@pytest.mark.parametrize(
    ("value", "more", "said"),
    [
        (bytes(16), {}, "not an AES key of 256 bits"),
        (bytes(32), {Attribute.KEY_TYPE: KeyType.GENERIC_SECRET}, "not an AES key"),
        (bytes(32), {Attribute.UNWRAP: False}, "may not wrap and unwrap"),
    ],
)
def test_a_key_of_another_kind_is_refused(
    tokens: TokenFolder, value: bytes, more: dict[Attribute, object], said: str
) -> None:
    import_key(tokens, "log", value, more=more)
    assert said in refusal(lambda: load_wrapping_key(tokens.uri("hsm")))


def test_a_module_that_is_none_is_refused(tokens: TokenFolder, tmp_path: Path) -> None:
    text = tokens.uri_text("hsm").replace(str(tokens.module), str(tmp_path / "none.so"))
    assert "cannot load" in refusal(lambda: load_wrapping_key(parse_token_uri(text)))


def test_a_session_that_was_lost_is_opened_again(tokens: TokenFolder) -> None:
    key = create_token_key(tokens.uri("hsm"))
    wrapped = key.wrap(DATA_KEY)
    tokens.restart()
    assert key.unwrap(wrapped) == DATA_KEY
    with tokens.taken_away():
        assert "is not there" in refusal(lambda: key.unwrap(wrapped), TokenError)
        assert "is not there" in refusal(lambda: key.unwrap(wrapped), TokenError)
    assert key.unwrap(wrapped) == DATA_KEY


def test_two_keys_of_a_token_stay_apart_when_it_was_away(tokens: TokenFolder) -> None:
    one, two = (create_token_key(tokens.uri("hsm", label)) for label in ("one", "two"))
    wrapped = one.wrap(DATA_KEY)
    with tokens.taken_away():
        refusal(lambda: two.wrap(DATA_KEY), TokenError)
    assert two.wrap(DATA_KEY) != wrapped
    # Only who finds the token away starts its module anew, and not everyone after it.
    with tokens.session_beside("hsm") as session:
        assert one.wrap(DATA_KEY) == wrapped
        assert session.get_key(label="two")


def test_handles_that_came_to_mean_another_key_wrap_nothing_with_it(tokens: TokenFolder) -> None:
    for label in ("one", "two"):
        create_token_key(tokens.uri("hsm", label))
    tokens.restart()
    one = load_wrapping_key(tokens.uri("hsm", "one"))
    wrapped = one.wrap(DATA_KEY)
    # A reset token numbers sessions and objects from the beginning again.
    tokens.restart()
    two = load_wrapping_key(tokens.uri("hsm", "two"))
    assert one.wrap(DATA_KEY) == wrapped
    tokens.restart()
    other = two.wrap(DATA_KEY)
    assert one.unwrap(wrapped) == DATA_KEY
    assert two.unwrap(other) == DATA_KEY


def test_another_session_and_another_token_that_is_broken_are_left_alone(
    tokens: TokenFolder,
) -> None:
    name = create_token_key(tokens.uri("hsm")).name
    before = set(tokens.folder.iterdir())
    tokens.add("broken")
    (broken,) = set(tokens.folder.iterdir()) - before
    load_wrapping_key(tokens.uri("hsm"))
    with tokens.session_beside("hsm") as session:
        shutil.rmtree(broken)
        assert load_wrapping_key(tokens.uri("hsm")).name == name
        assert session.get_key(label="log")


def test_a_key_that_was_exchanged_meanwhile_wraps_nothing(tokens: TokenFolder) -> None:
    key = create_token_key(tokens.uri("hsm"))
    with tokens.session("hsm") as session:
        session.get_key(label="log").destroy()
        session.generate_key(
            KeyType.AES,
            KEY_BYTES * 8,
            label="log",
            store=True,
            capabilities=MechanismFlag.WRAP | MechanismFlag.UNWRAP,
        )
    tokens.restart()
    assert "restore the key" in refusal(lambda: key.wrap(DATA_KEY))


def test_many_threads_and_two_keys_share_a_token(tokens: TokenFolder) -> None:
    keys = [create_token_key(tokens.uri("hsm", label)) for label in ("one", "two")]
    failures: list[BaseException] = []

    def work(key: TokenKeyEncryptionKey) -> None:
        try:
            for _ in range(20):
                assert key.unwrap(key.wrap(DATA_KEY)) == DATA_KEY
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(key,)) for key in keys * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
