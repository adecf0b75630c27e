"""A ledger that has forgotten something is noticed by what was kept beside it."""

from pathlib import Path

import pytest

from matl_common import signing
from matl_common.identity.held_keys import load_p256_key
from matl_common.identity.node_folder import NodeFolder
from matl_common.ids import Digest, NodeId, RoundId, digest_of
from matl_common.protocol import PayloadType, Receipt
from matl_common.wire.documents import format_receipt
from matl_participant.core.account import Account, Attempt, AttemptState
from matl_participant.core.evidence import Evidence, why_behind
from matl_participant.files import StateFolder
from tests.participant.simulator import COORDINATOR
from tests.participant.test_ledger import BASE, NOW, PLANNED, STEPS, UPDATE

pytestmark = pytest.mark.privacy

OTHER_UPDATE = digest_of(b"another update")


def attempt(number: int, *, update: Digest | None = None) -> Attempt:
    return Attempt(RoundId(number), STEPS, BASE, AttemptState.ABANDONED, update)


def receipt(number: int, update: Digest | None = UPDATE) -> Evidence:
    return Evidence(RoundId(number), update)


@pytest.mark.parametrize(
    ("attempts", "evidence", "is_behind"),
    [
        ((), (), False),
        ((attempt(1, update=UPDATE),), (receipt(1),), False),
        ((attempt(1, update=UPDATE), attempt(2)), (receipt(1), receipt(2, None)), False),
        # The ledger was emptied.
        ((), (receipt(1),), True),
        # Its last round is missing.
        ((attempt(1, update=UPDATE),), (receipt(1), receipt(2)), True),
        # The second attempt at a round is missing; the first is there.
        ((attempt(1),), (receipt(1),), True),
        ((attempt(1, update=OTHER_UPDATE),), (receipt(1),), True),
        ((attempt(1), attempt(1, update=UPDATE)), (receipt(1),), False),
        # A round in the middle, of a chain made up later.
        ((attempt(2, update=UPDATE),), (receipt(1, OTHER_UPDATE),), True),
        # Something was sealed in a round that was never charged.
        ((attempt(1),), (receipt(2, None),), True),
    ],
)
def test_what_was_receipted_or_sealed_must_have_been_charged(
    attempts: tuple[Attempt, ...],
    evidence: tuple[Evidence, ...],
    is_behind: bool,  # noqa: FBT001 - pytest passes by name
) -> None:
    why = why_behind(Account(PLANNED, attempts), evidence)
    assert (why is not None) is is_behind
    if why is not None:
        assert "Restore the newest copy" in why


def test_the_files_of_a_study_are_evidence(tmp_path: Path, keys: dict[NodeId, NodeFolder]) -> None:
    state = StateFolder(tmp_path)
    with state.owned():
        folder = state.study("study")
        assert folder.evidence() == ()
        signer = load_p256_key(keys[COORDINATOR].signing_key)
        told = Receipt(
            federation_id="dr-study",
            study_id="study",
            round_id=RoundId(4),
            node_id=NodeId("hospital_a"),
            update_digest=UPDATE,
            log_index=1,
            log_leaf_hash=BASE,
            admitted_at=NOW,
        )
        envelope = signing.sign(PayloadType.RECEIPT, format_receipt(told), signer)
        folder.write_receipt(RoundId(4), envelope)
        folder.update(RoundId(5)).write_bytes(b"\0")
        folder.manifest(RoundId(5)).write_bytes(b"{}")
        assert folder.evidence() == (receipt(4), receipt(5, None))
        # A receipt that cannot be read any more still shows that there was a round.
        (folder.receipts / "round-000004.json").write_bytes(b"{}")
        assert folder.evidence() == (receipt(4, None), receipt(5, None))
