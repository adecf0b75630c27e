"""A daemon in surroundings of its own: another clock, other names, another network.

    python -m tests.faults.elsewhere <surroundings.json> coordinator <coordinator.toml>
    python -m tests.faults.elsewhere <surroundings.json> hospital <participant.toml> <control> <…>

Clock and names may be changed while it runs. Another network and other names need root.
"""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import ctypes
import json
import os
import sys
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import ModuleType

from tests.faults.packet_link import namespace_path
from tests.faults.supervised import PROGRAMS
from tests.system.federation import COORDINATOR, Federation
from matl_common.ids import NodeId
from tests.system.processes import Daemon

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET, CLONE_NEWNS = 0x40000000, 0x00020000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What differs from the machine's own; empty for what does not."""

    clock: str = ""
    """A file with the seconds by which the program's clock is ahead."""
    hosts: str = ""
    """A file to be /etc/hosts; names come from nowhere else."""
    namespace: str = ""
    """The name of a network namespace."""


class ShiftedType(type):
    """Says of every moment that it is one of the shifted clock's."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime)


def shift_clock(file: Path) -> None:
    """Let our own modules read a clock that is ahead by what ``file`` says."""

    class Shifted(datetime, metaclass=ShiftedType):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # no Self
            return datetime.now(tz) + timedelta(seconds=float(file.read_text()))

    for name, module in list(sys.modules.items()):
        is_ours = name.partition(".")[0] in ("matl", "matl_coordinator", "matl_participant")
        if is_ours and isinstance(module, ModuleType) and vars(module).get("datetime") is datetime:
            vars(module)["datetime"] = Shifted


def enter(surroundings: Surroundings) -> None:
    """Move this process there."""
    if surroundings.namespace:
        with namespace_path(surroundings.namespace).open("rb") as place:
            _require(LIBC.setns(place.fileno(), CLONE_NEWNET))
    if surroundings.hosts:
        # The resolver that asks the system's files, and asks them every time.
        os.environ["GRPC_DNS_RESOLVER"] = "native"
        _require(LIBC.unshare(CLONE_NEWNS))
        _require(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
        hosts = os.fsencode(surroundings.hosts)
        _require(LIBC.mount(hosts, b"/etc/hosts", None, MS_BIND, None))
    if surroundings.clock:
        shift_clock(Path(surroundings.clock))


def start_elsewhere(
    federation: Federation, node: NodeId, surroundings: Surroundings, *, address: str = ""
) -> Daemon:
    """Start a daemon there; a hospital looks for the coordinator at ``address`` if not empty."""
    file = federation.folder / f"{node}.surroundings.json"
    file.write_text(json.dumps(asdict(surroundings)))
    program = ("-m", "tests.faults.elsewhere", str(file))
    if node == COORDINATOR:
        return Daemon(*program, "coordinator", str(federation.write_coordinator_config()))
    config = federation.participant_config(
        node, address=address, changes={"attempts_per_round": 10}
    )
    scripted = (str(federation.control(node)), str(federation.direction))
    return Daemon(*program, "hospital", str(config), *scripted)


def _require(status: int) -> None:
    if status:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def main() -> None:
    """Run the program there."""
    surroundings = Surroundings(**json.loads(Path(sys.argv[1]).read_text()))
    program, arguments = sys.argv[2], sys.argv[3:]
    enter(surroundings)
    sys.argv = [program, *(("-c",) if program == "coordinator" else ()), *arguments]
    PROGRAMS[program]()


if __name__ == "__main__":
    main()
