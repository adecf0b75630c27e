"""Simulations on Ray: many studies a task each, or one study's hospitals over all workers.

Data sets, learners and a round's base model lie in Ray's object store, once on each machine. A
task whose worker is lost is run again by Ray, and gives the same. Importing this needs Ray, and
changes no result.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any, Final

from matl.simulation.campaign import Done, Ended, Job, Told, attempt, fingerprint, images_of
from matl.simulation.datasets import Float32Array
from matl.simulation.learners import Drawn, Learner, LocalUpdates
from matl.simulation.parts import divided, joined, train_part
from matl_common.errors import ConfigurationError, MatlError
from matl_common.host_port import split_address

# Both are read when Ray is imported, or starts: nobody is told who uses it, and what it will do
# about accelerators one day is no news here.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayError, RayTaskError

PARTS_A_WORKER: Final = 4
"""Of a round's hospitals: fewer leave a worker idle at its end, more are handed out longer."""
_JOBS_A_WORKER: Final = 4
_RETRIES: Final = 3
_SECONDS_TO_REACH: Final = 10.0
# Handed to a task inside a list, for Ray would fetch a bare one anew for every task.
_Held = list[Any]


class EngineError(MatlError):
    """Ray could not do its work."""


class RayEngine:
    """Runs jobs on Ray; owns the cluster that it started, if it started one."""

    def __init__(self, *, processes: int, address: str = "") -> None:
        """``address`` of a cluster that runs, whose every CPU is used; else one starts here."""
        self._processes = processes
        self._address = address

    def run(self, jobs: Sequence[Job], *, done: Done, told: Told) -> None:
        """As ``Engine.run``.

        Raises:
            ConfigurationError: there is no cluster at the address.
            EngineError: a worker has other code, or a task was lost again and again.
        """
        with _cluster(self._processes, self._address) as workers, _errors_of_ours():
            if len(jobs) >= workers:
                for job, outcomes in _job_by_job(jobs, in_flight=_JOBS_A_WORKER * workers):
                    done(job, outcomes)
                return
            trainer = _OnWorkers(workers, told)
            for job in jobs:
                trainer.job = job
                for arm in job.arms:
                    # Kept one by one: each may take hours.
                    one = replace(job, arms=(arm,))
                    done(one, attempt(one, trainer=trainer))


@contextmanager
def _cluster(processes: int, address: str) -> Iterator[int]:
    """A cluster, and how many tasks it runs at once; whoever is connected already stays so."""
    if address not in {"", "auto"}:
        _reach(address)
    if ray.is_initialized():
        yield _workers()
        return
    where: dict[str, Any] = {"address": address} if address else {"num_cpus": processes}
    try:
        ray.init(
            **where,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigurationError(f"no Ray cluster at {address or 'this machine'}: {said}") from None
    try:
        yield _workers()
    finally:
        # Ends what still runs, which is how a program that is interrupted leaves nothing behind.
        ray.shutdown()


def _reach(address: str) -> None:
    """Somebody listens there; Ray itself would wait for minutes, and say nothing."""
    try:
        host, port = split_address(address)
    except ValueError:
        host, port = "", 0
    if not host:
        raise ConfigurationError(f"--ray-address {address!r}: give HOST:PORT, or auto")
    try:
        socket.create_connection((host, port), _SECONDS_TO_REACH).close()
    except (OSError, OverflowError) as error:
        raise ConfigurationError(f"no Ray cluster at {address}: {error}") from None


def _workers() -> int:
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's gap
    return max(1, int(resources.get("CPU", 1)))


@contextmanager
def _errors_of_ours() -> Iterator[None]:
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, MatlError):
            raise error.cause from None
        raise
    except RayError as error:
        said = str(error).strip().splitlines()[0]
        raise EngineError(f"Ray gave up after {_RETRIES} retries: {said}") from None


def _job_by_job(jobs: Sequence[Job], *, in_flight: int) -> Iterator[tuple[Job, Ended]]:
    """A task a job, as they end."""
    images: dict[tuple[object, ...], Any] = {}
    left = iter(jobs)
    waiting: dict[Any, Job] = {}
    while True:
        for job in islice(left, in_flight - len(waiting)):
            key = job.study.data.set, job.places
            if key not in images:
                images[key] = ray.put(images_of(job))
            waiting[_carried_out.remote(job, [images[key]], fingerprint())] = job
        if not waiting:
            return
        (ended, *_), _rest = ray.wait(list(waiting))
        yield waiting.pop(ended), ray.get(ended)


class _OnWorkers:
    """Trains hospitals on Ray's workers, with the learner in the object store.

    One for all jobs, so that what is known of one, such as its oracle, is known to the next.
    """

    def __init__(self, workers: int, told: Told) -> None:
        self.job: Job | None = None
        """Whose rounds are told of."""
        self._workers = workers
        self._told = told
        # The last one; most arms, and studies that differ in the attack, have the same.
        self._held: tuple[Learner, _Held] | None = None

    def __call__(
        self, learner: Learner, base: Float32Array, round_number: int, hospitals: Sequence[int]
    ) -> LocalUpdates:
        """As ``parts.Trainer``."""
        if self.job is not None:
            self._told(self.job, round_number)
        if self._held is None or self._held[0] is not learner:
            self._held = learner, [ray.put(learner)]
        held = self._held[1]
        drawn, start = ray.put(learner.draw(round_number=round_number)), ray.put(base)
        parts = divided(hospitals, parts=PARTS_A_WORKER * self._workers)
        return joined(
            ray.get([_trained.remote(held, start, drawn, part, fingerprint()) for part in parts])
        )


@ray.remote(num_cpus=1, max_retries=_RETRIES)
def _carried_out(job: Job, images: _Held, code: str) -> Ended:
    _check(code)
    return attempt(job, _fetched(images[0]))


@ray.remote(num_cpus=1, max_retries=_RETRIES)
def _trained(
    learner: _Held, base: Float32Array, drawn: Drawn, part: Sequence[int], code: str
) -> LocalUpdates:
    _check(code)
    return train_part(_fetched(learner[0]), base, drawn, part)


@lru_cache(maxsize=2)
def _fetched(reference: Any) -> Any:
    """From the object store, once for all tasks of a worker."""
    return ray.get(reference)


def _check(code: str) -> None:
    if fingerprint() != code:
        raise EngineError("a Ray worker has another version of MATL; install this one there")
