"""The runbooks: every command parses, every name exists, and every alert has one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from matl_coordinator.ingest.metrics import FrontEndMetrics
from matl_coordinator.metrics import Metrics
from matl_participant.metrics import ACTIONS
from matl_participant.metrics import Metrics as HospitalMetrics
from tests.docs.shell import OURS, ROOT, Shown, commands_in, fenced, refusal

RUNBOOKS = ROOT / "docs" / "runbooks"
PAGES = sorted(path for path in RUNBOOKS.glob("*.md") if path.stem != "README")
RULES = sorted((ROOT / "deploy" / "prometheus").glob("*.rules.yml"))
ALERTS = {
    name: page
    for path in RULES
    for name, page in re.findall(
        r"alert: (\w+)\n.*?runbook_url: (\S+)", path.read_text("utf-8"), re.DOTALL
    )
}
OF_THE_SYSTEM = frozenset(
    [
        "cat",
        "chmod",
        "chown",
        "cp",
        "createdb",
        "curl",
        "date",
        "df",
        "du",
        "for",
        "grep",
        "journalctl",
        "ls",
        "mkdir",
        "mv",
        "openssl",
        "pg_basebackup",
        "pg_isready",
        "pg_rewind",
        "promtool",
        "psql",
        "rm",
        "sha256sum",
        "sort",
        "ss",
        "systemctl",
        "systemd-tmpfiles",
        "tail",
    ]
)
SYSTEMD = ROOT / "deploy" / "systemd"
UNITS = {
    *(path.stem for path in SYSTEMD.glob("*.service")),
    *(path.name for path in SYSTEMD.glob("*.timer")),
    "postgresql",
    "prometheus",
}
OF_OTHERS = {"pg_basebackup", "pg_dump", "pg_rewind", "synchronous_standby_names"}
STATEMENTS = ("SELECT", "SHOW", "ALTER", "VACUUM")


def text_of(path: Path) -> str:
    return path.read_text("utf-8")


def known_metrics(registry: CollectorRegistry) -> set[str]:
    """Families, and what they expose."""
    suffixes = ("", "_total", "_bucket", "_sum", "_count", "_info")
    return {f"{each.name}{suffix}" for each in registry.collect() for suffix in suffixes}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_runbook_parses(page: Path) -> None:
    text = text_of(page)
    for script in fenced(text):
        checked = subprocess.run(
            ["bash", "-n"], input=script, capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, (script, checked.stderr)
    for shown in commands_in(text):
        if shown.program in OURS:
            assert refusal(shown) is None, (shown.words, refusal(shown))
        else:
            assert shown.program in OF_THE_SYSTEM, shown.words
            check_of_the_system(shown)


def check_of_the_system(shown: Shown) -> None:
    words = shown.arguments
    if shown.program == "systemctl":
        assert words[0] in ("disable", "restart", "start", "status", "stop"), words
        assert words[1] in UNITS, words
    if shown.program == "systemd-tmpfiles":
        assert words[0] == "--create", words
        assert (ROOT / "deploy" / "systemd" / "tmpfiles.d" / words[1]).is_file(), words
    if shown.program == "journalctl" and "-u" in words:
        assert words[words.index("-u") + 1] in UNITS, words
    if shown.program == "psql" and "-c" in words:
        statement = words[words.index("-c") + 1]
        assert statement.split()[0] in STATEMENTS, statement
        assert statement.count("(") == statement.count(")"), statement
        assert statement.count("'") % 2 == 0, statement
    if shown.program == "psql" and "-f" in words:
        assert (ROOT / words[words.index("-f") + 1]).is_file(), words


def test_a_command_that_does_not_exist_is_noticed() -> None:
    for script in (
        "matl sttus",
        "matl quarantine hospital_e",
        "matl quarantine hospital_e --reason why --force",
        "matl audit tail --since yesterday",
        "matl-coordinator --configuration coordinator.toml",
        "runuser -u matl -- /opt/matl/bin/matl restor BACKUP",
        "python scripts/deploy_medical_fl.py --role coordinator --hospital a",
    ):
        (shown,) = commands_in(f"```sh\n{script}\n```\n")
        assert refusal(shown) is not None, script
    (named,) = commands_in("Say `matl quarantine` then.")
    assert refusal(named) is None


def test_every_alert_has_a_runbook_that_names_it_and_no_runbook_names_another() -> None:
    assert len(ALERTS) > 40
    for name, page in ALERTS.items():
        assert name in text_of(ROOT / page), (name, page)
    named = {name for page in PAGES for name in re.findall(r"\bMatl[A-Z]\w+", text_of(page))}
    assert named == set(ALERTS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_runbook_says_when_it_is_over_and_leads_to_what_exists(page: Path) -> None:
    text = text_of(page)
    assert "\n## It is over when\n" in text
    for target in re.findall(r"\]\(([^)#]+\.md)(?:#[^)]*)?\)", text):
        assert (page.parent / target).is_file(), target


def test_metrics_that_runbooks_name_exist(tmp_path: Path) -> None:
    ours, theirs = Metrics(), HospitalMetrics()
    ours.watch_disk(tmp_path, spool_quota_bytes=1)
    theirs.watch_disk(tmp_path)
    registries = (ours.registry, theirs.registry, FrontEndMetrics(methods=()).registry)
    known = set[str]().union(*map(known_metrics, registries))
    # A role of the database.
    known.add("matl_log_writer")
    for page in PAGES:
        named = set(re.findall(r"\bmatl_\w+", text_of(page)))
        assert named <= known, (page.stem, named - known)


def test_log_lines_reasons_and_settings_that_runbooks_name_exist() -> None:
    packages = ("matl", "matl_common", "matl_coordinator", "matl_participant")
    source = "".join(text_of(path) for each in packages for path in (ROOT / each).rglob("*.py"))
    words = set(re.findall(r"[\w.]+", source)) | set(re.findall(r"\w+", source))
    for page in PAGES:
        named = set(
            re.findall(r"`(participant\.[a-z_]+|(?!matl_)[a-z]+(?:_[a-z]+)+)`", text_of(page))
        )
        assert named - {"participant.toml"} - OF_OTHERS <= words, (page.stem, named - words)


def test_the_list_of_runbooks_is_whole() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", text_of(RUNBOOKS / "README.md")))
    assert listed == {page.name for page in PAGES}


def test_the_page_of_failing_actions_has_a_line_for_each_that_the_rule_counts() -> None:
    rule = text_of(ROOT / "deploy" / "prometheus" / "participant.rules.yml")
    (counted,) = re.findall(r'failures_total\{action=~"(\S+)"\}', rule)
    page = text_of(RUNBOOKS / "participant-failing.md")
    table = [line.split("|")[1] for line in page.splitlines() if line.startswith("   | `")]
    told = [action for cell in table for action in re.findall(r"`(\w+)`", cell)]
    assert sorted(told) == sorted(counted.split("|"))
    # Leaving is tried once, and witnessing has an alert of its own.
    assert set(ACTIONS) - set(told) == {"take_leave", "witness"}
