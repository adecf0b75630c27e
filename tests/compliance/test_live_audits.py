"""Audits of a live federation: one control broken at a time, and the command that people use.

One file, so that one worker of the suite runs the one federation.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from matl.compliance.audit import audit, participant_site, probed
from matl.compliance.catalogue import CONTROLS, controls_of
from matl.compliance.commands import app
from matl.compliance.control import Side, Status
from matl.compliance.logbook import Logbook
from matl.compliance.probes import access, authentication, encryption, logoff
from matl.compliance.registry import Registry
from matl_common.identity.held_keys import KeyKind, generate_key
from matl_common.identity.key_places import create_wrapping_key
from matl_common.ids import digest_of
from matl_common.tlog.verification import StoredLeaf
from matl_coordinator.config import load_config
from matl_participant.config import load_config as load_participant
from tests.compliance import sabotage
from tests.compliance.live import UNDIALLED, Live, failing, site_of, statuses
from tests.compliance.sabotage import Change, other_log_settings, other_registry
from tests.compliance.words import forbidden_in
from tests.softhsm import TokenFolder
from tests.system.federation import COORDINATOR, HOSPITALS

pytestmark = [pytest.mark.hostile, pytest.mark.postgres, pytest.mark.certificates]

KNOWN_BROKEN = {"authentication.hsm", "privacy.spent"}
"""Keys lie in files here, and the study of the suite promises no privacy; see test_probes."""

Saboteur = Callable[[Live], AbstractContextManager[Change]]

AT_THE_PORT = {"access.certificates", "transmission.tls", "transmission.plaintext"}
"""What is broken where the daemon is dialled; the rest is probed beside it, which is fast."""

SABOTEURS: dict[str, tuple[Saboteur, set[str]]] = {
    "a server that lets everybody in": (
        sabotage.a_server_that_lets_everybody_in,
        {"access.certificates"},
    ),
    "a dashboard for everybody": (sabotage.a_dashboard_for_everybody, {"access.dashboard"}),
    "a private key in the state folder": (
        sabotage.a_private_key_in_the_state_folder,
        {"encryption.files"},
    ),
    "a changed hash in the tree": (sabotage.a_changed_hash, {"audit.integrity"}),
    "a reader who may write": (sabotage.a_reader_who_may_write, {"audit.roles"}),
    "a round without entries": (sabotage.a_round_without_entries, {"audit.completeness"}),
    "a changed model": (sabotage.a_changed_model, {"integrity.updates"}),
    "a key that others read": (sabotage.a_key_that_others_read, {"authentication.keys"}),
    "a proxy that speaks TLS 1.2": (sabotage.a_proxy_that_speaks_tls_1_2, {"transmission.tls"}),
    "a proxy that speaks HTTP/2": (
        sabotage.a_proxy_that_speaks_http_2,
        {"transmission.plaintext"},
    ),
    "a changed backup": (sabotage.a_changed_backup, {"contingency.restore"}),
    "six years": (partial(other_log_settings, retention_years=6), {"retention.promise"}),
    "an agreement that has expired": (
        sabotage.an_agreement_that_has_expired,
        {"agreements.nodes"},
    ),
    "a hospital without an agreement": (
        partial(other_registry, old='node = "hospital_b"', new='node = "hospital_z"'),
        {"agreements.nodes"},
    ),
    "a scan of long ago": (sabotage.an_old_upload, {"inventory.scan"}),
    "a patient's data": (sabotage.a_patients_data, {"deidentification.scan"}),
    "another version than locked": (
        sabotage.another_version_than_locked,
        {"inventory.software"},
    ),
    "a socket nobody declared": (sabotage.a_socket_nobody_declared, {"inventory.sockets"}),
}


def test_with_nothing_broken_nothing_else_fails(live: Live) -> None:
    assert failing(live.sound) == KNOWN_BROKEN
    untested = {name for name, each in statuses(live.sound).items() if each is Status.NOT_TESTED}
    assert untested <= {"access.dashboard", "encryption.disk", "deidentification.burned-in"}


@pytest.mark.parametrize("name", SABOTEURS)
def test_exactly_the_row_of_the_broken_control_fails(live: Live, name: str) -> None:
    saboteur, rows = SABOTEURS[name]
    with saboteur(live) as change:
        found = live.audit(change, CONTROLS if rows <= AT_THE_PORT else UNDIALLED)
    assert failing(found) - KNOWN_BROKEN == rows
    broken = [each for each in found.findings if each.control.id in rows]
    assert all(each.outcome.evidence and each.outcome.remedy for each in broken)


def test_a_young_log_without_a_drill_and_a_review_is_not_sound_and_may_start(live: Live) -> None:
    rows = {"access.emergency-drill", "audit.review"}
    assert set(live.before_reviews.verdict.untested) & rows == rows
    assert set(live.after_drill.verdict.untested) & rows == {"audit.review"}
    assert failing(live.before_reviews) == failing(live.after_drill) == KNOWN_BROKEN


class UnencryptedLog(Logbook):
    """A log that lies in the database in the clear."""

    def stored(self, index: int) -> StoredLeaf:
        found = super().stored(index)
        return found._replace(payload=(found.payload or b"") + self.canary.word.encode())


class UnauthenticatedLog(Logbook):
    """A log that opens whatever was done to an entry."""

    def opened(self, stored: StoredLeaf, payload: bytes | None = None) -> Mapping[str, Any]:
        del payload
        return super().opened(stored)


@pytest.mark.parametrize(
    ("kind", "said"), [(UnencryptedLog, "in the clear"), (UnauthenticatedLog, "a bit changed")]
)
def test_a_log_that_is_not_encrypted_or_not_authenticated_is_found_out(
    live: Live, kind: type[Logbook], said: str
) -> None:
    with site_of(live.federation, live.folder) as site, kind(site.config) as log:
        found = probed(encryption.entries, replace(site, log=log))
    assert found.status is Status.FAIL
    assert said in found.evidence


def test_without_the_key_encryption_key_the_glass_cannot_be_broken(live: Live) -> None:
    key = live.federation.coordinator_state / "log-encryption.key"
    away = key.with_name("away.key")
    key.rename(away)
    try:
        found = statuses(live.audit(controls=UNDIALLED))
    finally:
        away.rename(key)
    assert found["access.emergency"] is Status.FAIL
    # Nothing is said of what cannot be read.
    assert found["encryption.entries"] is not Status.PASS
    assert found["audit.completeness"] is not Status.PASS


def test_two_nodes_with_one_key_are_found_out(live: Live, tmp_path: Path) -> None:
    config = load_config(live.config_file)
    text = config.federation.allowlist.read_text()
    first, second = [line for line in text.splitlines() if line.startswith("pins = ")][:2]
    shared = tmp_path / "allowlist.toml"
    shared.write_text(text.replace(second, first))
    federation = config.federation.model_copy(update={"allowlist": shared})
    with site_of(live.federation, live.folder) as site:
        change = config.model_copy(update={"federation": federation})
        found = probed(access.unique, replace(site, config=change))
    assert found.status is Status.FAIL
    assert "lists already" in found.evidence


def test_a_server_that_does_not_cut_silent_calls_is_found_out(live: Live) -> None:
    with (
        sabotage.a_server_that_lets_everybody_in(live, cuts=False) as change,
        site_of(live.federation, live.folder) as site,
    ):
        found = probed(logoff.logoff, change(site))
    assert found.status is Status.FAIL


def test_a_coordinator_that_does_not_run_is_not_tested_and_stands_against_the_whole(
    live: Live,
) -> None:
    with site_of(live.federation, live.folder) as site:
        report = audit(sabotage.at_address(site, 1))
    untested = set(report.verdict.untested)
    assert untested == {"access.certificates", "transmission.tls", "transmission.plaintext"}
    assert report.verdict.exit_status == 1


def verify(live: Live, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["-c", str(live.config_file), *arguments])


def entries(live: Live, event: str) -> list[Mapping[str, Any]]:
    with Logbook(load_config(live.config_file)) as log:
        return [each for each in log.events if each["event"] == event]


def test_a_full_audit_has_every_row_and_its_page_is_signed_and_on_record(
    live: Live, tmp_path: Path
) -> None:
    page = tmp_path / "safeguards.html"
    done = verify(live, "--full-audit", "--json", "--report", str(page))
    assert done.exit_code == 1, done.output
    said = json.loads(done.stdout)
    assert [each["control"] for each in said["findings"]] == [each.id for each in CONTROLS]
    assert all(each["evidence"] for each in said["findings"])
    broken = {each["control"] for each in said["findings"] if each["status"] == "FAIL"}
    # Sockets are this machine's here, and what listens on it is not for a test to say.
    assert broken - {"inventory.sockets"} == KNOWN_BROKEN
    (logged,) = entries(live, "safeguards_probed")
    assert logged["report"] == digest_of(page.read_bytes())
    assert set(logged["broken"]) == broken
    checked = verify(live, "--check", str(page))
    assert checked.exit_code == 0, checked.output
    assert "The log has it since" in checked.output
    key = str(live.federation.keys[HOSPITALS[0]].coordinator_signing_key)
    elsewhere = CliRunner().invoke(
        app, ["-c", str(tmp_path / "none.toml"), "--check", str(page), "--signing-key", key]
    )
    assert elsewhere.exit_code == 0, elsewhere.output
    assert not forbidden_in(done.output + checked.output + page.read_text())
    page.write_text(page.read_text().replace("PASS", "pass", 1))
    assert verify(live, "--check", str(page)).exit_code == 1


def test_a_part_of_it_is_a_table_for_people(live: Live) -> None:
    done = verify(live, "--audit-trail")
    assert done.exit_code == 0, done.output
    for shown in ("audit.integrity", "retention.kept", "164.312(b)", "PASS"):
        assert shown in done.output
    assert "transmission" not in done.output
    assert not forbidden_in(done.output)


def test_a_row_of_a_data_folder_and_a_single_control(live: Live) -> None:
    scanned = verify(live, "--phi-check")
    assert scanned.exit_code == 0, scanned.output
    assert "deidentification.scan" in scanned.output
    one = verify(live, "--control", "transmission.tls")
    assert one.exit_code == 0, one.output
    assert "access." not in one.output
    assert verify(live, "--control", "no.such").exit_code == 2


def test_a_review_is_put_on_record(live: Live) -> None:
    before = len(entries(live, "activity_reviewed"))
    done = verify(live, "--record-review", "refused connections of this week")
    assert done.exit_code == 0, done.output
    found = entries(live, "activity_reviewed")
    assert len(found) == before + 1
    assert found[-1]["said"] == "refused connections of this week"
    assert verify(live, "--record-review", " ").exit_code == 2


def test_the_table_and_the_help_say_nothing_of_an_organisations_standing() -> None:
    for arguments in (["--list"], ["--help"]):
        shown = CliRunner().invoke(app, arguments)
        assert shown.exit_code == 0
        assert not forbidden_in(shown.output)


def test_a_hospital_is_probed_for_what_is_on_its_own_machine(live: Live) -> None:
    file = live.federation.folder / f"{HOSPITALS[0]}.toml"
    site = participant_site(load_participant(file), file=file, registry=Registry())
    report = audit(site)
    assert [each.control for each in report.findings] == list(controls_of(Side.PARTICIPANT))
    found = {each.control.id: each.outcome for each in report.findings}
    for name in ("authentication.keys", "deidentification.scan", "privacy.spent"):
        assert found[name].status is Status.PASS, found[name]
    assert found["authentication.hsm"].status is Status.FAIL


def test_keys_in_a_token_cannot_leave_it_and_software_is_not_taken_for_hardware(
    live: Live, tokens: TokenFolder
) -> None:
    for label, kind in (("tls", KeyKind.P256), ("sign", KeyKind.P256), ("log", KeyKind.ED25519)):
        generate_key(tokens.uri("hsm", label), kind)
    create_wrapping_key(tokens.uri("hsm", "wrap"))
    with site_of(live.federation, live.folder) as site:
        identity = {
            "tls_key": tokens.uri("hsm", "tls"),
            "signing_key": tokens.uri("hsm", "sign"),
            "log_key": tokens.uri("hsm", "log"),
        }
        config = site.config.model_copy(
            update={
                "identity": site.config.identity.model_copy(update=identity),
                "log": site.config.log.model_copy(
                    update={"encryption_key": tokens.uri("hsm", "wrap")}
                ),
            }
        )
        found = probed(authentication.hsm, replace(site, config=config))
    assert found.status is Status.NOT_TESTED
    assert "does not say that it is hardware" in found.evidence


def test_the_node_is_named(live: Live) -> None:
    assert (live.sound.node, live.sound.side) == (COORDINATOR, Side.COORDINATOR)
