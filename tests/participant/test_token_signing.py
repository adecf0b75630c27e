"""A participant whose keys are in a token: what happens to a round while it is away."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from matl_common.identity.keys import load_ed25519_private_key, load_private_key
from matl_common.identity.node_folder import NodeFolder
from matl_common.identity.pkcs11.uri import TokenUri
from matl_common.ids import NodeId
from matl_participant.config import Config
from matl_participant.core.account import AttemptState
from matl_participant.engine import Outcome
from tests.participant.simulator import HOSPITAL, SimulatedCoordinator
from tests.participant.test_daemon import Hospital, running, until
from tests.participant.witness_desk import Desk
from tests.softhsm import TokenFolder

pytestmark = pytest.mark.hsm


@dataclass
class TokenHospital(Hospital):
    """A hospital that signs with a token."""

    uri: TokenUri | None = None

    @property
    def config(self) -> Config:
        config = super().config
        identity = config.identity.model_copy(update={"signing_key": self.uri})
        return config.model_copy(update={"identity": identity})


@pytest.fixture
def hospital(
    tmp_path: Path,
    keys: dict[NodeId, NodeFolder],
    coordinator: SimulatedCoordinator,
    tokens: TokenFolder,
) -> TokenHospital:
    tokens.put("hsm", "sign", load_private_key(keys[HOSPITAL].signing_key))
    uri = tokens.uri("hsm", "sign")
    return TokenHospital(tmp_path, keys, coordinator.address, uri=uri)


async def test_an_update_is_signed_in_a_token(
    hospital: TokenHospital, coordinator: SimulatedCoordinator
) -> None:
    coordinator.open_round(1)
    async with running(hospital) as run:
        await until(lambda: hospital.states() == [AttemptState.ACKNOWLEDGED])
        coordinator.complete()
        assert await run.outcome() is Outcome.FINISHED


async def test_without_the_token_no_budget_is_spent_and_with_it_the_round_goes_on(
    hospital: TokenHospital,
    coordinator: SimulatedCoordinator,
    tokens: TokenFolder,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with running(hospital):
        await until(lambda: len(hospital.jobs("prepare")) == 1)
        with tokens.taken_away():
            tokens.restart()
            coordinator.open_round(1)
            said = ""

            def complained() -> bool:
                nonlocal said
                said += capsys.readouterr().out
                return "participant.retrying" in said and "is not there" in said

            await until(complained)
            assert hospital.account().attempts == ()
            assert hospital.jobs("train") == []
        await until(lambda: hospital.states() == [AttemptState.ACKNOWLEDGED])
    assert len(hospital.jobs("train")) == 1


async def test_a_result_waits_for_the_token_and_is_signed_once_it_is_back(
    hospital: TokenHospital, coordinator: SimulatedCoordinator, tokens: TokenFolder
) -> None:
    hospital.control(train="wait")
    coordinator.open_round(1)
    async with running(hospital) as run:
        await until(lambda: len(hospital.jobs("train")) == 1)
        with tokens.taken_away():
            tokens.restart()
            hospital.control()
            await until(lambda: "seal" in run.participant._run.failures)
            assert hospital.states() == [AttemptState.RESERVED]
            assert hospital.files("**/*.manifest.json") == []
        await until(lambda: hospital.states() == [AttemptState.ACKNOWLEDGED])
    # Trained once, charged once.
    assert len(hospital.jobs("train")) == 1
    assert len(coordinator.receipts) == 1


async def test_a_participant_that_waits_for_its_token_can_be_stopped(
    hospital: TokenHospital, coordinator: SimulatedCoordinator, tokens: TokenFolder
) -> None:
    hospital.control(train="wait")
    coordinator.open_round(1)
    async with running(hospital) as run:
        await until(lambda: len(hospital.jobs("train")) == 1)
        with tokens.taken_away():
            tokens.restart()
            hospital.control()
            await until(lambda: "seal" in run.participant._run.failures)
            run.participant.drain()
            assert await run.outcome() is Outcome.DRAINED
    assert hospital.states() == [AttemptState.RESERVED]
    # As after any other interruption, what it cost stays spent.
    async with running(hospital):
        await until(lambda: hospital.states() == [AttemptState.ABANDONED])


async def test_a_witness_cosigns_in_a_token_and_waits_for_it(
    desk: Desk, tokens: TokenFolder
) -> None:
    tokens.put("hsm", "witness", load_ed25519_private_key(desk.hospital.keys[HOSPITAL].witness_key))
    desk.hospital.witness_key = tokens.uri("hsm", "witness")  # type: ignore[assignment]
    async with desk.running():
        await until(lambda: desk.cosigned(5))
        with tokens.taken_away():
            tokens.restart()
            desk.log.note("while the token is away")
            await until(lambda: desk.kept_size() == 6)
            assert not desk.log.lines.get(6)
        await until(lambda: desk.cosigned(6))
    assert desk.evidence.standing() == ()
