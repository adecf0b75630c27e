"""The client against a simulated coordinator, over real mutual TLS."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest

from matl_common.errors import IntegrityError
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.held_keys import load_p256_key
from matl_common.identity.node_folder import NodeFolder
from matl_common.identity.tls import TlsFiles
from matl_common.ids import NodeId, digest_of
from matl_common.protocol import PrivacySpend, RoundStart, UpdateManifest
from matl_common.tensors import CHUNK_BYTES, chunk_lengths, hash_chunks
from matl_common.tlog.merkle import merkle_root
from matl_participant.client import (
    FederationClient,
    NotAllowedError,
    RefusedError,
    SealedUpdate,
    SignedPlan,
    Timeouts,
    UnavailableError,
    UntrustedCoordinatorError,
    UpdateDamagedError,
    read_sealed,
    seal_manifest,
)
from matl_participant.connection import RenewingChannel
from matl_participant.metrics import Metrics
from matl_participant.reports import Reports
from tests.participant.simulator import (
    COORDINATOR,
    FEDERATION,
    HOSPITAL,
    PLAN,
    SCHEMA,
    SPIFFE,
    STRANGER,
    TERMS,
    SimulatedCoordinator,
    coordinator_key,
    model_bytes,
)

Keys = dict[NodeId, NodeFolder]
FAST = Timeouts(call_seconds=5.0)


@asynccontextmanager
async def client_of(
    coordinator: SimulatedCoordinator,
    keys: Keys,
    *,
    files: TlsFiles | None = None,
    spiffe: SpiffeId = SPIFFE,
    federation: str = FEDERATION,
    timeouts: Timeouts = FAST,
) -> AsyncIterator[FederationClient]:
    files = files or keys[HOSPITAL].tls
    async with RenewingChannel(
        coordinator.address, files, spiffe, reports=Reports(Metrics())
    ) as channel:
        yield FederationClient(
            channel,
            node_id=HOSPITAL,
            federation_id=federation,
            coordinator_key=coordinator_key(keys),
            timeouts=timeouts,
        )


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


async def greet(client: FederationClient) -> SignedPlan:
    return (await client.hello(version="0.1.0", device="cpu")).signed_plan


def sealed_update(
    folder: Path, keys: Keys, start: RoundStart, plan: SignedPlan, *, fill: float = 0.25
) -> SealedUpdate:
    file = folder / f"update-{fill}.f32"
    np.full(SCHEMA.update_elements, fill, dtype="<f4").tofile(file)
    manifest = UpdateManifest(
        federation_id=start.federation_id,
        study_id=start.study_id,
        round_id=start.round_id,
        nonce=start.nonce,
        plan_digest=plan.digest,
        base_model=start.base_model,
        schema_digest=SCHEMA.digest,
        byte_count=SCHEMA.update_bytes,
        chunk_bytes=CHUNK_BYTES,
        chunk_root=merkle_root(hash_chunks(file)),
        privacy=PrivacySpend(TERMS.noise_multiplier, TERMS.max_grad_norm, 1.0, 10),
        expires_at=start.deadline,
    )
    return seal_manifest(manifest, file, load_p256_key(keys[HOSPITAL].signing_key))


async def test_hello_returns_the_signed_plan_and_the_clock(
    coordinator: SimulatedCoordinator, keys: Keys
) -> None:
    async with client_of(coordinator, keys) as client:
        welcome = await client.hello(version="0.1.0", device="cpu")
    assert welcome.signed_plan.plan == PLAN
    assert welcome.signed_plan.digest == digest_of(welcome.signed_plan.envelope.payload)
    assert abs(welcome.clock_ahead) < timedelta(seconds=5)


async def test_a_coordinator_too_far_behind_is_refused_in_words(
    coordinator: SimulatedCoordinator, keys: Keys
) -> None:
    async with client_of(coordinator, keys) as client:
        # As every release before this check, it does not look at ours.
        with pytest.raises(RefusedError, match=r"MATL 0\.1\.0 and MATL 0\.3\.0 do not work"):
            await client.hello(version="0.3.0", device="cpu")


async def test_a_round_is_offered_once_and_the_long_poll_ends_by_itself(
    coordinator: SimulatedCoordinator, keys: Keys
) -> None:
    async with client_of(coordinator, keys) as client:
        plan = await greet(client)
        none = await client.await_round(plan, have_round=0, wait_seconds=0)
        assert (none.round_start, none.study_complete) == (None, False)
        assert none.standing is not None
        assert none.standing.trust == 0.9
        waiting = asyncio.create_task(client.await_round(plan, have_round=0, wait_seconds=10))
        await asyncio.sleep(0.05)
        start = coordinator.open_round(1)
        offered = (await asyncio.wait_for(waiting, 2)).round_start
        assert offered is not None
        assert (offered.round_id, offered.nonce, offered.base_model) == (
            1,
            start.nonce,
            start.base_model,
        )
        again = await client.await_round(plan, have_round=1, wait_seconds=0)
        assert again.round_start is None
        coordinator.complete()
        assert (await client.await_round(plan, have_round=1, wait_seconds=5)).study_complete


@pytest.mark.hostile
@pytest.mark.parametrize(
    "change",
    [
        {"study_id": "study-2"},
        {"federation_id": "other"},
        {"plan_digest": digest_of(b"another plan")},
        {"base_model_bytes": SCHEMA.file_bytes + 1},
        {"deadline": datetime(2001, 1, 1, tzinfo=UTC)},
    ],
)
async def test_a_round_that_does_not_belong_to_the_plan_is_not_believed(
    coordinator: SimulatedCoordinator, keys: Keys, change: dict[str, object]
) -> None:
    start = coordinator.open_round(1)
    async with client_of(coordinator, keys) as client:
        plan = await greet(client)
        coordinator.round_start = replace(start, **change)  # type: ignore[arg-type]
        with pytest.raises(UntrustedCoordinatorError, match="round 1"):
            await client.await_round(plan, have_round=0, wait_seconds=0)


@pytest.mark.hostile
async def test_a_document_signed_by_another_key_is_not_believed(
    coordinator: SimulatedCoordinator, keys: Keys, tmp_path: Path
) -> None:
    start = coordinator.open_round(1)
    async with client_of(coordinator, keys) as client:
        plan = await greet(client)
        coordinator.faults.sign_with_other_key = True
        with pytest.raises(UntrustedCoordinatorError, match="compare the coordinator's"):
            await greet(client)
        with pytest.raises(UntrustedCoordinatorError, match="round-start"):
            await client.await_round(plan, have_round=0, wait_seconds=0)
        with pytest.raises(UntrustedCoordinatorError, match="receipt"):
            await client.upload(sealed_update(tmp_path, keys, start, plan))


async def test_hello_brings_the_newest_receipt_once_there_is_one(
    coordinator: SimulatedCoordinator, keys: Keys, tmp_path: Path
) -> None:
    start = coordinator.open_round(1)
    async with client_of(coordinator, keys) as client:
        sealed = sealed_update(tmp_path, keys, start, await greet(client))
        assert (await client.hello(version="0.1.0", device="cpu")).last_receipt is None
        receipt = (await client.upload(sealed)).receipt
        assert (await client.hello(version="0.1.0", device="cpu")).last_receipt == receipt


@pytest.mark.hostile
async def test_a_receipt_for_somebody_else_is_not_believed(
    coordinator: SimulatedCoordinator, keys: Keys, tmp_path: Path
) -> None:
    start = coordinator.open_round(1)
    coordinator.faults.wrong_receipt = True
    async with client_of(coordinator, keys) as client:
        sealed = sealed_update(tmp_path, keys, start, await greet(client))
        with pytest.raises(UntrustedCoordinatorError, match="hospital_z"):
            await client.upload(sealed)
        with pytest.raises(UntrustedCoordinatorError, match="not ours"):
            await greet(client)


@pytest.mark.hostile
@pytest.mark.parametrize("have_round", [3, 4])
async def test_a_round_already_received_is_not_taken_for_a_new_one(
    coordinator: SimulatedCoordinator, keys: Keys, have_round: int
) -> None:
    coordinator.open_round(3)
    coordinator.faults.offer_old_rounds = True
    async with client_of(coordinator, keys) as client:
        plan = await greet(client)
        with pytest.raises(UntrustedCoordinatorError, match="offered after"):
            await client.await_round(plan, have_round=have_round, wait_seconds=0)


@pytest.mark.hostile
async def test_an_answer_about_another_update_is_not_believed(
    coordinator: SimulatedCoordinator, keys: Keys, tmp_path: Path
) -> None:
    start = coordinator.open_round(1)
    coordinator.faults.answer_other_update = True
    async with client_of(coordinator, keys) as client:
        sealed = sealed_update(tmp_path, keys, start, await greet(client))
        with pytest.raises(UntrustedCoordinatorError, match="another update"):
            await client.upload(sealed)
    assert coordinator.received_chunks == []


async def test_a_plan_of_another_federation_is_not_believed(
    coordinator: SimulatedCoordinator, keys: Keys
) -> None:
    async with client_of(coordinator, keys, federation="another") as client:
        with pytest.raises(UntrustedCoordinatorError, match="configured for 'another'"):
            await greet(client)


async def test_a_model_arrives_whole_and_a_cut_stream_goes_on_where_it_ended(
    coordinator: SimulatedCoordinator, keys: Keys, tmp_path: Path
) -> None:
    start = coordinator.open_round(1)
    coordinator.faults.cut_pull_after_bytes += [1 << 20, 1 << 19]
    async with client_of(coordinator, keys) as client:
        for _ in range(2):
            with pytest.raises(UnavailableError):
                await client.pull_model(
                    start.base_model, total_bytes=start.base_model_bytes, folder=tmp_path
                )
        path = await client.pull_model(
            start.base_model, total_bytes=start.base_model_bytes, folder=tmp_path
        )
    assert path == tmp_path / f"{start.base_model}.safetensors"
    assert path.read_bytes() == model_bytes()
    assert coordinator.pull_offsets == [0, 1 << 20, (1 << 20) + (1 << 19)]
    assert files_in(tmp_path) == [path]


async def test_a_stream_that_only_ends_early_is_not_a_model(
    coordinator: SimulatedCoordinator, keys: Keys, tmp_path: Path
) -> None:
    start = coordinator.open_round(1)
    coordinator.models[start.base_model] = model_bytes()[:-1]
    async with client_of(coordinator, keys) as client:
        with pytest.raises(UnavailableError, match="ended early"):
            await client.pull_model(
                start.base_model, total_bytes=start.base_model_bytes, folder=tmp_path
            )
    assert all(file.suffix == ".part" for file in files_in(tmp_path))


@pytest.mark.hostile
async def test_a_damaged_model_is_deleted_and_can_be_fetched_anew(
    coordinator: SimulatedCoordinator, keys: Keys, tmp_path: Path
) -> None:
    start = coordinator.open_round(1)
    coordinator.faults.damage_pull = 1
    async with client_of(coordinator, keys) as client:
        with pytest.raises(UntrustedCoordinatorError, match="is not model"):
            await client.pull_model(
                start.base_model, total_bytes=start.base_model_bytes, folder=tmp_path
            )
        assert files_in(tmp_path) == []
        path = await client.pull_model(
            start.base_model, total_bytes=start.base_model_bytes, folder=tmp_path
        )
    assert digest_of(path.read_bytes()) == start.base_model


@pytest.mark.hostile
async def test_a_model_longer_than_announced_is_cut_off(
    coordinator: SimulatedCoordinator, keys: Keys, tmp_path: Path
) -> None:
    start = coordinator.open_round(1)
    coordinator.models[start.base_model] = model_bytes() + bytes(8 << 20)
    async with client_of(coordinator, keys) as client:
        with pytest.raises(UnavailableError, match="ended early"):
            await client.pull_model(
                start.base_model, total_bytes=start.base_model_bytes, folder=tmp_path
            )
    (partial,) = files_in(tmp_path)
    assert partial.stat().st_size <= start.base_model_bytes


@pytest.mark.hostile
async def test_a_model_that_comes_as_nothing_again_and_again_is_not_waited_for(
    coordinator: SimulatedCoordinator, keys: Keys, tmp_path: Path
) -> None:
    start = coordinator.open_round(1)
    coordinator.faults.empty_pull = True
    async with client_of(coordinator, keys) as client:
        with pytest.raises(UnavailableError, match="ended early"):
            await client.pull_model(
                start.base_model, total_bytes=start.base_model_bytes, folder=tmp_path
            )


async def test_an_upload_cut_twice_sends_every_chunk_once(
    coordinator: SimulatedCoordinator, keys: Keys, tmp_path: Path
) -> None:
    start = coordinator.open_round(1)
    coordinator.faults.cut_push_after_chunks += [1, 1]
    async with client_of(coordinator, keys) as client:
        sealed = sealed_update(tmp_path, keys, start, await greet(client))
        for _ in range(2):
            with pytest.raises(UnavailableError):
                await client.upload(sealed)
        result = await client.upload(sealed)
    assert result.receipt is not None
    assert result.receipt.update_digest == sealed.digest
    lengths = chunk_lengths(SCHEMA.update_bytes)
    assert len(lengths) == 3
    assert coordinator.received_chunks == [0, 1, 2]
    assert result.sent_bytes == lengths[2]
    received = b"".join(coordinator.uploads[sealed.digest].chunks)
    assert received == sealed.file.read_bytes()


async def test_an_upload_goes_on_after_the_coordinator_restarted_on_its_port(
    coordinator: SimulatedCoordinator, keys: Keys, tmp_path: Path
) -> None:
    start = coordinator.open_round(1)
    coordinator.faults.cut_push_after_chunks.append(2)
    async with client_of(coordinator, keys) as client:
        sealed = sealed_update(tmp_path, keys, start, await greet(client))
        with pytest.raises(UnavailableError):
            await client.upload(sealed)
        await coordinator.stop()
        with pytest.raises(UnavailableError, match="cannot be reached"):
            await client.upload(sealed)
        await coordinator.start()
        for _ in range(100):
            try:
                result = await client.upload(sealed)
                break
            except UnavailableError:
                await asyncio.sleep(0.05)
    assert result.receipt is not None
    assert coordinator.received_chunks == [0, 1, 2]


async def test_an_update_sent_again_gets_its_receipt_and_sends_nothing(
    coordinator: SimulatedCoordinator, keys: Keys, tmp_path: Path
) -> None:
    start = coordinator.open_round(1)
    coordinator.faults.delay_admission = 1
    async with client_of(coordinator, keys) as client:
        sealed = sealed_update(tmp_path, keys, start, await greet(client))
        pending = await client.upload(sealed)
        assert pending.receipt is None
        assert pending.sent_bytes == SCHEMA.update_bytes
        admitted = await client.upload(sealed)
        assert admitted.receipt is not None
        assert admitted.sent_bytes == 0


async def test_a_second_update_and_a_late_one_are_refused_for_good(
    coordinator: SimulatedCoordinator, keys: Keys, tmp_path: Path
) -> None:
    start = coordinator.open_round(1)
    async with client_of(coordinator, keys) as client:
        plan = await greet(client)
        await client.upload(sealed_update(tmp_path, keys, start, plan))
        with pytest.raises(RefusedError) as refused:
            await client.upload(sealed_update(tmp_path, keys, start, plan, fill=0.5))
        assert refused.value.code == "ALREADY_EXISTS"
        coordinator.open_round(2)
        with pytest.raises(RefusedError) as late:
            await client.upload(sealed_update(tmp_path, keys, start, plan, fill=0.75))
        assert late.value.code == "FAILED_PRECONDITION"


async def test_a_file_changed_after_sealing_is_never_sent(
    coordinator: SimulatedCoordinator, keys: Keys, tmp_path: Path
) -> None:
    start = coordinator.open_round(1)
    async with client_of(coordinator, keys) as client:
        sealed = sealed_update(tmp_path, keys, start, await greet(client))
        sealed.file.write_bytes(bytes(SCHEMA.update_bytes))
        with pytest.raises(UpdateDamagedError):
            await client.upload(sealed)
    assert coordinator.uploads == {}


async def test_a_sealed_update_is_taken_up_again_only_with_our_signature(
    coordinator: SimulatedCoordinator, keys: Keys, tmp_path: Path
) -> None:
    start = coordinator.open_round(1)
    async with client_of(coordinator, keys) as client:
        sealed = sealed_update(tmp_path, keys, start, await greet(client))
    ours = load_p256_key(keys[HOSPITAL].signing_key).public_key
    again = read_sealed(sealed.envelope, sealed.file, ours)
    assert again.digest == sealed.digest
    assert again.manifest.round_id == sealed.manifest.round_id
    with pytest.raises(IntegrityError):
        read_sealed(sealed.envelope, sealed.file, coordinator_key(keys))


@pytest.mark.certificates
async def test_a_coordinator_with_another_name_or_authority_is_not_spoken_to(
    coordinator: SimulatedCoordinator, keys: Keys
) -> None:
    another = SpiffeId(FEDERATION, Role.COORDINATOR, NodeId("impostor"))
    async with client_of(coordinator, keys, spiffe=another) as client:
        with pytest.raises(UnavailableError):
            await greet(client)
    files = replace(keys[HOSPITAL].tls, trusted_authority=keys[COORDINATOR].tls.trusted_authority)
    async with client_of(coordinator, keys, files=files) as client:
        with pytest.raises(UnavailableError):
            await greet(client)
    assert coordinator.hellos == 0


@pytest.mark.certificates
async def test_a_node_that_is_not_enrolled_is_told_what_to_do(
    coordinator: SimulatedCoordinator, keys: Keys
) -> None:
    async with client_of(coordinator, keys, files=keys[STRANGER].tls) as client:
        with pytest.raises(NotAllowedError, match=r"enrol .*--replace-keys") as refused:
            await greet(client)
    assert refused.value.code == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
)
async def test_every_status_is_final_or_worth_a_retry(
    coordinator: SimulatedCoordinator, keys: Keys, code: grpc.StatusCode
) -> None:
    expected = {
        "ALREADY_EXISTS": RefusedError,
        "FAILED_PRECONDITION": RefusedError,
        "INVALID_ARGUMENT": RefusedError,
        "NOT_FOUND": RefusedError,
        "PERMISSION_DENIED": NotAllowedError,
        "UNAUTHENTICATED": NotAllowedError,
    }.get(code.name, UnavailableError)
    coordinator.faults.abort.append(code)
    async with client_of(coordinator, keys) as client:
        with pytest.raises(expected) as error:
            await greet(client)
        assert type(error.value) is expected
        assert getattr(error.value, "code") == code.name  # noqa: B009 - a parametrised type


async def test_a_coordinator_that_does_not_answer_costs_one_deadline(
    coordinator: SimulatedCoordinator, keys: Keys
) -> None:
    coordinator.faults.answer_delay_seconds = 20.0
    async with client_of(coordinator, keys, timeouts=Timeouts(call_seconds=0.3)) as client:
        with pytest.raises(UnavailableError) as late:
            await greet(client)
    assert late.value.code == "DEADLINE_EXCEEDED"
