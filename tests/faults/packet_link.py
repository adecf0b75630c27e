"""A link between this machine and a network namespace, with the faults of a bad line.

Both ends are real: the kernel's TCP on either side of two TUN interfaces. Between them packets
pass through this process, which delays, drops and paces them as ``Conditions`` say; they may be
changed at any time. What ``tc netem`` does, where the kernel has it; needs root.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
LONGEST_QUEUE_SECONDS = 1.0
"""What does not leave within this time is dropped, as a router's queue does."""


class NoPacketLinkError(Exception):
    """This machine does not permit it; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """How a link is, in either direction."""

    delay_seconds: float = 0.0
    loss: float = 0.0
    bits_per_second: float = 0.0
    """0 for no limit."""
    upstream: bool = True
    """Whether anything gets through to the coordinator."""
    downstream: bool = True


GOOD = Conditions()
DOWN = Conditions(upstream=False, downstream=False)


class PacketLink:
    """Both interfaces, and what passes between them."""

    def __init__(self, namespace: str, number: int) -> None:
        """Make interfaces and namespace.

        Raises:
            NoPacketLinkError: this machine does not permit it.
        """
        self.namespace = namespace
        self.conditions = GOOD
        self.coordinator_address = f"10.213.{number}.1"
        self.hospital_address = f"10.213.{number}.2"
        # Payload that was let through to the coordinator; written by one thread.
        self.sent_bytes = 0
        self._closing = threading.Event()
        try:
            _ip("netns", "add", namespace)
            self._ours = _tun(f"{namespace}-c")
            self._theirs = _tun(f"{namespace}-h")
            _ip("link", "set", f"{namespace}-h", "netns", namespace)
            _ip("addr", "add", f"{self.coordinator_address}/30", "dev", f"{namespace}-c")
            _ip("link", "set", f"{namespace}-c", "up")
            inside = ("-n", namespace)
            _ip(*inside, "addr", "add", f"{self.hospital_address}/30", "dev", f"{namespace}-h")
            _ip(*inside, "link", "set", f"{namespace}-h", "up")
            _ip(*inside, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            self.close()
            raise NoPacketLinkError(f"no network namespace with TUN interfaces: {error}") from error
        for source, target, is_upstream in (
            (self._theirs, self._ours, True),
            (self._ours, self._theirs, False),
        ):
            threading.Thread(
                target=self._until_closed, args=(source, target, is_upstream), daemon=True
            ).start()

    def close(self) -> None:
        self._closing.set()
        subprocess.run(["ip", "netns", "del", self.namespace], check=False, capture_output=True)
        subprocess.run(
            ["ip", "link", "del", f"{self.namespace}-c"], check=False, capture_output=True
        )

    def _until_closed(self, source: int, target: int, is_upstream: bool) -> None:  # noqa: FBT001
        # An interface that is gone fails reads and writes.
        with suppress(OSError):
            self._carry(source, target, is_upstream)

    def _carry(self, source: int, target: int, is_upstream: bool) -> None:  # noqa: FBT001
        chance = random.Random(int(is_upstream))
        queue: list[tuple[float, int, bytes]] = []
        free_at, number = 0.0, 0
        while not self._closing.is_set():
            now = time.monotonic()
            while queue and queue[0][0] <= now:
                packet = heapq.heappop(queue)[2]
                os.write(target, packet)
            pause = min(0.2, queue[0][0] - now) if queue else 0.2
            if not select.select([source], [], [], max(0.0, pause))[0]:
                continue
            packet = os.read(source, 1 << 16)
            found = self.conditions
            is_open = found.upstream if is_upstream else found.downstream
            now = time.monotonic()
            if not is_open or chance.random() < found.loss:
                continue
            if found.bits_per_second:
                if free_at - now > LONGEST_QUEUE_SECONDS:
                    continue
                free_at = max(free_at, now) + len(packet) * 8 / found.bits_per_second
            else:
                free_at = now
            if is_upstream:
                self.sent_bytes += _payload_bytes(packet)
            due = max(free_at, now) + found.delay_seconds
            if due <= now:
                os.write(target, packet)
            else:
                number += 1
                heapq.heappush(queue, (due, number, packet))


def _payload_bytes(packet: bytes) -> int:
    """Of a TCP segment in IPv4."""
    if packet[0] >> 4 != 4 or packet[9] != 6:
        return 0
    header = (packet[0] & 15) * 4
    return int(len(packet) - header - (packet[header + 12] >> 4) * 4)


def _tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def packet_link(number: int = 0) -> Iterator[PacketLink]:
    """Yield a link of its own number, from 0 to 255, to a new namespace."""
    link = PacketLink(f"matl{os.getpid() % 10000}x{number}", number)
    try:
        yield link
    finally:
        link.close()


def namespace_path(name: str) -> Path:
    """What a process joins to be inside."""
    return Path("/run/netns") / name
