"""A real Prometheus watches a live federation by the rules and dashboards that we deliver."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from urllib.request import urlopen

import pytest

from matl_common.ids import NodeId
from tests.postgres import free_port
from tests.prometheus import (
    IS_HERE,
    MISSING,
    Prometheus,
    metrics_named,
    promtool,
    running_prometheus,
)
from tests.system.federation import Federation, Material, found_federation
from tests.system.front_end import FrontEnd
from tests.system.processes import ROOT, Daemon, until

pytestmark = [
    pytest.mark.prometheus,
    pytest.mark.system,
    pytest.mark.skipif(not IS_HERE, reason=MISSING),
]
DASHBOARDS = {
    path.stem: json.loads(path.read_text("utf-8"))
    for path in sorted((ROOT / "deploy" / "grafana").glob("*.json"))
}
NOT_ASKED_FOR = {"matl_hospital_noised_accuracy_ratio"}
"""A metric of studies that ask hospitals how often a model is right; this one does not."""


@dataclass(frozen=True)
class Watched:
    """What Prometheus knew of a federation after a round."""

    series: frozenset[str]
    described: frozenset[str]
    rules: list[dict[str, Any]]
    panels: dict[str, list[Any]]
    """The answer to each query of a dashboard."""
    firing: list[Any]
    exposed: tuple[str, ...]
    """What each daemon exposed."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    federation = found_federation(
        folder, material, study={"rounds": 2}, rounds={"schedule": "manual"}
    )
    ports = {node: free_port() for node in federation.hospitals}
    front_end = FrontEnd(federation, NodeId("front_1"), federation.address)
    targets = {
        "127.0.0.1:9470": [f"127.0.0.1:{federation.metrics_port}"],
        "127.0.0.1:9472": [f"127.0.0.1:{front_end.metrics_port}"],
        "127.0.0.1:9471": [f"127.0.0.1:{port}" for port in ports.values()],
    }
    (folder / "prometheus").mkdir()
    with ExitStack() as running:
        prometheus = running.enter_context(running_prometheus(folder / "prometheus", targets))
        coordinator = running.enter_context(federation.start_coordinator())
        coordinator.wait_for("coordinator_ready")
        running.enter_context(front_end.start())
        for node, port in ports.items():
            running.enter_context(_hospital_with_metrics(federation, node, port))
        with federation.operator() as operator:
            operator.start_round("watched")
            coordinator.wait_for("model_published", round=1)
        until(lambda: _is_settled(prometheus), what="a look since the release was scraped")
        yield Watched(
            series=frozenset(prometheus.ask("label/__name__/values")),
            described=frozenset(each["metric"] for each in prometheus.ask("targets/metadata")),
            rules=[rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]],
            panels={query: prometheus.query(query) for query in all_queries()},
            firing=prometheus.query('ALERTS{alertstate="firing"}'),
            exposed=tuple(
                map(_exposed, [federation.metrics_port, front_end.metrics_port, *ports.values()])
            ),
        )


def _hospital_with_metrics(federation: Federation, node: NodeId, port: int) -> Daemon:
    path = federation.participant_config(node, address="", changes={})
    text = path.read_text().replace("[daemon]\n", f'[daemon]\nmetrics = "127.0.0.1:{port}"\n')
    path.write_text(text)
    module = "tests.system.scripted_hospital"
    direction = str(federation.direction)
    return Daemon("-m", module, str(path), str(federation.control(node)), direction)


def _is_settled(prometheus: Prometheus) -> bool:
    """Whether a look since the release was scraped, and the hospitals' receipts as well."""
    return bool(
        prometheus.query("matl_rounds_released == 1 and matl_log_witnessed_entries > 0")
        and len(prometheus.query("matl_participant_update_admitted_timestamp_seconds > 0")) == 3
        and len(prometheus.query("matl_trust_score")) == 3
        and prometheus.query("matl_front_end_leader_reachable == 1")
    )


def _exposed(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return str(answer.read().decode())


def all_queries() -> list[str]:
    return [
        target["expr"]
        for dashboard in DASHBOARDS.values()
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]


def test_every_metric_that_a_rule_or_a_panel_names_was_scraped(watched: Watched) -> None:
    named = frozenset[str]().union(
        *(metrics_named(rule["query"]) for rule in watched.rules),
        *(metrics_named(query) for query in all_queries()),
    )
    assert len(named) > 50
    assert named - watched.series == NOT_ASKED_FOR
    assert watched.described >= NOT_ASKED_FOR


def test_every_rule_is_evaluated_and_a_healthy_federation_raises_no_alarm(
    watched: Watched,
) -> None:
    assert len(watched.rules) > 40
    failing = {
        rule["name"]: rule.get("lastError") for rule in watched.rules if rule["health"] != "ok"
    }
    assert failing == {}
    assert watched.firing == []


def test_every_panel_shows_something_but_those_of_what_did_not_happen(watched: Watched) -> None:
    # A filter lets pass what is worth a look; there may be nothing.
    empty = {
        query
        for query, found in watched.panels.items()
        if not found and " > 0" not in query and not metrics_named(query) & NOT_ASKED_FOR
    }
    assert empty <= {"max(matl_participant_dataset_epsilon_limit < +Inf)"}


def test_what_the_daemons_expose_is_named_by_convention(watched: Watched) -> None:
    for exposed in watched.exposed:
        promtool("check", "metrics", stdin=exposed)
