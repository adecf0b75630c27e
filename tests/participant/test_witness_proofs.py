"""A hospital looks for its own updates in the log: proofs, and what a missing one leads to."""

import asyncio
import shutil
from datetime import timedelta

import grpc
import pytest

from matl_common.identity.keys import load_ed25519_private_key
from matl_common.ids import Digest, RoundId, digest_of
from matl_common.log_evidence import Kind, Weight
from matl_common.tlog.checkpoint import parse_checkpoint
from matl_common.tlog.cosignature import cosign, witness_key
from matl_common.tlog.entry import entry_of
from matl_common.tlog.merkle import leaf_hash
from matl_common.tlog.policy import Policy, threshold_policy
from matl_common.tlog.proof import parse_proof
from matl_common.tlog.submission import open_submission_proof
from matl_participant.log_files import CHECKPOINT_FILE
from matl_participant.witness import PROOF_PATIENCE, PROOF_TRIES, load_witness_keys
from tests.logs import MOMENT
from tests.participant.simulator import HOSPITAL, STRANGER
from tests.participant.test_daemon import until
from tests.participant.witness_desk import UPDATE, Desk

Status = grpc.StatusCode
ONE = RoundId(1)


def policy_of(desk: Desk, *, threshold: int = 1) -> Policy:
    """The log, with our hospital and another as its witnesses."""
    keys = load_witness_keys(desk.hospital.config)
    assert keys is not None
    other = load_ed25519_private_key(desk.hospital.keys[STRANGER].witness_key)
    witnesses = {"ours": keys.own, "theirs": witness_key("theirs", other.public_key())}
    return threshold_policy([desk.log.key], witnesses, threshold=threshold)


def cosign_as_another(desk: Desk, size: int) -> None:
    """Let the other hospital's cosignature of a checkpoint arrive."""
    other = load_ed25519_private_key(desk.hospital.keys[STRANGER].witness_key)
    checkpoint = parse_checkpoint(desk.log.checkpoint(size).text)
    line = cosign(
        checkpoint, witness_key("theirs", other.public_key()), other, unix_seconds=1_800_000_000
    )
    desk.log.lines.setdefault(size, []).append(line)


def settle(desk: Desk) -> None:
    settled = desk.evidence.path / "settled"
    settled.mkdir()
    for file in desk.evidence.standing():
        shutil.move(file, settled)


async def proven(desk: Desk, *rounds: int) -> None:
    async with desk.running():
        await until(lambda: all(desk.study.proof(RoundId(each)).exists() for each in rounds))


async def test_a_proof_of_the_update_is_kept_that_anybody_can_verify_offline(desk: Desk) -> None:
    receipt = desk.receipt()
    desk.receipt(2)
    await proven(desk, 1, 2)
    proof = parse_proof(desk.study.proof(ONE).read_bytes())
    shown = open_submission_proof(proof, policy_of(desk))
    assert (shown.facts["update"], shown.facts["round"]) == (UPDATE, 1)
    assert shown.checkpoint.checkpoint.size == 7
    assert proof.index == receipt.log_index == 5
    # Another life does not ask again.
    del desk.log.proved[:]
    desk.log.note("later")
    await desk.witness_all()
    assert desk.log.proved == []


async def test_a_proof_is_replaced_by_one_with_more_cosignatures(desk: Desk) -> None:
    desk.receipt()
    await proven(desk, 1)
    desk.log.note("later")
    cosign_as_another(desk, 7)
    # A coordinator that will not show it again changes nothing.
    desk.log.faults.abort_inclusion = [Status.INVALID_ARGUMENT]
    file = desk.study.proof(ONE)

    def is_complete() -> bool:
        return len(parse_proof(file.read_bytes()).checkpoint.signatures) == 3

    async with desk.running():
        await until(is_complete)
    shown = open_submission_proof(parse_proof(file.read_bytes()), policy_of(desk, threshold=2))
    assert shown.checkpoint.checkpoint.size == 7


async def test_what_was_proven_once_is_not_doubted_for_want_of_a_better_proof(desk: Desk) -> None:
    desk.receipt()
    await proven(desk, 1)
    cosign_as_another(desk, 6)
    desk.log.faults.abort_inclusion = [Status.INVALID_ARGUMENT] * 10_000
    async with desk.running() as task:
        await until(lambda: len(desk.log.proved) > PROOF_TRIES + 1)
        desk.clock.now += 2 * PROOF_PATIENCE
        asked = len(desk.log.asked)
        await until(lambda: len(desk.log.asked) > asked + 2)
        assert not task.done()


async def test_a_pass_whose_question_was_not_answered_waits_before_it_asks_the_next(
    desk: Desk,
) -> None:
    desk.receipt()
    desk.receipt(2)
    desk.log.faults.abort_inclusion = [Status.UNAVAILABLE]
    await proven(desk, 1, 2)
    assert desk.log.proved == [5, 5, 6]


async def test_a_damaged_proof_is_fetched_anew(desk: Desk) -> None:
    desk.receipt()
    await proven(desk, 1)
    file = desk.study.proof(ONE)
    damaged = file.read_bytes()[:-20]
    file.write_bytes(damaged)
    async with desk.running():
        await until(lambda: file.read_bytes() != damaged)
    open_submission_proof(parse_proof(file.read_bytes()), policy_of(desk))


async def test_another_leaf_in_the_place_that_a_receipt_names_proves_the_coordinator_a_liar(
    desk: Desk,
) -> None:
    desk.receipt(log_leaf_hash=digest_of(b"another leaf"))
    assert "contradicted-" in await desk.distrust()
    assert desk.check(Kind.CONTRADICTED) is Weight.PROVEN
    assert not desk.study.proof(ONE).exists()


@pytest.mark.parametrize(
    "told",
    [
        {"event": "update_refused"},
        {"node": "hospital_z"},
        {"round": 2},
        {"update": digest_of(b"another update")},
    ],
)
async def test_a_promised_leaf_that_says_something_else_proves_it_too(
    desk: Desk, told: dict[str, object]
) -> None:
    facts: dict[str, object] = {
        "event": "update_admitted",
        "at": MOMENT,
        "node": HOSPITAL,
        "round": 1,
        "update": UPDATE,
    }
    index = desk.log.append(entry_of({**facts, **told}))
    hashed = Digest(leaf_hash(desk.log.sealed[index].leaf).hex())
    desk.receipt(log_index=index, log_leaf_hash=hashed)
    await desk.distrust()
    assert desk.check(Kind.CONTRADICTED) is Weight.PROVEN


async def test_a_path_that_leads_elsewhere_ends_it_at_once(desk: Desk) -> None:
    desk.receipt()
    desk.log.faults.false_path = True
    await desk.distrust()
    assert desk.check(Kind.UNPROVED) is Weight.TESTIMONY


@pytest.mark.parametrize("answer", ["refused", "unavailable", "withheld", "frozen"])
async def test_an_update_that_is_not_shown_for_an_hour_is_evidence_and_not_before(
    desk: Desk, answer: str
) -> None:
    match answer:
        case "refused":
            desk.log.faults.abort_inclusion = [Status.INVALID_ARGUMENT] * 10_000
        case "unavailable":
            desk.log.faults.abort_inclusion = [
                *[Status.INVALID_ARGUMENT] * (PROOF_TRIES - 1),
                *[Status.UNAVAILABLE] * 100,
            ]
        case "withheld":
            desk.log.faults.withhold_entry = True
        case "frozen":
            desk.log.faults.offer_size = 5
    desk.receipt()
    async with desk.running() as task:
        await until(lambda: len(desk.log.asked) > PROOF_TRIES)
        desk.clock.now += PROOF_PATIENCE - timedelta(seconds=1)
        asked = len(desk.log.asked)
        await until(lambda: len(desk.log.asked) > asked + 1)
        assert not task.done()
        desk.clock.now += timedelta(seconds=1)
        assert "unproved-" in await asyncio.wait_for(task, 20)
    assert desk.check(Kind.UNPROVED) is Weight.TESTIMONY


async def test_an_hour_without_a_coordinator_is_no_evidence(desk: Desk) -> None:
    desk.receipt()
    desk.log.faults.abort_inclusion = [Status.INVALID_ARGUMENT] * (PROOF_TRIES - 1)
    async with desk.running():
        await until(lambda: len(desk.log.proved) > 0)
        desk.clock.now += 2 * PROOF_PATIENCE
        await until(lambda: desk.study.proof(ONE).exists())
    assert desk.evidence.standing() == ()


async def test_what_an_operator_has_settled_is_not_asked_for_again(desk: Desk) -> None:
    desk.receipt(log_leaf_hash=digest_of(b"another leaf"))
    await desk.distrust()
    settle(desk)
    desk.receipt(2)
    await proven(desk, 2)
    assert desk.evidence.standing() == ()


async def test_a_proven_update_that_a_restored_log_lacks_stops_the_hospital_once(
    desk: Desk,
) -> None:
    desk.receipt()
    await proven(desk, 1)
    lost = desk.study.proof(ONE).read_bytes()
    # Every hospital has agreed to follow an older backup.
    desk.log.rewrite(keep=4, size=7)
    (desk.state.path / CHECKPOINT_FILE).unlink()
    cosign_as_another(desk, 7)
    await desk.distrust()
    assert desk.check(Kind.CONTRADICTED) is Weight.PROVEN
    settle(desk)
    desk.receipt(2)
    cosign_as_another(desk, 8)
    await proven(desk, 2)
    assert desk.evidence.standing() == ()
    assert desk.study.proof(ONE).read_bytes() == lost


async def test_an_update_that_is_known_to_be_lost_is_settled_before_it_is_missed(
    desk: Desk,
) -> None:
    desk.receipt(log_leaf_hash=digest_of(b"in the log that was lost"))
    settled = desk.evidence.path / "settled"
    settled.mkdir(parents=True)
    # As the runbook of a restore has it typed.
    (settled / f"agreed-{desk.study.path.name}-round-000001.json").touch()
    desk.receipt(2)
    await proven(desk, 2)
    assert desk.evidence.standing() == ()


async def test_a_receipt_of_another_federation_is_no_business_of_this_log(desk: Desk) -> None:
    desk.receipt(federation_id="another-study", log_leaf_hash=digest_of(b"another leaf"))
    desk.receipt(2)
    await proven(desk, 2)
    assert not desk.study.proof(ONE).exists()
    assert desk.evidence.standing() == ()


async def test_a_hospital_leaves_when_all_there_is_is_cosigned_and_proven(desk: Desk) -> None:
    desk.log.faults.offer_size = 5
    desk.receipt()
    desk.log.note("model_released")
    async with desk.witness() as witness:
        task = asyncio.create_task(witness.run(may_speak=lambda: True))
        leaving = asyncio.create_task(witness.settle())
        await until(lambda: desk.cosigned(5) and len(desk.log.asked) > 3)
        assert not leaving.done()
        desk.log.faults.offer_size = 6
        await until(lambda: desk.study.proof(ONE).exists() and desk.cosigned(6))
        asked = len(desk.log.asked)
        await until(lambda: len(desk.log.asked) > asked + 2)
        assert not leaving.done()
        desk.log.faults.abort_cosignature = [Status.FAILED_PRECONDITION] * 5
        desk.log.faults.offer_size = None
        await asyncio.wait_for(leaving, 20)
        assert desk.cosigned(7)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_hospital_does_not_leave_before_its_last_update_is_proven(desk: Desk) -> None:
    desk.receipt()
    desk.log.faults.abort_inclusion = [Status.INVALID_ARGUMENT] * 5
    async with desk.witness() as witness:
        task = asyncio.create_task(witness.run(may_speak=lambda: True))
        await asyncio.wait_for(witness.settle(), 20)
        assert desk.study.proof(ONE).exists()
        assert len(desk.log.proved) == 6
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
