"""What fuzzing looks for at length, looked for briefly with every run of the suite."""

import importlib
import pkgutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matl_common.errors import InvalidInputError
from tests.fuzz.target import MAX_GROWTH_BYTES, PromiseBrokenError, Target, try_input

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
PARSERS = [name for name, target in TARGETS.items() if not target.is_live]


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
    assert all(try_input(TARGETS[name], seed) for seed in TARGETS[name].seeds)


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
@settings(max_examples=150)
def test_any_input_is_taken_or_refused_by_a_domain_error(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    seeds = st.sampled_from(list(target.seeds))
    try_input(target, data.draw(st.one_of(st.binary(max_size=200), seeds.flatmap(damaged))))


def fails(data: bytes) -> None:
    raise KeyError(data)


def takes_memory(data: bytes) -> None:
    del data
    bytearray(b"\1" * (MAX_GROWTH_BYTES + (1 << 20)))


def refuses(data: bytes) -> None:
    raise InvalidInputError(f"{len(data)} bytes")


def test_what_breaks_the_promise_is_noticed() -> None:
    # Whatever the process had resident before.
    takes_memory(b"")
    for broken, why in ((fails, "KeyError"), (takes_memory, "MiB")):
        with pytest.raises(PromiseBrokenError, match=why):
            try_input(Target(broken, [b""]), b"")
    assert not try_input(Target(refuses, [b""]), b"")
