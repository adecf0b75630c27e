"""A client of daemons: a real coordinator's study, over mutual TLS."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from matl import (
    DifferentialPrivacy,
    MATLClient,
    MATLMode,
    plot_medical_fl_results,
    train_federated_medical_ai,
    verify_hipaa_compliance,
)
from matl.audit import AuditLogger
from matl.checklist import SafeguardsError
from matl.operations import Participant
from matl.results import read_history
from matl.sdk.federation import RawGradientError
from matl.sdk.live import BrokenPromiseError, check_promise, mode_of
from matl_common.errors import ConfigurationError, MatlError
from matl_common.identity.certificates import Role, SpiffeId
from tests.coordinator.harness import COORDINATOR, NODES, OPERATOR, Site, make_site, play, running
from tests.sdk.serving import Desk, serving


@dataclass(frozen=True)
class Federation:
    """A study of two rounds that is over, and its coordinator."""

    site: Site
    desk: Desk
    logger: AuditLogger

    def client(self, **arguments: Any) -> MATLClient:
        mine = self.site.nodes[OPERATOR].tls
        name = SpiffeId(self.site.allowlist.federation, Role.COORDINATOR, COORDINATOR)
        wanted: dict[str, Any] = {
            "node_id": "hospital_a",
            "coordinator_address": f"127.0.0.1:{self.desk.port}",
            "coordinator": str(name),
            "private_key": mine.private_key,
            "certificate": mine.certificate_chain,
            "authority": mine.trusted_authority,
            "audit_logger": self.logger,
        }
        return MATLClient(**{**wanted, **arguments})


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("live")
    site = make_site(folder)

    async def whole_study() -> None:
        async with running(site) as coordinator:
            await play(coordinator)

    asyncio.run(whole_study())
    with ExitStack() as stack:
        desk = stack.enter_context(serving(site, site.connect_store()))
        logger = stack.enter_context(AuditLogger(folder=folder / "audit"))
        yield Federation(site, desk, logger)


def test_a_client_tells_what_the_coordinator_tells(federation: Federation) -> None:
    with federation.client() as client:
        assert client.is_connected
        assert client.allowed_nodes == NODES
        assert client.get_current_round() == 2
        assert 0.0 < client.get_accuracy() < 100.0
        assert list(client.get_trust_scores_df().index) == list(NODES)
        assert client.mode is MATLMode.MODE1
        assert "may be hostile" in client.claim
        assert client.encryption_enabled
        assert client.use_tls
        assert "model_released" in {each["event"] for each in client.get_recent_events(20)}
        assert client.get_remaining_privacy_budget() == math.inf
        assert client.get_budget_fraction() == pytest.approx(2 / 4)


def test_its_history_is_that_of_the_coordinators_folder(
    federation: Federation, tmp_path: Path
) -> None:
    live = read_history(federation.client())
    kept = read_history(federation.site.config.state_dir)
    assert live.rounds == kept.rounds == [1, 2]
    assert live.accuracy == pytest.approx(kept.accuracy)
    for name, values in kept.trust.items():
        assert live.trust[name] == pytest.approx(values)
    assert plot_medical_fl_results(federation.client(), tmp_path / "live.png").is_file()


def test_what_was_asked_for_is_held_against_the_study(federation: Federation) -> None:
    with pytest.raises(BrokenPromiseError, match="mode2 was asked for"):
        federation.client(mode=MATLMode.MODE2).get_current_round()
    assert federation.client(mode=MATLMode.MODE0).get_current_round() == 2
    with pytest.raises(BrokenPromiseError, match="hospital_c is enrolled"):
        _ = federation.client(allowed_nodes=NODES[:2]).allowed_nodes
    with pytest.raises(BrokenPromiseError, match="may spend inf"):
        federation.client(privacy=DifferentialPrivacy()).get_trust_scores()


def test_nobody_waits_for_rounds_of_a_study_that_breaks_a_promise(federation: Federation) -> None:
    with pytest.raises(BrokenPromiseError, match="may spend inf"):
        federation.client(privacy=DifferentialPrivacy()).watch(1)


def test_a_study_that_breaks_a_promise_is_still_one_over_tls(federation: Federation) -> None:
    assert federation.client(mode=MATLMode.MODE2).use_tls


@pytest.mark.parametrize(
    ("epsilon", "delta", "broken"),
    [(1.0, 1e-5, ""), (0.5, 1e-6, ""), (1.5, 1e-5, "epsilon=1 "), (1.0, 0.1, "delta=1e-05 ")],
)
def test_a_promise_is_of_epsilon_and_of_delta(epsilon: float, delta: float, broken: str) -> None:
    hospital = Participant("a", 0.7, "trusted", "", 100, None, 0.1, epsilon, 0.1, 1, "", delta)
    privacy = DifferentialPrivacy(epsilon=1.0, delta=1e-5)
    if not broken:
        check_promise(privacy, [hospital])
        return
    with pytest.raises(BrokenPromiseError, match=broken):
        check_promise(privacy, [hospital])


def test_simulated_evidence_leaves_mode1() -> None:
    assert mode_of("mode2") is MATLMode.MODE2
    assert mode_of("mode2-SIMULATED") is MATLMode.MODE1
    with pytest.raises(BrokenPromiseError, match="mode unknown"):
        mode_of("")


def test_no_raw_gradient_and_no_data_set_passes_a_connected_client(
    federation: Federation,
) -> None:
    client = federation.client()
    with pytest.raises(RawGradientError, match="matl-participant"):
        client.submit_gradient([[1.0]])
    with pytest.raises(RawGradientError, match="by itself"):
        client.aggregate([[1.0]])
    with pytest.raises(ConfigurationError, match="hospital_datasets="):
        train_federated_medical_ai([["data"]], client)


def test_waiting_for_rounds_ends_with_the_study(federation: Federation) -> None:
    with pytest.raises(MatlError, match="the study ended after 2 rounds"):
        train_federated_medical_ai((), federation.client(), num_rounds=1)
    network, history = train_federated_medical_ai((), federation.client(), num_rounds=0)
    assert network is None
    assert history["rounds"] == [1, 2]


def test_safeguards_are_looked_up_and_said_by_row(federation: Federation) -> None:
    told: list[str] = []
    # What is asked of a study is not what this one does: the row is about the client's own limit.
    with pytest.raises(SafeguardsError, match="give privacy=") as failed:
        verify_hipaa_compliance(federation.client(), report=told.append)
    assert [each.name for each in failed.value.rows] == ["differential privacy"]
    assert sum(line.startswith("PASS") for line in told) == 4
    assert "PASS        the coordinator's log encrypted: its newest entry" in "\n".join(told)
    # Nobody wrote to this client's own.
    untested = [line for line in told if line.startswith("NOT-TESTED")]
    assert [line.partition(": ")[2] for line in untested] == ["nothing is logged yet"] * 2
    assert isinstance(failed.value, RuntimeError)


def test_a_coordinator_that_does_not_answer_fails_its_rows(federation: Federation) -> None:
    client = federation.client(coordinator_address="127.0.0.1:9", privacy=DifferentialPrivacy())
    with pytest.raises(SafeguardsError) as failed:
        verify_hipaa_compliance(client, report=lambda _: None)
    assert [each.name for each in failed.value.rows] == [
        "the coordinator's log encrypted",
        "access restricted",
        "mutual TLS",
    ]


def test_an_address_where_nobody_answers_is_no_connection(federation: Federation) -> None:
    client = federation.client(coordinator_address="127.0.0.1:9")
    assert not client.use_tls


def test_an_incomplete_address_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="certificate"):
        MATLClient(node_id="hospital_a", coordinator_address="127.0.0.1:8470")
