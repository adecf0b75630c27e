"""A hospital that attacks: for the demonstration, and nowhere near the product.

It is enrolled, has valid keys and speaks the protocol correctly, as a compromised hospital
would; what it sends is not what it should. It trains without noise, since it has nobody's
privacy to protect, keeps no ledger, and signs a manifest that says otherwise.
"""

import asyncio
import math
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Final, TypeVar

import numpy as np
import structlog
import typer
from numpy.typing import NDArray

from matl.attacks import ATTACKS, Honest, published
from matl.attacks import Attack as Craft
from matl.demo.study import Attack
from matl_common.durable import write_atomically
from matl_common.errors import MatlError
from matl_common.identity.held_keys import load_p256_key
from matl_common.identity.keys import parse_public_key
from matl_common.ids import Digest, RoundId, digest_of_file, parse_digest
from matl_common.logs import configure_logs
from matl_common.protocol import RoundStart
from matl_common.tensors import read_update
from matl_common.worker import WorkerLimits, WorkerProcess
from matl_coordinator.core.admission import norm_limit
from matl_participant.client import (
    CallError,
    FederationClient,
    RefusedError,
    RoundOffer,
    SealedUpdate,
    SignedPlan,
    UnavailableError,
    seal_manifest,
)
from matl_participant.config import Config, load_config
from matl_participant.connection import RenewingChannel
from matl_participant.files import StateFolder
from matl_participant.metrics import Metrics
from matl_participant.reports import Reports
from matl_participant.requests import prepare_request, train_request
from matl_participant.sealing import manifest_of

_CRAFTS: Final[Mapping[Attack, Craft]] = {
    Attack.SIGN_FLIP: ATTACKS["sign_flip_5"].craft,
    Attack.NOISE: partial(published.gaussian, factor=100.0),
    Attack.SCALING: partial(published.scaled, factor=100.0),
    Attack.NAN: ATTACKS["nan"].craft,
}
_QUIET: Final = frozenset({Attack.SIGN_FLIP, Attack.NOISE})
"""Would rather be admitted than loud."""
_WITHIN_LIMIT: Final = 0.9
_RETRY_SECONDS: Final = 2.0
_ADMISSION_POLL_SECONDS: Final = 1.0

_Answer = TypeVar("_Answer")

log = structlog.get_logger(__name__)


def forge(
    honest: NDArray[np.float32], attack: Attack, *, largest_norm: float = math.inf
) -> NDArray[np.float32]:
    """What an attacker sends instead of an honest update, both of shape (d,).

    Args:
        honest: trained without noise; for ``SCALING`` on wrong labels.
        attack: which one.
        largest_norm: what the coordinator admits. The attacks that would rather be admitted
            than loud stay below it; the formula is public.
    """
    if attack is Attack.NONE:
        return honest
    known = Honest.without_data(honest[None], f=1)
    # A new direction every round; an attack needs no seed.
    row = _CRAFTS[attack](known, np.random.default_rng())[0].astype(np.float32)
    return _shortened(row, largest_norm) if attack in _QUIET else row


def _shortened(update: NDArray[np.float32], largest_norm: float) -> NDArray[np.float32]:
    norm = float(np.linalg.norm(update))
    allowed = _WITHIN_LIMIT * largest_norm
    return update if norm <= allowed else update * np.float32(allowed / norm)


@dataclass(frozen=True, slots=True)
class Attacker:
    """One hostile hospital, connected. It keeps nothing: a restart begins the round anew."""

    config: Config
    attack: Attack
    client: FederationClient
    worker: WorkerProcess

    async def run(self) -> None:
        """Attack every round until the study is complete.

        Raises:
            MatlError: training failed for good.
        """
        folder = StateFolder(self.config.state_dir)
        folder.prepare()
        signed = await self._persistently(self._greet)
        dataset = await self._prepare(signed, folder)
        have_round = 0
        while True:
            offer = await self._persistently(partial(self._await_round, signed, have_round))
            if offer.study_complete:
                return
            if offer.round_start is not None:
                with suppress(CallError):
                    await self._attack_round(signed, offer.round_start, folder, dataset)
                have_round = offer.round_start.round_id

    async def _await_round(self, signed: SignedPlan, have_round: int) -> RoundOffer:
        wait_seconds = self.config.daemon.poll_seconds
        return await self.client.await_round(
            signed, have_round=have_round, wait_seconds=wait_seconds
        )

    async def _greet(self) -> SignedPlan:
        return (await self.client.hello(version="hostile", device="cpu")).signed_plan

    async def _prepare(self, signed: SignedPlan, folder: StateFolder) -> Digest:
        answer = await self.worker.run(
            prepare_request(self.config, signed.plan, cache=folder.cache, phi=folder.phi),
            timeout_seconds=self.config.training.timeout_seconds,
        )
        return parse_digest(str(answer["dataset_digest"]))

    async def _attack_round(
        self, signed: SignedPlan, start: RoundStart, folder: StateFolder, dataset: Digest
    ) -> None:
        plan = signed.plan
        if not folder.has_model(start.base_model):
            folder.keep_only_model(start.base_model)
            await self.client.pull_model(
                start.base_model, total_bytes=start.base_model_bytes, folder=folder.models
            )
        file = folder.result(start.round_id)
        request = train_request(
            self.config,
            plan,
            cache=folder.cache,
            model=folder.model(start.base_model),
            model_digest=start.base_model,
            out=file,
            steps=plan.training.steps_per_round,
            dataset_digest=dataset,
        )
        await self.worker.run(
            request | {"noise_multiplier": 0.0},
            timeout_seconds=self.config.training.timeout_seconds,
        )
        limit = norm_limit(plan, enrolled_patients=self.config.data.declared_patients)
        forged = forge(np.array(read_update(file, plan.schema)), self.attack, largest_norm=limit)
        write_atomically(file, [forged.astype("<f4").tobytes()])
        log.info("update_forged", round=start.round_id, attack=self.attack.value)
        await self._send(self._sealed(signed, start, file), start.round_id)

    def _sealed(self, signed: SignedPlan, start: RoundStart, file: Path) -> SealedUpdate:
        """A manifest that promises what the plan asks for."""
        manifest = manifest_of(
            file,
            start=start,
            signed_plan=signed,
            base_model=start.base_model,
            steps=signed.plan.training.steps_per_round,
        )
        signer = load_p256_key(self.config.identity.signing_key)
        return seal_manifest(manifest, file, signer)

    async def _send(self, sealed: SealedUpdate, round_id: RoundId) -> None:
        """Send until the coordinator has taken or refused it.

        Raises:
            CallError: it cannot be reached.
        """
        try:
            result = await self.client.upload(sealed)
            while result.receipt is None:
                await asyncio.sleep(_ADMISSION_POLL_SECONDS)
                _, result = await self.client.open_update(sealed)
        except RefusedError as error:
            log.info("update_refused", round=round_id, reason=str(error))
            return
        log.info("update_admitted", round=round_id, update=digest_of_file(sealed.file))

    async def _persistently(self, call: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Repeat a call until the coordinator answers; it may be restarting."""
        while True:
            try:
                return await call()
            except UnavailableError:
                await asyncio.sleep(_RETRY_SECONDS)


async def attack_federation(config: Config, attack: Attack) -> None:
    """Take a hospital's place and attack until the study is complete or a signal comes."""
    worker_argv = (sys.executable, "-m", "matl_participant.training.worker")
    limits = WorkerLimits(config.training.keep_warm_seconds, config.training.memory_bytes)
    coordinator = config.coordinator
    async with (
        WorkerProcess(worker_argv, limits=limits) as worker,
        RenewingChannel(
            coordinator.address, config.tls, coordinator.name, reports=Reports(Metrics())
        ) as channel,
    ):
        client = FederationClient(
            channel,
            node_id=config.node_id,
            federation_id=coordinator.name.federation,
            coordinator_key=parse_public_key(coordinator.signing_key.read_bytes()),
        )
        running = asyncio.ensure_future(Attacker(config, attack, client, worker).run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        with suppress(asyncio.CancelledError):
            await running


def _main(
    *,
    config: Annotated[Path, typer.Option(help="The configuration of the hospital it replaces.")],
    attack: Annotated[Attack, typer.Option(help="What to send instead of honest updates.")],
) -> None:
    """Run the demonstration's hostile hospital."""
    configure_logs("json")
    try:
        asyncio.run(attack_federation(load_config(config), attack))
    except MatlError as error:
        log.error("attacker_failed", reason=str(error))
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(_main)
