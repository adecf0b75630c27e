"""Every flush that a promise rests on, with a disk that keeps nothing unflushed."""

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from matl_common import signing
from matl_common.durable import fsync_directory, write_named_by_digest
from matl_common.identity.held_keys import load_p256_key
from matl_common.identity.node_folder import NodeFolder
from matl_common.ids import NodeId, RoundId, digest_of
from matl_common.protocol import PayloadType, Receipt, RoundStart
from matl_common.tensors import TensorSpec, hash_chunks, parse_schema
from matl_common.tlog.merkle import merkle_root
from matl_common.wire.documents import format_receipt, format_study_plan
from matl_participant.client import SignedPlan
from matl_participant.core.account import Attempt
from matl_participant.files import StateFolder
from matl_participant.ledger import Ledger, open_ledger
from matl_participant.sealing import load_sealed, seal_result
from tests.participant.power_cut import UnsyncedWritesAreLost
from tests.participant.simulator import COORDINATOR, HOSPITAL, PLAN
from tests.participant.test_ledger import (
    BASE,
    NOW,
    PLANNED,
    STEPS,
    STORY,
    UPDATE,
    abandon,
    reserve,
    seal,
)

pytestmark = [pytest.mark.privacy, pytest.mark.crash]


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UnsyncedWritesAreLost:
    root = tmp_path / "disk"
    root.mkdir()
    found = UnsyncedWritesAreLost(root)
    found.watch(monkeypatch)
    return found


def reopened(disk: UnsyncedWritesAreLost, into: Path) -> Ledger:
    left = disk.after_power_cut(into)
    return open_ledger(left / "var" / "state" / "ledger", dataset="retina", study_id="s")


def durably(path: Path, content: bytes) -> None:
    """What a power cut before this test left."""
    path.write_bytes(content)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def test_a_power_cut_after_any_entry_loses_none_of_it(
    disk: UnsyncedWritesAreLost, tmp_path: Path
) -> None:
    folder = disk.root / "var" / "state" / "ledger"
    with open_ledger(folder, dataset="retina", study_id="s") as ledger:
        for number, act in enumerate(STORY):
            act(ledger)
            with reopened(disk, tmp_path / f"left-{number}") as left:
                assert left.account == ledger.account
                assert left.head == ledger.head


def test_what_an_opening_repairs_is_durable_before_the_next_entry(
    disk: UnsyncedWritesAreLost, tmp_path: Path
) -> None:
    folder = disk.root / "var" / "state" / "ledger"
    with open_ledger(folder, dataset="retina", study_id="s") as ledger:
        ledger.plan(PLANNED)
        reserve(ledger)
    (path,) = folder.iterdir()
    # The line break never reached the disk, and then half an entry did.
    durably(path, path.read_bytes()[:-1])
    open_ledger(folder, dataset="retina", study_id="s").close()
    (kept,) = (disk.after_power_cut(tmp_path / "left") / "var/state/ledger").iterdir()
    assert kept.read_bytes() == path.read_bytes()
    with reopened(disk, tmp_path / "again") as left:
        assert left.account.steps_spent == STEPS
    durably(path, path.read_bytes() + b'{"line":{"entry"')
    open_ledger(folder, dataset="retina", study_id="s").close()
    (kept,) = (disk.after_power_cut(tmp_path / "cut") / "var/state/ledger").iterdir()
    assert kept.read_bytes() == path.read_bytes()
    assert kept.read_bytes().endswith(b"}\n")


def test_a_line_that_the_writer_before_never_flushed_is_flushed_before_it_is_relied_upon(
    disk: UnsyncedWritesAreLost, tmp_path: Path
) -> None:
    folder = disk.root / "var" / "state" / "ledger"
    with open_ledger(folder, dataset="retina", study_id="s") as ledger:
        ledger.plan(PLANNED)
        reserve(ledger)
        seal(ledger)
    (path,) = folder.iterdir()
    # The writer was killed between writing SEAL and flushing it; the cache still has it.
    (inode,) = (number for number, data in disk.contents.items() if data == path.read_bytes())
    disk.contents[inode] = b"".join(path.read_bytes().splitlines(keepends=True)[:2])
    with open_ledger(folder, dataset="retina", study_id="s") as ledger:
        state = ledger.account.attempts[-1].state
        with reopened(disk, tmp_path / "left") as left:
            assert left.account.attempts[-1].state is state
        abandon(ledger)


def test_a_sealed_update_and_its_manifest_survive_from_the_moment_they_may_be_sealed(
    disk: UnsyncedWritesAreLost, tmp_path: Path, keys: dict[NodeId, NodeFolder]
) -> None:
    schema = parse_schema([TensorSpec("head.weight", (5, 300))])
    state = StateFolder(disk.root / "var")
    state.path.mkdir()
    signer = load_p256_key(keys[HOSPITAL].signing_key)
    payload = format_study_plan(PLAN)
    envelope = signing.sign(PayloadType.STUDY_PLAN, payload, signer)
    plan = SignedPlan(replace(PLAN, schema=schema), digest_of(payload), envelope)
    start = RoundStart(
        federation_id=PLAN.federation_id,
        study_id=PLAN.study_id,
        round_id=RoundId(1),
        nonce=bytes(32),
        plan_digest=plan.digest,
        base_model=BASE,
        base_model_bytes=schema.file_bytes,
        opened_at=NOW,
        deadline=NOW + timedelta(hours=1),
    )
    fsync_directory(disk.root)
    with state.owned():
        study = state.study(PLAN.study_id)
        result = state.result(RoundId(1))
        result.write_bytes(os.urandom(schema.update_bytes))
        found = seal_result(
            result,
            study,
            start=start,
            signed_plan=plan,
            attempt=Attempt(RoundId(1), STEPS, BASE),
            correct=None,
            signer=signer,
        )
    left = StateFolder(disk.after_power_cut(tmp_path / "left") / "var")
    attempt = Attempt(
        RoundId(1),
        STEPS,
        BASE,
        update_digest=found.update.digest,
        content_digest=found.content_digest,
    )
    kept = load_sealed(left.study_as_it_is(PLAN.study_id), attempt, signer.public_key)
    assert kept is not None
    assert merkle_root(hash_chunks(kept.file)).hex() == found.content_digest


def test_a_receipt_survives_from_the_moment_it_is_acknowledged(
    disk: UnsyncedWritesAreLost, tmp_path: Path, keys: dict[NodeId, NodeFolder]
) -> None:
    state = StateFolder(disk.root / "var")
    state.path.mkdir()
    signer = load_p256_key(keys[COORDINATOR].signing_key)
    told = Receipt(
        federation_id="dr-study",
        study_id="s",
        round_id=RoundId(4),
        node_id=HOSPITAL,
        update_digest=UPDATE,
        log_index=1,
        log_leaf_hash=BASE,
        admitted_at=NOW,
    )
    fsync_directory(disk.root)
    with state.owned():
        study = state.study("s")
        study.write_receipt(
            RoundId(4), signing.sign(PayloadType.RECEIPT, format_receipt(told), signer)
        )
        before = study.evidence()
    left = StateFolder(disk.after_power_cut(tmp_path / "left") / "var")
    assert left.study_as_it_is("s").evidence() == before
    assert before[0].update_digest == UPDATE


def test_a_result_that_was_taken_survives_before_its_manifest_is_written(
    disk: UnsyncedWritesAreLost, tmp_path: Path
) -> None:
    state = StateFolder(disk.root / "var")
    state.path.mkdir()
    fsync_directory(disk.root)
    with state.owned():
        study = state.study("s")
        result = state.result(RoundId(1))
        result.write_bytes(b"trained")
        study.take_result(result, RoundId(1))
    left = StateFolder(disk.after_power_cut(tmp_path / "left") / "var")
    assert left.study_as_it_is("s").update(RoundId(1)).read_bytes() == b"trained"


def test_a_file_named_by_its_digest_survives_from_the_moment_it_is_stored(
    disk: UnsyncedWritesAreLost, tmp_path: Path
) -> None:
    digest = write_named_by_digest(disk.root, [b"model"], suffix=".safetensors")
    left = disk.after_power_cut(tmp_path / "left")
    assert (left / f"{digest}.safetensors").read_bytes() == b"model"
