"""The alert rules by promtool, and the dashboards as Grafana would lay them out."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.docs.shell import ROOT
from tests.prometheus import DEPLOYED, IS_HERE, MISSING, promtool

DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
RULES = sorted(path.name for path in DEPLOYED.glob("*.rules.yml"))
TESTS = sorted(path.name for path in DEPLOYED.glob("*.test.yml"))
needs_promtool = pytest.mark.skipif(not IS_HERE, reason=MISSING)


def panels_of(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["panels"]
    return found


def names(files: list[str], pattern: str) -> list[str]:
    return [name for each in files for name in re.findall(pattern, (DEPLOYED / each).read_text())]


def test_every_alert_has_a_test_of_its_own() -> None:
    alerts, tested = names(RULES, r"alert: (\w+)"), names(TESTS, r"- name: (\w+)")
    assert sorted(alerts) == sorted(tested)
    assert len(set(alerts)) == len(alerts)


def test_the_jobs_that_rules_ask_for_are_the_examples_and_on_the_page() -> None:
    asked = set(names(RULES, r'job="([^"]+)"'))
    assert asked == set(names(["prometheus.yml"], r"job_name: (\S+)"))
    page = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
    assert asked <= set(re.findall(r"`(matl-[a-z-]+)`", page))


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_lie_beside_one_another_and_each_says_what_it_shows(dashboard: Path) -> None:
    panels = panels_of(dashboard)
    assert len({each["id"] for each in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["description"].endswith((".", "it.")), panel["title"]
            assert panel["targets"], panel["title"]
    for one, other in combinations([each["gridPos"] for each in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


@pytest.mark.prometheus
@needs_promtool
def test_rules_and_the_example_are_valid() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", *RULES)
    promtool("check", "config", "prometheus.yml")


@pytest.mark.prometheus
@needs_promtool
def test_every_alert_is_quiet_until_what_it_waits_for_and_fires_then() -> None:
    promtool("test", "rules", *TESTS)


@pytest.mark.prometheus
@needs_promtool
def test_a_rule_that_promtool_refuses_is_noticed(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yml"
    text = (DEPLOYED / RULES[0]).read_text()
    broken.write_text(text.replace("matl_study_paused == 1", "matl_study_paused =="))
    with pytest.raises(AssertionError, match="parse error"):
        promtool("check", "rules", str(broken))
