"""What fuzzing looks for at length, looked for briefly with every run of the suite."""

import importlib
import mmap
import pkgutil
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matl_common.errors import InvalidInputError
from tests.fuzz.target import (
    MAX_GROWTH_PER_BYTE,
    MAX_INPUT_BYTES,
    MAX_RESIDENT_BASE_BYTES,
    MAX_TRACED_BASE_BYTES,
    PromiseBrokenError,
    Target,
    try_input,
    warm_up,
)

pytestmark = pytest.mark.hostile
NOT_TARGETS = {"run", "samples", "target"}
NAMES = sorted(
    module.name
    for module in pkgutil.iter_modules([str(Path(__file__).parent)])
    if module.name not in NOT_TARGETS and not module.name.startswith("test_")
)
TARGETS: dict[str, Target] = {
    name: importlib.import_module(f"tests.fuzz.{name}").TARGET for name in NAMES
}
# What documents nest or list, in as few bytes as it can be said.
REPEATED = (b"[", b"{},", b'{"a":', b"0,", b"\x0a\x00", b"\xff", b"\n")
PARSERS = [name for name, target in TARGETS.items() if not target.is_live]


@pytest.fixture(autouse=True)
def traced() -> Iterator[None]:
    """Have Python say what it allocates."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


@cache
def warm(name: str) -> Target:
    """A target that has run before."""
    warm_up(TARGETS[name])
    return TARGETS[name]


@st.composite
def damaged(draw: st.DrawFn, seed: bytes) -> bytes:
    """A seed of which a stretch is replaced, repeated or missing."""
    start = draw(st.integers(0, len(seed)))
    end = draw(st.integers(start, min(len(seed), start + 40)))
    put = draw(st.one_of(st.binary(max_size=40), st.just(seed[start:end] * 2)))
    return seed[:start] + put + seed[end:]


@pytest.mark.parametrize("name", PARSERS)
def test_every_seed_is_taken(name: str) -> None:
    # Or fuzzing starts from nothing.
    assert all(try_input(warm(name), seed) for seed in TARGETS[name].seeds)


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
@settings(max_examples=150)
def test_any_input_is_taken_or_refused_by_a_domain_error(name: str, data: st.DataObject) -> None:
    target = warm(name)
    seeds = st.sampled_from(list(target.seeds))
    try_input(target, data.draw(st.one_of(st.binary(max_size=200), seeds.flatmap(damaged))))


@pytest.mark.parametrize("unit", REPEATED)
@pytest.mark.parametrize("name", PARSERS)
def test_the_longest_input_of_the_same_again_and_again_takes_no_more_than_its_share(
    name: str, unit: bytes
) -> None:
    for seed in warm(name).seeds:
        room = unit * ((MAX_INPUT_BYTES - len(seed)) // len(unit))
        for at in (0, len(seed) // 2, len(seed)):
            try_input(TARGETS[name], seed[:at] + room + seed[at:])


def fails(data: bytes) -> None:
    raise KeyError(data)


def believes_a_length(data: bytes) -> None:
    """Make room for what four bytes declare."""
    bytearray(int.from_bytes(data[:4], "big"))


def keeps_what_it_reads(data: bytes) -> None:
    """Take a little more than its share of a byte."""
    [bytes(MAX_GROWTH_PER_BYTE) for _ in data]


def allocates_outside_of_python(data: bytes) -> None:
    """As a library in C does, which ``tracemalloc`` does not see."""
    size = MAX_RESIDENT_BASE_BYTES + (MAX_GROWTH_PER_BYTE + 1) * len(data) + (4 << 20)
    with mmap.mmap(-1, size) as room:
        for page in range(0, size, mmap.PAGESIZE):
            room[page] = 1


def refuses(data: bytes) -> None:
    raise InvalidInputError(f"{len(data)} bytes")


@pytest.mark.parametrize(
    ("broken", "data", "why"),
    [
        (fails, b"", "KeyError"),
        (believes_a_length, (2 * MAX_TRACED_BASE_BYTES).to_bytes(4, "big"), "KiB, traced"),
        (keeps_what_it_reads, bytes(20_000), "KiB, traced"),
        (allocates_outside_of_python, b"1", "KiB, resident"),
    ],
)
def test_what_breaks_the_promise_is_noticed(
    broken: Callable[[bytes], None], data: bytes, why: str
) -> None:
    target = Target(broken, [])
    # Whatever the process had resident before.
    with suppress(PromiseBrokenError):
        try_input(target, data)
    with pytest.raises(PromiseBrokenError, match=why):
        try_input(target, data)


def test_what_is_refused_is_told_from_what_is_taken() -> None:
    assert not try_input(Target(refuses, []), b"")
    assert try_input(Target(len, []), b"")
