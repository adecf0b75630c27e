"""A hospital's witness beside a log that a test writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from matl_common import signing
from matl_common.identity.held_keys import load_p256_key
from matl_common.identity.keys import load_private_key
from matl_common.ids import RoundId, digest_of
from matl_common.log_evidence import Kind, Weight, check_evidence, parse_evidence
from matl_common.protocol import PayloadType, Receipt
from matl_common.tlog.cosignature import verified_cosignatures
from matl_common.wire.documents import format_receipt
from matl_participant.connection import RenewingChannel
from matl_participant.files import StateFolder, StudyFolder
from matl_participant.log_client import LogClient
from matl_participant.log_files import EvidenceFolder, KeptCheckpoint
from matl_participant.metrics import Metrics
from matl_participant.reports import Reports
from matl_participant.witness import Kept, Witness, load_witness_keys
from tests.participant.log_simulator import SimulatedLog
from tests.participant.simulator import COORDINATOR, FEDERATION, HOSPITAL, PLAN
from tests.participant.test_daemon import Hospital, until

UPDATE = digest_of(b"update")


@dataclass
class Clock:
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Desk:
    """The hospital, the log, and what lies between them."""

    hospital: Hospital
    log: SimulatedLog
    clock: Clock = field(default_factory=Clock)
    kept: Kept | None = None
    signer: Any = None

    @property
    def state(self) -> StateFolder:
        return StateFolder(self.hospital.folder / "state")

    @property
    def study(self) -> StudyFolder:
        return self.state.study(PLAN.study_id)

    @property
    def evidence(self) -> EvidenceFolder:
        return EvidenceFolder(self.state)

    def kept_file(self) -> KeptCheckpoint:
        return KeptCheckpoint(self.state, self.log.key)

    def kept_size(self) -> int:
        last = self.kept_file().read()
        return last.checkpoint.size if last else 0

    @asynccontextmanager
    async def witness(self) -> AsyncIterator[Witness]:
        config = self.hospital.config
        keys = load_witness_keys(config)
        assert keys is not None
        if self.signer is not None:
            keys = replace(keys, signer=self.signer)
        async with RenewingChannel(
            config.coordinator.address,
            config.tls,
            config.coordinator.name,
            reports=Reports(Metrics()),
        ) as channel:
            yield Witness(
                keys=keys,
                client=LogClient(channel, log_key=keys.log),
                state=self.state,
                kept=self.kept or self.kept_file(),
                node_id=HOSPITAL,
                federation=FEDERATION,
                interval=timedelta(seconds=0.01),
                reports=Reports(Metrics()),
                chance=lambda: 0.0,
                clock=self.clock,
            )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[str]]:
        async with self.witness() as witness:
            task = asyncio.create_task(witness.run(may_speak=lambda: True))
            try:
                yield task
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def witness_all(self) -> None:
        """Run until the log's newest checkpoint is cosigned."""
        async with self.running():
            await until(lambda: self.cosigned(self.log.size))

    async def distrust(self) -> str:
        """Run until the witness will not go on; says why."""
        async with self.running() as task:
            return await asyncio.wait_for(task, 20)

    def cosigned(self, size: int) -> bool:
        note = replace(self.log.checkpoint(size), signatures=tuple(self.log.lines.get(size, [])))
        keys = load_witness_keys(self.hospital.config)
        assert keys is not None
        return len(verified_cosignatures(note, [keys.own])) == 1

    def receipt(self, number: int = 1, **changes: object) -> Receipt:
        """Have the log take in an update, and keep the coordinator's receipt for it."""
        index, hashed = self.log.admit(HOSPITAL, number, UPDATE)
        fields: dict[str, Any] = {
            "federation_id": FEDERATION,
            "study_id": PLAN.study_id,
            "round_id": RoundId(number),
            "node_id": HOSPITAL,
            "update_digest": UPDATE,
            "log_index": index,
            "log_leaf_hash": hashed,
            "admitted_at": datetime(2026, 11, 28, tzinfo=UTC),
        }
        receipt = Receipt(**{**fields, **changes})
        signer = load_p256_key(self.hospital.keys[COORDINATOR].signing_key)
        envelope = signing.sign(PayloadType.RECEIPT, format_receipt(receipt), signer)
        self.study.write_receipt(RoundId(number), envelope)
        return receipt

    def check(self, kind: Kind) -> Weight:
        """Check the one piece of evidence as a third party, who has public keys alone."""
        (file,) = self.evidence.standing()
        found = parse_evidence(file.read_bytes())
        assert found.kind is kind
        assert found.node_id == HOSPITAL
        assert b"README" in file.read_bytes()
        coordinator = load_private_key(self.hospital.keys[COORDINATOR].signing_key).public_key()
        return check_evidence(found, log_key=self.log.key, coordinator_key=coordinator).weight
