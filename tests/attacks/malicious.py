"""A hostile hospital: the real participant, whose updates are exchanged as they are sent.

    python -m tests.attacks.malicious <participant.toml> <conduct> <worker argument>...

Identity, TLS, ledger, sealing and client are the product's, and the ledger believes that
what was sealed was sent. The conduct says what is sent instead: one word for each round,
the last one for all that follow, and within a round attempts joined by ``+``, made one after
another until one is admitted: ``honest,honest,nan``, ``honest,old_round+too_long``.
"""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import asyncio
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import structlog

from matl.attacks import ATTACKS, Attack, Honest
from matl.attacks.temporal import sleeper
from matl_common.identity.held_keys import load_p256_key
from matl_common.identity.keys import parse_public_key
from matl_common.ids import NodeId, digest_of
from matl_common.logs import configure_logs
from matl_common.protocol import PayloadType, UpdateManifest
from matl_common.signing import Signer, encode_envelope, parse_envelope, sign
from matl_common.tensors import hash_chunks
from matl_common.tlog.merkle import merkle_root
from matl_common.worker import WorkerLimits, WorkerProcess
from matl_participant.client import (
    CallError,
    FederationClient,
    RefusedError,
    SealedUpdate,
    UploadResult,
    read_sealed,
    seal_manifest,
)
from matl_participant.connection import RenewingChannel
from matl_participant.config import Config, load_config
from matl_participant.engine import Outcome, Participant
from matl_participant.metrics import Metrics
from matl_participant.reports import Reports

log = structlog.get_logger(__name__)


SLEEPS_UNTIL = 6
# A field that no manifest has, a varint: so many patients were used.
CLAIMED_PATIENTS = b"\xa0\x06" + b"\xc0\x0c"


@dataclass(frozen=True)
class Workshop:
    """Where updates are forged: a folder, the hospital's own key, what was sent first."""

    node: NodeId
    folder: Path
    signer: Signer

    def earlier(self) -> SealedUpdate:
        """The first update, as it was sealed."""
        (file,) = self.folder.glob("first-*.f32")
        envelope = parse_envelope((self.folder / "first.json").read_bytes())
        return read_sealed(envelope, file, self.signer.public_key)

    def keep_first(self, sealed: SealedUpdate) -> None:
        """Keep the first update for later."""
        if not (self.folder / "first.json").exists():
            shutil.copy(sealed.file, self.folder / f"first-{sealed.manifest.round_id}.f32")
            (self.folder / "first.json").write_bytes(encode_envelope(sealed.envelope))

    def with_vector(self, sealed: SealedUpdate, craft: Attack) -> SealedUpdate:
        """The update with another vector, signed as ours."""
        own = np.fromfile(sealed.file, dtype="<f4").astype(np.float64)
        number = sealed.manifest.round_id
        # Sent again, it must be the same.
        seed = digest_of(f"{self.node} {number}".encode())
        known = Honest.without_data(own[None], f=1, round=number)
        row = craft(known, np.random.default_rng(int(seed, 16)))[0]
        file = self.folder / f"round-{number:06d}.f32"
        file.write_bytes(row.astype("<f4").tobytes())
        return self.with_manifest(
            replace(sealed, file=file),
            byte_count=file.stat().st_size,
            chunk_root=merkle_root(hash_chunks(file)),
        )

    def with_manifest(self, sealed: SealedUpdate, **changes: object) -> SealedUpdate:
        """The update with other promises, signed as ours."""
        manifest: UpdateManifest = replace(sealed.manifest, **changes)  # type: ignore[arg-type]  # any field
        return seal_manifest(manifest, sealed.file, self.signer)


Forge = Callable[[Workshop, SealedUpdate], SealedUpdate]


def honest(shop: Workshop, sealed: SealedUpdate) -> SealedUpdate:
    """What was trained."""
    return sealed


def exchanged(shop: Workshop, sealed: SealedUpdate, *, craft: Attack) -> SealedUpdate:
    """Another vector under a manifest that fits it."""
    return shop.with_vector(sealed, craft)


def old_round(shop: Workshop, sealed: SealedUpdate) -> SealedUpdate:
    """Today's update as if it were the first round's."""
    first = shop.earlier().manifest
    return shop.with_manifest(
        sealed, round_id=first.round_id, nonce=first.nonce, base_model=first.base_model
    )


def old_nonce(shop: Workshop, sealed: SealedUpdate) -> SealedUpdate:
    """Today's update under the first round's nonce."""
    return shop.with_manifest(sealed, nonce=shop.earlier().manifest.nonce)


def old_vector(shop: Workshop, sealed: SealedUpdate) -> SealedUpdate:
    """The first update's bytes under today's manifest."""
    file = shop.earlier().file
    return shop.with_manifest(replace(sealed, file=file), chunk_root=merkle_root(hash_chunks(file)))


def other_promises(shop: Workshop, sealed: SealedUpdate) -> SealedUpdate:
    """A manifest of another mechanism than the plan's: one step more."""
    privacy = sealed.manifest.privacy
    spend = replace(privacy, steps=privacy.steps + 1)
    return shop.with_manifest(sealed, privacy=spend)


def claimed_size(shop: Workshop, sealed: SealedUpdate) -> SealedUpdate:
    """A manifest with a number of patients in it, a hundred times the true one."""
    payload = sealed.envelope.payload + CLAIMED_PATIENTS
    envelope = sign(PayloadType.UPDATE, payload, shop.signer)
    return replace(sealed, digest=digest_of(payload), envelope=envelope)


FORGERIES: Mapping[str, Forge] = {
    "honest": honest,
    "old_round": old_round,
    "old_nonce": old_nonce,
    "old_vector": old_vector,
    "other_promises": other_promises,
    "claimed_size": claimed_size,
    "early_sleeper": partial(exchanged, craft=partial(sleeper, wakes=SLEEPS_UNTIL)),
    **{name: partial(exchanged, craft=entry.craft) for name, entry in ATTACKS.items()},
}


class HostileClient(FederationClient):
    """Sends what the conduct makes of each update instead of it."""

    def __init__(
        self, channel: grpc.aio.Channel, config: Config, *, conduct: str, shop: Workshop
    ) -> None:
        """Use a channel that somebody else opens and closes."""
        super().__init__(
            channel,
            node_id=config.node_id,
            federation_id=config.coordinator.name.federation,
            coordinator_key=parse_public_key(config.coordinator.signing_key.read_bytes()),
        )
        self._words = [attempts.split("+") for attempts in conduct.split(",")]
        self._shop = shop

    async def upload(self, sealed: SealedUpdate) -> UploadResult:
        """Make one attempt after another until one is not refused.

        Raises:
            RefusedError: all were refused. The round is given up even where the last refusal
                allows to try again.
        """
        self._shop.keep_first(sealed)
        number = sealed.manifest.round_id
        words = self._words[min(number, len(self._words)) - 1]
        last: CallError | None = None
        for word in words:
            try:
                result = await super().upload(FORGERIES[word](self._shop, sealed))
            except CallError as error:
                log.info("forgery_refused", round=number, forgery=word, code=error.code)
                last = error
            else:
                log.info("forgery_taken", round=number, forgery=word)
                return result
        assert last is not None, "a conduct has at least one attempt for every round"
        raise RefusedError(str(last), code=last.code)


async def attack(config: Config, *, conduct: str, worker_argv: list[str]) -> Outcome:
    """Take part as the conduct says until the study ends or a signal comes."""
    signer = load_p256_key(config.identity.signing_key)
    folder = config.state_dir.with_name(f"{config.node_id}.forged")
    folder.mkdir(exist_ok=True)
    limits = WorkerLimits(config.training.keep_warm_seconds, config.training.memory_bytes)
    coordinator = config.coordinator
    async with (
        WorkerProcess([sys.executable, *worker_argv], limits=limits) as worker,
        RenewingChannel(
            coordinator.address, config.tls, coordinator.name, reports=Reports(Metrics())
        ) as channel,
    ):
        shop = Workshop(config.node_id, folder, signer)
        participant = Participant(
            config=config,
            client=HostileClient(channel, config, conduct=conduct, shop=shop),
            worker=worker,
            signer=signer,
            reports=Reports(Metrics()),
            version="hostile",
            chance=random.SystemRandom().random,
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, participant.drain)
        return await participant.run()


def main() -> None:
    """Attack until the study ends."""
    config = load_config(Path(sys.argv[1]))
    configure_logs("json")
    os.umask(0o077)
    outcome = asyncio.run(attack(config, conduct=sys.argv[2], worker_argv=sys.argv[3:]))
    sys.exit(3 if outcome is Outcome.HALTED else 0)


if __name__ == "__main__":
    main()
