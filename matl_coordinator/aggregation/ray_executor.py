"""Workers of a Ray cluster, and this process's threads where the cluster is lost.

Ray ends a process whose cluster goes away, so it is spoken to by a process of its own
(``ray_driver``), as torch is, and this one never imports it. Updates do not pass through
either: workers read them where the rows say they lie.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from secrets import token_hex
from threading import Lock
from typing import Any, Final, TypeVar

import structlog

from matl_common.errors import MatlError
from matl_common.identity.pkcs11.uri import PIN_VARIABLE
from matl_coordinator.aggregation.executor import LocalExecutor
from matl_coordinator.aggregation.remote import UnfitWorkerError, machine_kind
from matl_coordinator.aggregation.rows import Work
from matl_coordinator.core.robust.ranges import Stretch, cut, task_elements

T = TypeVar("T")

LOCAL_CLUSTER: Final = "local"
"""Instead of an address: a cluster of this machine, which ends with the executor."""
_END_SECONDS: Final = 10.0

log = structlog.get_logger(__name__)


class ClusterLostError(MatlError):
    """The cluster did not do a pass to its end, for a reason that is not the pass's own."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the driver is told first."""

    address: str
    workers: int


@dataclass(frozen=True, slots=True)
class PassRequest:
    """One pass; answered by a ``list`` a task, in order, or an exception in place of one."""

    work: Any
    """A ``Work``; what it comes to is for ``run`` to say."""
    tasks: tuple[Stretch, ...]
    kind: str


class RayExecutor:
    """An ``Executor`` on a Ray cluster. Owns its driver process; ``close`` ends it."""

    def __init__(
        self, *, address: str, workers: int, local: LocalExecutor, stall_seconds: float
    ) -> None:
        """Remember what to do; nothing is started before the first pass.

        Args:
            address: of the cluster, ``host:port``; or ``LOCAL_CLUSTER``.
            workers: tasks that are worked on at once; as many wait beside them.
            local: does what the cluster does not.
            stall_seconds: the cluster counts as lost once no task came back for so long.
        """
        self._cluster = Cluster(address, workers)
        self._local = local
        self._stall_seconds = stall_seconds
        # One pass at a time. Guards the driver, too.
        self._lock = Lock()
        self._driver: tuple[subprocess.Popen[bytes], Connection] | None = None

    @property
    def driver_pid(self) -> int | None:
        """The process that speaks with the cluster, while there is one."""
        return None if self._driver is None else self._driver[0].pid

    def run(self, work: Work[T]) -> Iterator[T]:
        """As ``Executor.run``; what is left of a pass when the cluster is lost is done here."""
        whole = Stretch(0, work.elements)
        tasks = tuple(cut(whole, longest=task_elements(max(1, len(work.rows)))))
        if len(tasks) < 2:
            yield from self._local.run(work)
            return
        done = 0
        try:
            with self._lock, closing(self._results(work, tasks)) as results:
                for task in tasks:
                    found = next(results)
                    done = task.stop
                    yield from found
            return
        except ClusterLostError as error:
            log.warning("pass_goes_on_locally", after=done / work.elements, reason=str(error))
        yield from self._local.run_part(work, Stretch(done, work.elements))

    def close(self) -> None:
        """End the driver, and with it a cluster of this machine."""
        with self._lock:
            self._end()

    def _results(self, work: Work[T], tasks: tuple[Stretch, ...]) -> Generator[list[T], None, None]:
        is_over = False
        try:
            connection = self._connected()
            connection.send(PassRequest(work, tasks, machine_kind()))
            for task in tasks:
                if not connection.poll(self._stall_seconds):
                    raise ClusterLostError(
                        f"no task came back from the Ray cluster for {self._stall_seconds:g} s"
                    )
                found = connection.recv()
                # The driver stops at a pass's own error, too, and waits for the next pass.
                is_error = isinstance(found, Exception)
                is_over = task is tasks[-1] or (is_error and type(found) is not ClusterLostError)
                if isinstance(found, UnfitWorkerError):
                    raise ClusterLostError(str(found))
                if is_error:
                    raise found
                yield found
        except (EOFError, OSError) as error:
            raise ClusterLostError(
                "the process that speaks with the Ray cluster ended; its cluster may be gone"
            ) from error
        finally:
            # Answers to a pass that is given up must not meet the next one.
            if not is_over:
                self._kill()

    def _connected(self) -> Connection:
        if self._driver is not None and self._driver[0].poll() is None:
            return self._driver[1]
        self._kill()
        ours, theirs = Pipe()
        with theirs:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "matl_coordinator.aggregation.ray_driver",
                    f"{theirs.fileno()}",
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Ctrl-C is for the coordinator, which ends this one when it has ended itself.
                start_new_session=True,
                env=self._environment(),
            )
        self._driver = process, ours
        ours.send(self._cluster)
        return ours

    def _environment(self) -> dict[str, str]:
        own = {key: value for key, value in os.environ.items() if key != PIN_VARIABLE}
        own["RAY_USAGE_STATS_ENABLED"] = "0"
        if self._cluster.address == LOCAL_CLUSTER:
            # Its ports are open on every interface. Ray would keep a token in the home folder,
            # which a daemon may not have.
            own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token_hex(32)}
        return own

    def _end(self) -> None:
        if self._driver is None:
            return
        process, connection = self._driver
        # The driver ends with its pipe, and shuts down a cluster of its own before.
        connection.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        self._kill()

    def _kill(self) -> None:
        if self._driver is None:
            return
        process, connection = self._driver
        self._driver = None
        connection.close()
        process.kill()
        process.wait()
