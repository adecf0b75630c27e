"""Names are accepted or refused whole."""

import hashlib
from pathlib import Path

import pytest

from matl_common.errors import InvalidInputError
from matl_common.ids import (
    digest_of,
    digest_of_file,
    parse_digest,
    parse_federation_id,
    parse_node_id,
    parse_round_id,
)


@pytest.mark.parametrize("text", ["a", "hospital_a", "hospital-1", "a" * 63])
def test_a_node_id_is_accepted_as_it_is(text: str) -> None:
    assert parse_node_id(text) == text


@pytest.mark.parametrize(
    "text", ["", "A", "1a", "_a", "a b", "a\n", "a/b", "a.b", "é", "a" * 64, "hospital_a\x00"]
)
def test_a_text_that_is_not_a_node_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="node id"):
        parse_node_id(text)


@pytest.mark.parametrize("text", ["", "a", "dr_study", "dr-", "DR", "dr.study", "d" * 64, "dr\n"])
def test_a_text_that_is_not_a_federation_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="federation id"):
        parse_federation_id(text)


def test_a_federation_id_is_accepted_as_it_is() -> None:
    assert parse_federation_id("dr-study") == "dr-study"


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n"])
def test_a_text_that_is_not_a_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="SHA-256"):
        parse_digest(text)


def test_rounds_count_from_one() -> None:
    assert parse_round_id(1) == 1
    with pytest.raises(InvalidInputError, match="count from 1"):
        parse_round_id(0)


def test_bytes_and_the_file_that_holds_them_have_one_digest(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert digest_of(data) == digest_of_file(tmp_path / "file")
    assert parse_digest(digest_of(data)) == hashlib.sha256(data).hexdigest()
