from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import InvalidInputError
from matl_common.tlog.disclosure import Disclosure, encode_disclosure, parse_disclosure

texts = st.text(st.characters(codec="utf-8")).map(str.encode)


@given(st.builds(Disclosure, leaf=texts, salt=st.binary(), entry=texts))
def test_a_disclosure_comes_back_as_it_was(shown: Disclosure) -> None:
    assert parse_disclosure(encode_disclosure(shown)) == shown


@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_a_domain_error_and_no_other(data: bytes) -> None:
    with suppress(InvalidInputError):
        parse_disclosure(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b'{"leaf": "", "salt": ""}',
        b'{"leaf": 1, "salt": "", "entry": ""}',
        b'{"leaf": "", "salt": "zz", "entry": ""}',
        b"[" * 100_000,
    ],
)
def test_a_file_that_is_no_disclosure_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="not an entry"):
        parse_disclosure(data)
