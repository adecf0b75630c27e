"""Attacks on what a coordinator holds and does, while honest hospitals finish their round."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from matl_common.identity.tls import MAX_CONNECTIONS
from matl_common.ids import NodeId
from matl_common.protocol import PayloadType
from matl_common.signing import MAX_PAYLOAD_BYTES, sign
from tests.system.federation import (
    EXTRA_HOSPITALS,
    HOSPITALS,
    Federation,
    Material,
    found_federation,
    logged_events,
)
from tests.system.floods import (
    AT_ONCE,
    ATTACKS,
    HEADER_BYTES,
    endless_headers,
    half_open_handshakes,
    idle_streams,
)
from tests.system.processes import Daemon
from tests.system.story import of, start_hospitals
from tests.system.test_hostile import expect_code
from tests.system.voice import voice_of

pytestmark = [pytest.mark.system, pytest.mark.hostile]
ATTACKER, _ = EXTRA_HOSPITALS
Code = grpc.StatusCode
MEBIBYTE = 1 << 20
# A bomb that went off would take 900 MiB and more.
MAX_GROWTH_BYTES = 96 * MEBIBYTE
# What gRPC may keep for a byte of headers that do not end, of which no option bounds how many.
MAX_GROWTH_PER_HEADER_BYTE = 10
HEADER_FLOODS = 5


@dataclass(frozen=True)
class Siege:
    """A coordinator whose honest hospitals are in the middle of round 1."""

    federation: Federation
    coordinator: Daemon
    hospitals: Mapping[NodeId, Daemon]
    peak_before: int

    @property
    def growth(self) -> int:
        """How far the coordinator's peak memory has risen since it was ready."""
        return peak_bytes(self.coordinator) - self.peak_before


def peak_bytes(daemon: Daemon) -> int:
    """The most that a process ever had resident (VmHWM of proc(5))."""
    for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not tell a process's peak")


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[Siege]:
    federation = found_federation(
        tmp_path_factory.mktemp("siege"),
        material,
        hospitals=(*HOSPITALS, ATTACKER),
        study={"rounds": 1},
        rounds={
            "quorum": 3,
            "minimum_participants": 3,
        },
    )
    with ExitStack() as running:
        for node in HOSPITALS:
            federation.control(node).write_text("wait")
        coordinator = running.enter_context(federation.start_coordinator())
        coordinator.wait_for("coordinator_ready")
        peak = peak_bytes(coordinator)
        hospitals = start_hospitals(replace(federation, hospitals=HOSPITALS), running)
        coordinator.wait_for("round_phase", round=1, phase="collecting")
        yield Siege(federation, coordinator, hospitals, peak)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_costs_little_memory_and_nobody_else_anything(siege: Siege, attack: str) -> None:
    federation = siege.federation
    ATTACKS[attack](federation.port, federation.keys[ATTACKER].tls)
    assert siege.growth < MAX_GROWTH_BYTES
    with voice_of(federation, HOSPITALS[0]) as honest:
        honest.plan()


def test_what_is_declared_costs_nothing_before_it_is_believed(siege: Siege) -> None:
    federation = siege.federation
    with voice_of(federation, ATTACKER) as attacker:
        start = attacker.next_round()
        update = np.fromfile(federation.direction, dtype=np.float32)
        # A tebibyte is refused by the plan's size; nothing is made room for.
        huge = attacker.seal(start, update, byte_count=1 << 40)
        assert "wrong_size" in expect_code(
            Code.INVALID_ARGUMENT, lambda: attacker.open(huge.envelope, huge.hashes)
        )
        # As many fields as a manifest's bytes have room for.
        crowd = sign(
            PayloadType.UPDATE, b"\xa2\x06\x00" * (MAX_PAYLOAD_BYTES // 3), attacker.signer
        )
        assert "malformed" in expect_code(
            Code.INVALID_ARGUMENT, lambda: attacker.open(crowd, huge.hashes)
        )
    assert siege.growth < MAX_GROWTH_BYTES


def test_connections_leave_descriptors_for_the_database(siege: Siege) -> None:
    soft, hard = psutil.Process(siege.coordinator.pid).rlimit(psutil.RLIMIT_NOFILE)
    assert soft > MAX_CONNECTIONS or soft == hard


def test_honest_hospitals_finish_their_round_under_all_attacks_at_once(siege: Siege) -> None:
    federation, coordinator = siege.federation, siege.coordinator
    files = federation.keys[ATTACKER].tls
    # Or the round would wait for the attacker, who was invited, until its deadline.
    with voice_of(federation, ATTACKER) as attacker:
        update = np.fromfile(federation.direction, dtype=np.float32) * np.float32(0.05)
        sealed = attacker.seal(attacker.next_round(), update)
        assert attacker.send(sealed).HasField("receipt")
    over = threading.Event()
    broken: list[AssertionError] = []

    def go_on(name: str) -> None:
        try:
            while not over.wait(0.1):
                # Whoever comes on top of too many others may find the door shut, or nobody in time.
                with suppress(OSError):
                    AT_ONCE[name](federation.port, files)
        except AssertionError as error:
            broken.append(error)

    attackers = [threading.Thread(target=go_on, args=(name,)) for name in AT_ONCE]
    with idle_streams(federation.port, files), half_open_handshakes(federation.port):
        for each in attackers:
            each.start()
        try:
            for node in HOSPITALS:
                federation.control(node).unlink()
            coordinator.wait_for("model_released", round=1)
        finally:
            over.set()
            for each in attackers:
                each.join()
    assert not broken, broken
    assert siege.growth < MAX_GROWTH_BYTES
    ended = {node: each.wait() for node, each in siege.hospitals.items()}
    assert ended == dict.fromkeys(HOSPITALS, 0)
    assert coordinator.drain() == 0
    (closed,) = of(logged_events(federation), "collection_closed", round=1)
    assert isinstance(closed["admitted"], dict)
    assert set(closed["admitted"]) == {*HOSPITALS, ATTACKER}


def test_headers_without_end_cost_so_much_a_byte_one_after_the_other_and_nobody_else_anything(
    tmp_path: Path, material: Material
) -> None:
    federation = found_federation(tmp_path, material, study={"rounds": 1})
    attacker, honest, *_ = HOSPITALS
    files = federation.keys[attacker].tls
    with federation.start_coordinator() as coordinator:
        coordinator.wait_for("coordinator_ready")
        with voice_of(federation, honest) as voice:
            voice.plan()
        peak = peak_bytes(coordinator)
        for _ in range(HEADER_FLOODS):
            # What the first one took is room for the next.
            with endless_headers(federation.port, files), voice_of(federation, honest) as voice:
                voice.plan()
        growth = peak_bytes(coordinator) - peak
        assert growth < MAX_GROWTH_PER_HEADER_BYTE * HEADER_BYTES
        assert coordinator.drain() == 0
