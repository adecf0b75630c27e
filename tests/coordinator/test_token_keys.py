"""A coordinator whose keys are in a token: what waits while it is away, and goes on after."""

import asyncio
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from matl_common.identity.held_keys import KeyKind, generate_key
from matl_common.identity.pkcs11.session import TokenError
from matl_coordinator.rpc.statuses import status_of
from tests.coordinator.harness import make_site, running
from tests.logs import some_entries
from tests.softhsm import TokenFolder

pytestmark = pytest.mark.hsm


async def test_checkpoints_wait_for_the_token_of_the_logs_key(
    tmp_path: Path, tokens: TokenFolder
) -> None:
    site = make_site(tmp_path / "site")
    generate_key(tokens.uri("hsm", "log"), KeyKind.ED25519)
    update = {"log_key": tokens.uri("hsm", "log")}
    identity = site.config.identity.model_copy(update=update)
    site = replace(site, config=site.config.model_copy(update={"identity": identity}))
    store = site.connect_store()
    store.load()
    store.commit([], some_entries("a"))
    checkpoints = site.checkpoints(store)
    assert (await checkpoints.newest()).size == 1
    store.commit([], some_entries("b"))
    with tokens.taken_away():
        tokens.restart()
        with pytest.raises(TokenError):
            await checkpoints.newest()
        before = await checkpoints.latest()
        assert before is not None
        assert before.size == 1
    assert (await checkpoints.newest()).size == 2


async def test_no_round_is_scheduled_that_nobody_could_be_invited_to(
    tmp_path: Path, tokens: TokenFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_site(tmp_path / "site")
    generate_key(tokens.uri("hsm", "sign"), KeyKind.P256)
    update = {"signing_key": tokens.uri("hsm", "sign")}
    identity = site.config.identity.model_copy(update=update)
    rounds = site.config.rounds.model_copy(update={"schedule": "manual"})
    changes = {"identity": identity, "rounds": rounds}
    site = replace(site, config=site.config.model_copy(update=changes))
    async with running(site) as coordinator:
        conductor = coordinator.use_cases.conductor
        with tokens.taken_away():
            tokens.restart()
            conductor.start_round()
            said = ""
            async with asyncio.timeout(20):
                while "step_failed" not in said:
                    await asyncio.sleep(0.01)
                    said += capsys.readouterr().out
            assert (await coordinator.register.state()).round is None
        async with asyncio.timeout(20):
            while (state := await coordinator.register.state()).round is None:
                await coordinator.register.wait_for_change(state, seconds=1.0)


def test_a_hospital_is_told_to_try_again_and_not_where_the_token_is() -> None:
    code, text = status_of(TokenError("the token of pkcs11:token=hsm;object=sign is not there"))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "pkcs11" not in text
