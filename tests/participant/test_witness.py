"""A hospital as a witness: what it cosigns, what it refuses, and what it can prove of that."""

import asyncio
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from matl_common.errors import ConfigurationError
from matl_common.ids import RoundId
from matl_common.log_evidence import Kind, Weight
from matl_common.tlog.checkpoint import SignedCheckpoint, log_key
from matl_participant.files import StateFolder
from matl_participant.log_files import CHECKPOINT_FILE, KeptCheckpoint, WitnessStateError
from matl_participant.witness import load_witness_keys, why_distrusted
from tests.participant.test_daemon import until
from tests.participant.witness_desk import Desk

ROOT = Path(__file__).parents[2]
Status = grpc.StatusCode


# What is cosigned.


async def test_each_checkpoint_is_cosigned_once_and_the_next_is_asked_for_from_there(
    desk: Desk,
) -> None:
    async with desk.running():
        await until(lambda: desk.cosigned(5))
        desk.log.note("later")
        await until(lambda: desk.cosigned(6) and desk.log.asked[-1] == 6)
        asked = len(desk.log.asked)
        await until(lambda: len(desk.log.asked) > asked + 5)
    assert {size: len(lines) for size, lines in desk.log.lines.items()} == {5: 1, 6: 1}
    assert desk.log.asked[0] == 0
    # Another life goes on from the file.
    desk.log.note("later still")
    del desk.log.asked[:]
    await desk.witness_all()
    assert desk.log.asked[0] == 6
    assert desk.evidence.standing() == ()


@dataclass
class FaultyKept:
    """Fails to confirm, after or before the file was replaced."""

    inner: KeptCheckpoint
    persists: bool
    failures: int = 3

    def read(self) -> SignedCheckpoint | None:
        return self.inner.read()

    def replace(self, *, expected: SignedCheckpoint | None, new: SignedCheckpoint) -> None:
        if self.failures == 0 or self.persists:
            self.inner.replace(expected=expected, new=new)
        if self.failures:
            self.failures -= 1
            raise OSError(5, "injected")


@pytest.mark.crash
@pytest.mark.parametrize("persists", [False, True])
async def test_a_checkpoint_whose_keeping_failed_is_not_signed_before_it_is_kept(
    desk: Desk,
    persists: bool,  # noqa: FBT001 - a parametrisation
) -> None:
    signed_at: list[int] = []
    keys = load_witness_keys(desk.hospital.config)
    assert keys is not None
    signer = keys.signer

    class WatchingSigner:
        def sign(self, data: bytes, /) -> bytes:
            signed_at.append(desk.kept_size())
            return signer.sign(data)

    desk.kept, desk.signer = FaultyKept(desk.kept_file(), persists), WatchingSigner()
    await desk.witness_all()
    # At the moment of signing the file already held what is signed.
    assert signed_at == [5]
    assert desk.log.asked[:2] == ([0, 5] if persists else [0, 0])


@pytest.mark.crash
async def test_a_witness_killed_between_keeping_and_signing_signs_the_same_and_no_fork_of_it(
    desk: Desk,
) -> None:
    arguments = (sys.executable, "-m", "tests.participant.dying_witness")
    process = await asyncio.create_subprocess_exec(
        *arguments, str(desk.hospital.config_file), cwd=ROOT, env={**os.environ}
    )
    assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGKILL
    assert (desk.kept_size(), desk.log.lines) == (5, {})
    backup = desk.hospital.folder / "backup"
    shutil.copytree(desk.state.path, backup)
    await desk.witness_all()
    assert len(desk.log.lines[5]) == 1
    # Had the coordinator rewritten its log meanwhile, it would have got nothing.
    shutil.rmtree(desk.state.path)
    backup.rename(desk.state.path)
    desk.log.rewrite(keep=3, size=5)
    await desk.distrust()
    assert desk.check(Kind.FORK) is Weight.PROVEN
    assert desk.log.lines == {}


async def test_a_state_folder_from_an_old_backup_catches_up_by_proof(desk: Desk) -> None:
    await desk.witness_all()
    old = (desk.state.path / CHECKPOINT_FILE).read_bytes()
    for number in range(4):
        desk.log.note(f"later {number}")
    await desk.witness_all()
    (desk.state.path / CHECKPOINT_FILE).write_bytes(old)
    desk.log.note("last")
    del desk.log.asked[:]
    await desk.witness_all()
    assert desk.log.asked[0] == 5
    # And what does not extend the old one is refused as ever.
    (desk.state.path / CHECKPOINT_FILE).write_bytes(old)
    desk.log.rewrite(keep=4, size=12)
    await desk.distrust()
    assert not desk.log.lines.get(12)
    assert desk.check(Kind.INCONSISTENT) is Weight.TESTIMONY


async def test_a_coordinator_that_cannot_be_reached_only_delays(desk: Desk) -> None:
    desk.log.faults.abort_checkpoint = [Status.UNAVAILABLE, Status.UNIMPLEMENTED, Status.INTERNAL]
    desk.log.faults.abort_cosignature = [Status.UNAVAILABLE]
    await desk.witness_all()
    assert desk.evidence.standing() == ()


async def test_who_is_woken_during_a_pass_begins_another_after_it(desk: Desk) -> None:
    desk.log.faults.abort_checkpoint = [Status.UNAVAILABLE]
    async with desk.witness() as witness:
        witness.interval = timedelta(hours=1)

        def may_speak() -> bool:
            if not desk.log.asked:
                witness.wake()
            return True

        task = asyncio.create_task(witness.run(may_speak=may_speak))
        await until(lambda: desk.cosigned(5))
        task.cancel()


async def test_a_refused_cosignature_does_not_keep_updates_from_being_proven(desk: Desk) -> None:
    desk.receipt()
    desk.log.faults.abort_cosignature = [Status.FAILED_PRECONDITION] * 1000
    with capture_logs() as logs:
        async with desk.running():
            await until(lambda: desk.study.proof(RoundId(1)).exists())
    refused = [each for each in logs if each["event"] == "participant.cosignature_refused"]
    assert len(refused) == 1


@pytest.mark.crash
def test_what_a_killed_writer_left_beside_the_checkpoint_is_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".half.tmp"
    leftover.write_text("half a checkpoint")
    StateFolder(tmp_path).prepare()
    assert not leftover.exists()


# What is refused.


async def test_two_histories_of_one_size_are_a_fork_that_anybody_can_verify(desk: Desk) -> None:
    await desk.witness_all()
    desk.log.rewrite(keep=4, size=5)
    with capture_logs() as logs:
        why = await desk.distrust()
    assert "fork-5-5.json" in why
    assert desk.check(Kind.FORK) is Weight.PROVEN
    assert [each["event"] for each in logs if each["log_level"] == "critical"] == [
        "participant.log_forked"
    ]
    assert desk.log.lines == {}
    assert why_distrusted(desk.evidence) == why


async def test_a_log_that_went_back_is_refused(desk: Desk) -> None:
    await desk.witness_all()
    desk.log.rewrite(keep=3, size=4)
    assert "rollback-5-4.json" in await desk.distrust()
    assert desk.check(Kind.ROLLBACK) is Weight.TESTIMONY
    assert desk.kept_size() == 5
    assert 4 not in desk.log.lines


@pytest.mark.parametrize("lie", ["another history", "a proof of nothing"])
async def test_a_larger_log_that_does_not_prove_to_extend_the_smaller_is_refused(
    desk: Desk, lie: str
) -> None:
    await desk.witness_all()
    desk.log.note("later")
    if lie == "another history":
        desk.log.rewrite(keep=4, size=9)
    else:
        desk.log.faults.false_proof = True
    await desk.distrust()
    assert desk.check(Kind.INCONSISTENT) is Weight.TESTIMONY
    assert desk.kept_size() == 5
    assert not desk.log.lines.get(desk.log.size)


async def test_a_checkpoint_by_another_key_is_neither_kept_nor_evidence(desk: Desk) -> None:
    desk.log.use_key(Ed25519PrivateKey.generate())
    with capture_logs() as logs:
        async with desk.running():
            await until(lambda: len(desk.log.asked) > 1)
    failed = [each for each in logs if each["event"] == "participant.witnessing_failed"]
    assert "coordinator.log_key" in failed[0]["error"]
    assert failed[0]["log_level"] == "error"
    assert desk.kept_size() == 0
    assert desk.evidence.standing() == ()


async def test_a_damaged_checkpoint_file_stops_the_witness_and_says_what_to_do(desk: Desk) -> None:
    await desk.witness_all()
    (desk.state.path / CHECKPOINT_FILE).write_bytes(b"damaged")
    with pytest.raises(WitnessStateError, match="Restore it from a backup"):
        await desk.distrust()


async def test_a_checkpoint_file_that_changed_meanwhile_is_not_overwritten(desk: Desk) -> None:
    await desk.witness_all()
    kept = desk.kept_file()
    last = kept.read()
    assert last is not None
    with pytest.raises(WitnessStateError, match="was changed"):
        kept.replace(expected=None, new=last)


async def test_evidence_that_cannot_be_written_stops_the_witness_all_the_same(desk: Desk) -> None:
    await desk.witness_all()
    # Root may write into any folder, but nobody into a file as if it were one.
    desk.evidence.path.write_text("in the way")
    desk.log.rewrite(keep=4, size=5)
    with pytest.raises(WitnessStateError, match=r"two different roots.*cannot be written"):
        await desk.distrust()


# Which keys.


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "No such file"),
        (b"\xff\xfe", "utf-8"),
        (b"no key", "not a verifier key"),
        ("another", "is the key of 'another.matl.internal/log'"),
    ],
)
async def test_a_log_key_that_is_not_this_federations_is_refused_with_what_to_put_there(
    desk: Desk, content: bytes | str | None, named: str
) -> None:
    file = desk.hospital.folder / "log.vkey"
    match content:
        case bytes():
            file.write_bytes(content)
        case str():
            key = Ed25519PrivateKey.generate().public_key()
            file.write_text(log_key(f"{content}.matl.internal/log", key).vkey)
    config = desk.hospital.config
    coordinator = config.coordinator.model_copy(update={"log_key": file})
    with pytest.raises(ConfigurationError, match=named) as refused:
        load_witness_keys(config.model_copy(update={"coordinator": coordinator}))
    assert "dr-study.matl.internal/log" in str(refused.value)


async def test_a_witness_key_of_another_kind_is_refused(desk: Desk) -> None:
    config = desk.hospital.config
    identity = config.identity.model_copy(update={"witness_key": config.identity.signing_key})
    with pytest.raises(ConfigurationError, match="Ed25519"):
        load_witness_keys(config.model_copy(update={"identity": identity}))
