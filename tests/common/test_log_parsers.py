"""Whatever bytes reach a parser of the log, it refuses them with an error of ours and no other.

The parsers whose own tests do not say so already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matl_common.errors import MatlError
from matl_common.identity.wrapping import SoftwareKeyEncryptionKey
from matl_common.signing import parse_envelope
from matl_common.tlog.checkpoint import parse_checkpoint
from matl_common.tlog.entry import parse_entry
from matl_common.tlog.leaf import parse_leaf
from matl_common.tlog.sealing import data_key, open_sealed, seal
from matl_common.tlog.tiles import parse_tile
from matl_common.wire.documents import (
    parse_receipt,
    parse_round_start,
    parse_study_plan,
    parse_update_manifest,
)
from tests.logs import LOG, an_entry

KEY: Final = data_key("2026-11.1", bytes(32))
SEALED: Final = seal(
    an_entry("a"), origin=LOG["log_origin"], index=0, key=KEY, random=bytes(range(44))
)
LEAF: Final = parse_leaf(SEALED.leaf)
PARSERS: Final[Mapping[str, Callable[[bytes], object]]] = {
    "entry": parse_entry,
    "checkpoint's text": parse_checkpoint,
    "tile": lambda data: parse_tile(data, width=2),
    "sealed payload": lambda data: open_sealed(LEAF, data, KEY),
    "wrapped key": SoftwareKeyEncryptionKey(bytes(32)).unwrap,
    "envelope": parse_envelope,
    "study plan": parse_study_plan,
    "round start": parse_round_start,
    "manifest": parse_update_manifest,
    "receipt": parse_receipt,
}
# Documents that nearly are some, as well as noise.
BYTES: Final = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass")),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    ).map(lambda value: repr(value).replace("'", '"').replace("None", "null").encode("utf-8")),
    st.just(b"[" * 5000),
    st.just(b'{"a":' + b"9" * 5000 + b"}"),
)


@pytest.mark.parametrize("name", PARSERS)
@given(BYTES)
def test_arbitrary_bytes_give_a_domain_error_and_no_other(name: str, data: bytes) -> None:
    with suppress(MatlError):
        PARSERS[name](data)
