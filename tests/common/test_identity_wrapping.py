import base64
from pathlib import Path

import pytest

from matl_common.errors import ConfigurationError, IntegrityError
from matl_common.identity.wrapping import (
    KEY_BYTES,
    SoftwareKeyEncryptionKey,
    create_key_file,
    load_key_file,
)


def test_the_published_wrapping_of_a_256_bit_key_comes_out() -> None:
    # RFC 3394 §4.6.
    key = SoftwareKeyEncryptionKey(bytes(range(32)))
    data = bytes.fromhex("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F")
    wrapped = bytes.fromhex(
        "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21"
    )
    assert key.wrap(data) == wrapped
    assert key.unwrap(wrapped) == data


@pytest.mark.parametrize("wrapped", [b"", b"x", bytes(40), bytes(41), bytes(8)])
def test_what_another_key_wrapped_is_refused(wrapped: bytes) -> None:
    with pytest.raises(IntegrityError, match="does not unwrap"):
        SoftwareKeyEncryptionKey(bytes(KEY_BYTES)).unwrap(wrapped)


def test_a_key_file_is_private_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "log.key"
    create_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    first = load_key_file(path)
    with pytest.raises(ConfigurationError, match="never replaced"):
        create_key_file(path)
    again = load_key_file(path)
    assert again.name == first.name
    assert again.unwrap(first.wrap(bytes(32))) == bytes(32)


def test_two_keys_have_two_names_that_do_not_tell_them(tmp_path: Path) -> None:
    names = set()
    for name in ("a", "b"):
        create_key_file(tmp_path / name)
        key = load_key_file(tmp_path / name)
        names.add(key.name)
        assert key.name not in base64.b64decode((tmp_path / name).read_bytes()).hex()
    assert len(names) == 2


@pytest.mark.parametrize("content", [b"", b"short", base64.b64encode(bytes(31)), b"\xff" * 44])
def test_a_file_that_holds_no_key_says_how_to_make_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log.key"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="openssl rand"):
        load_key_file(path)


def test_a_missing_key_file_says_what_is_lost_with_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="restore it from its backup"):
        load_key_file(tmp_path / "gone")


def test_a_key_file_in_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot write"):
        create_key_file(tmp_path / "nowhere" / "log.key")
