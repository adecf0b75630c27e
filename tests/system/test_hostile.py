"""Hostile traffic of an enrolled hospital, on a live coordinator in the middle of a round."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from matl_common.ids import digest_of
from matl_common.protocol import PayloadType, RoundStart
from matl_common.signing import sign
from matl_common.wire import federation_pb2 as pb
from tests.system.federation import (
    EXTRA_HOSPITALS,
    HOSPITALS,
    Event,
    Federation,
    Material,
    found_federation,
    logged_events,
)
from tests.system.processes import Daemon
from tests.system.story import of, start_hospitals
from tests.system.voice import Sealed, Voice, voice_of

pytestmark = [pytest.mark.system, pytest.mark.hostile]
Code = grpc.StatusCode
FORGER, POISONER = EXTRA_HOSPITALS


@dataclass(frozen=True)
class Arena:
    """Round 2 collects: three honest hospitals train, two are not what they seem."""

    federation: Federation
    coordinator: Daemon
    forger: Voice
    poisoner: Voice
    start: RoundStart
    earlier: Sealed
    """The forger's update of round 1, which was admitted."""
    receipt: pb.Envelope
    """What it got for that update."""

    def update(self, *, scale: float = 0.01, extra: int = 0) -> NDArray[np.float32]:
        elements = self.earlier.manifest.byte_count // 4 + extra
        update = np.random.default_rng(0).standard_normal(elements, dtype=np.float32)
        scaled: NDArray[np.float32] = update * np.float32(scale / np.linalg.norm(update))
        return scaled

    def logged(self, event: str, **facts: object) -> list[Event]:
        with self.federation.operator() as operator:
            entries = operator.newest_log_entries()
        return of([json.loads(each) for each in entries], event, **facts)

    def counted(self, outcome: str) -> float:
        return self.federation.metric("matl_updates_total", outcome=outcome)

    def phase(self) -> str:
        with self.federation.operator() as operator:
            current = operator.status().current_round
        assert current is not None
        return f"{current.round_id} {current.phase}"


def direction_of(federation: Federation) -> NDArray[np.float32]:
    return np.fromfile(federation.direction, dtype=np.float32) * np.float32(0.05)


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[Arena]:
    federation = found_federation(
        tmp_path_factory.mktemp("hostile"),
        material,
        hospitals=(*HOSPITALS, *EXTRA_HOSPITALS),
        rounds={"quorum": 3, "minimum_participants": 4},
    )
    honest = replace(federation, hospitals=HOSPITALS)
    with ExitStack() as running:
        coordinator = running.enter_context(federation.start_coordinator())
        coordinator.wait_for("coordinator_ready")
        hospitals = start_hospitals(honest, running)
        forger, poisoner = (
            running.enter_context(voice_of(federation, node)) for node in EXTRA_HOSPITALS
        )
        earlier = forger.seal(forger.next_round(), direction_of(federation))
        for node, hospital in hospitals.items():
            hospital.wait_for("participant.update_admitted", round=1)
            federation.control(node).write_text("wait")
        # The last update of round 1; the poisoner was not there yet.
        admitted = forger.send(earlier)
        assert admitted.HasField("receipt")
        coordinator.wait_for("model_released", round=1)
        start = forger.next_round(have_round=1)
        assert poisoner.next_round(have_round=1) == start
        yield Arena(federation, coordinator, forger, poisoner, start, earlier, admitted.receipt)


def expect_code(code: grpc.StatusCode, call: Callable[[], object]) -> str:
    """The refusal's text."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is code, caught.value.details()
    return str(caught.value.details())


def expect_refusal(
    arena: Arena, refused: str, code: grpc.StatusCode, call: Callable[[], object]
) -> None:
    """The call is refused, logged and counted, and the round goes on."""
    logged = len(arena.logged("update_refused", code=refused))
    counted = arena.counted(refused)
    details = expect_code(code, call)
    assert len(arena.logged("update_refused", code=refused)) == logged + 1
    assert arena.counted(refused) == counted + 1
    assert details
    assert arena.phase() == "2 collecting"


def forged(sealed: Sealed, payload: bytes, voice: Voice) -> Sealed:
    envelope = sign(PayloadType.UPDATE, payload, voice.signer)
    return replace(sealed, envelope=envelope)


def with_broken_signature(sealed: Sealed) -> Sealed:
    signature = bytearray(sealed.envelope.signature)
    signature[-1] ^= 1
    return replace(sealed, envelope=replace(sealed.envelope, signature=bytes(signature)))


Make = Callable[[Arena], Sealed]
DECLARATIONS: dict[str, tuple[str, grpc.StatusCode, Make]] = {
    "a broken signature": (
        "bad_signature",
        Code.UNAUTHENTICATED,
        lambda a: with_broken_signature(a.forger.seal(a.start, a.update())),
    ),
    "another hospital's signature": (
        "bad_signature",
        Code.UNAUTHENTICATED,
        lambda a: a.poisoner.seal(a.start, a.update()),
    ),
    "a signed payload that is no manifest": (
        "malformed",
        Code.INVALID_ARGUMENT,
        lambda a: forged(a.forger.seal(a.start, a.update()), b"\xff\xfe no manifest", a.forger),
    ),
    "one value too many": (
        "wrong_size",
        Code.INVALID_ARGUMENT,
        lambda a: a.forger.seal(a.start, a.update(extra=1)),
    ),
    "a declaration of a tebibyte": (
        "wrong_size",
        Code.INVALID_ARGUMENT,
        lambda a: a.forger.seal(a.start, a.update(), byte_count=1 << 40),
    ),
    "tensors of another shape": (
        "wrong_schema",
        Code.INVALID_ARGUMENT,
        lambda a: a.forger.seal(a.start, a.update(), schema_digest=digest_of(b"another")),
    ),
    "the manifest of an earlier round": (
        "no_round",
        Code.FAILED_PRECONDITION,
        # Sealed again: the one that was admitted would be given its receipt.
        lambda a: a.forger.seal(
            a.start,
            a.update(),
            round_id=a.earlier.manifest.round_id,
            nonce=a.earlier.manifest.nonce,
            base_model=a.earlier.manifest.base_model,
        ),
    ),
    "the nonce of an earlier round": (
        "replayed",
        Code.FAILED_PRECONDITION,
        lambda a: a.forger.seal(a.start, a.update(), nonce=a.earlier.manifest.nonce),
    ),
    "another base model": (
        "wrong_base_model",
        Code.FAILED_PRECONDITION,
        lambda a: a.forger.seal(a.start, a.update(), base_model=a.earlier.manifest.base_model),
    ),
    "another study": (
        "wrong_study",
        Code.FAILED_PRECONDITION,
        lambda a: a.forger.seal(a.start, a.update(), study_id="dr-2027"),
    ),
    "less noise than was promised, or more": (
        "wrong_privacy",
        Code.FAILED_PRECONDITION,
        lambda a: a.forger.seal(
            a.start, a.update(), privacy=replace(a.earlier.manifest.privacy, steps=7)
        ),
    ),
    "an expired manifest": (
        "expired",
        Code.FAILED_PRECONDITION,
        lambda a: a.forger.seal(
            a.start, a.update(), expires_at=datetime.now(UTC) - timedelta(hours=1)
        ),
    ),
    "chunk hashes that do not give the signed root": (
        "wrong_chunks",
        Code.INVALID_ARGUMENT,
        lambda a: replace(a.forger.seal(a.start, a.update()), chunks=(b"another chunk",)),
    ),
}


@pytest.mark.parametrize("case", DECLARATIONS)
def test_a_declaration_that_breaks_a_rule_is_refused_and_logged(arena: Arena, case: str) -> None:
    refused, code, make = DECLARATIONS[case]
    sealed = make(arena)
    expect_refusal(arena, refused, code, lambda: arena.forger.open(sealed.envelope, sealed.hashes))


def test_an_update_of_an_earlier_round_is_answered_as_it_was_and_counts_once(arena: Arena) -> None:
    with arena.federation.operator() as operator:
        before = operator.newest_log_entries()
    for _ in range(2):
        again = arena.forger.open(arena.earlier.envelope, arena.earlier.hashes)
        assert again.update_digest == arena.earlier.digest
        # Signed anew, and the same.
        assert again.receipt.payload == arena.receipt.payload
    with arena.federation.operator() as operator:
        assert operator.newest_log_entries() == before
    assert arena.phase() == "2 collecting"


@pytest.fixture(scope="module")
def declared(arena: Arena) -> Sealed:
    """Return the forger's sound update of round 2, declared and not sent yet."""
    sealed = arena.forger.seal(arena.start, direction_of(arena.federation))
    assert arena.forger.open(sealed.envelope, sealed.hashes).durable_chunks == 0
    return sealed


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


CHUNKS: dict[str, Callable[[bytes], list[tuple[int, bytes]]]] = {
    "a flipped bit": lambda data: [(0, flipped(data))],
    "a later chunk first": lambda data: [(1, data), (0, data)],
    "a chunk with bytes to spare": lambda data: [(0, data + b"\0")],
    "a chunk cut short": lambda data: [(0, data[:-1])],
    "an index beyond the end": lambda data: [(0xFFFFFFFF, data)],
}


@pytest.mark.parametrize("case", CHUNKS)
def test_a_chunk_that_is_not_the_one_declared_is_refused_and_logged(
    arena: Arena, declared: Sealed, case: str
) -> None:
    chunks = CHUNKS[case](declared.chunks[0])
    expect_refusal(
        arena, "wrong_chunks", Code.DATA_LOSS, lambda: arena.forger.push(declared.digest, chunks)
    )
    # Nothing of it was kept, and the sound update may still come.
    assert arena.forger.open(declared.envelope, declared.hashes).durable_chunks == 0


def test_a_second_update_of_one_hospital_is_equivocation(arena: Arena, declared: Sealed) -> None:
    second = arena.forger.seal(arena.start, arena.update())
    assert second.digest != declared.digest
    expect_refusal(
        arena,
        "equivocation",
        Code.ALREADY_EXISTS,
        lambda: arena.forger.open(second.envelope, second.hashes),
    )
    # The first one stands, and the second cannot be pushed in its place.
    assert arena.forger.open(declared.envelope, declared.hashes).update_digest == declared.digest
    expect_code(Code.NOT_FOUND, lambda: arena.forger.push(second.digest, enumerate(second.chunks)))


def test_a_chunk_sent_twice_does_no_harm(arena: Arena, declared: Sealed) -> None:
    data = declared.chunks[0]
    expect_refusal(
        arena,
        "wrong_chunks",
        Code.DATA_LOSS,
        lambda: arena.forger.push(declared.digest, [(0, data), (0, data)]),
    )
    # Nothing is left to send, and so asking again is enough to be judged.
    again = arena.forger.open(declared.envelope, declared.hashes)
    assert again.durable_chunks == 1
    assert again.HasField("receipt")


@pytest.mark.parametrize(
    ("code", "call"),
    [
        (Code.RESOURCE_EXHAUSTED, lambda v: v.say("OpenUpdate", [bytes(3 << 20)])),
        (Code.RESOURCE_EXHAUSTED, lambda v: v.say("PushChunks", [bytes(3 << 20)], streams=True)),
        (Code.INVALID_ARGUMENT, lambda v: v.say("OpenUpdate", [b"\xff\xff\xff"])),
        (Code.INVALID_ARGUMENT, lambda v: v.say("PushChunks", [b"\xff\xff\xff"], streams=True)),
        (Code.INVALID_ARGUMENT, lambda v: v.say("PushChunks", [b""], streams=True)),
        (Code.NOT_FOUND, lambda v: v.push(digest_of(b"nothing"), [])),
        (Code.INVALID_ARGUMENT, lambda v: v.push("../../etc/passwd", [])),
        (Code.UNIMPLEMENTED, lambda v: v.say("Secret", [b""])),
    ],
    ids=[
        "3 MiB declared",
        "3 MiB pushed",
        "garbage declared",
        "garbage pushed",
        "nothing named",
        "an unknown update",
        "a path",
        "no method",
    ],
)
def test_what_is_not_the_contract_ends_the_call_and_nothing_else(
    arena: Arena, code: grpc.StatusCode, call: Callable[[Voice], object]
) -> None:
    details = expect_code(code, lambda: call(arena.forger))
    # Nothing of the inside is told.
    assert "Error" not in details
    assert arena.phase() == "2 collecting"


def test_an_update_that_is_not_finite_costs_its_hospital_the_round(arena: Arena) -> None:
    update = arena.update()
    update[7] = np.nan
    sealed = arena.poisoner.seal(arena.start, update)
    expect_refusal(arena, "not_finite", Code.INVALID_ARGUMENT, lambda: arena.poisoner.send(sealed))
    # Asked again it is refused again, and sent again as well.
    expect_code(Code.INVALID_ARGUMENT, lambda: arena.poisoner.open(sealed.envelope, sealed.hashes))
    assert len(arena.logged("update_refused", code="not_finite")) == 1


def test_the_round_ends_with_those_whose_update_was_admitted(
    arena: Arena, declared: Sealed
) -> None:
    federation = arena.federation
    if not arena.logged("update_admitted", node=FORGER, round=2):
        assert arena.forger.send(declared).HasField("receipt")
    # Sent again, it costs nothing and gives the same receipt's entry.
    assert arena.forger.open(declared.envelope, declared.hashes).HasField("receipt")
    if not arena.logged("update_refused", node=POISONER):
        update = np.full_like(arena.update(), np.inf)
        expect_code(
            Code.INVALID_ARGUMENT,
            lambda: arena.poisoner.send(arena.poisoner.seal(arena.start, update)),
        )
    for node in HOSPITALS:
        federation.control(node).unlink()
    arena.coordinator.wait_for("model_released", round=2)
    (closed,) = arena.logged("collection_closed", round=2)
    assert isinstance(closed["admitted"], dict)
    assert set(closed["admitted"]) == {*HOSPITALS, FORGER}
    assert closed["admitted"][FORGER] == declared.digest
    assert isinstance(closed["excluded"], dict)
    assert set(closed["excluded"]) == {POISONER}
    (weighted,) = arena.logged("round_weighted", round=2)
    assert isinstance(weighted["weights"], dict)
    assert set(weighted["weights"]) == {*HOSPITALS, FORGER}
    assert arena.coordinator.drain() == 0
    assert len(of(logged_events(federation), "model_released")) == 2
