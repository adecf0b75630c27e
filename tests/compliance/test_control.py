"""What follows from findings; reports as bytes and as pages."""

from dataclasses import replace
from datetime import UTC, datetime
from itertools import product

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from matl.compliance.audit import PROBES
from matl.compliance.catalogue import CONTROLS, controls_before, controls_of, table_lines
from matl.compliance.commands import show
from matl.compliance.control import (
    Control,
    Finding,
    Level,
    Outcome,
    Side,
    Status,
    hindrances,
    judge,
)
from matl.compliance.page import render_page, verdict_sentence
from matl.compliance.report import Report, encode_report, facts_of, parse_report
from matl.compliance.signed import checked_page, signed_page
from matl_common.errors import IntegrityError, InvalidInputError
from tests.compliance.words import FORBIDDEN, forbidden_in
from tests.signers import SoftwareSigner

SIGNER = SoftwareSigner(ec.generate_private_key(ec.SECP256R1()))
AT = datetime(2026, 11, 28, 22, 0, tzinfo=UTC)


def a_control(level: Level = Level.REQUIRED, id: str = "a.control") -> Control:
    return Control(id, "164.312(b)", level, "it is so", "looks", "much")


def a_finding(level: Level, status: Status) -> Finding:
    return Finding(a_control(level), Outcome(status, "seen <b>this</b>", "do that"))


def a_report(*findings: Finding, controls: int | None = None) -> Report:
    return Report(
        at=AT,
        seconds=1.25,
        federation="dr-study",
        node="coordinator",
        side=Side.COORDINATOR,
        version="0.1.0",
        account="matl",
        controls=len(findings) if controls is None else controls,
        findings=findings,
    )


def test_any_failure_and_any_untested_required_control_stand_against_the_whole() -> None:
    for level, status in product(Level, Status):
        verdict = judge([a_finding(level, status)])
        is_unsound = status is Status.FAIL or (
            status is Status.NOT_TESTED and level is Level.REQUIRED
        )
        assert bool(verdict.exit_status) == is_unsound, (level, status)
        assert verdict.counts[status] == 1


def test_only_a_required_control_that_is_broken_hinders_a_start() -> None:
    for level, status in product(Level, Status):
        found = hindrances([a_finding(level, status)])
        assert bool(found) == (level is Level.REQUIRED and status is Status.FAIL)


def test_nothing_at_all_is_sound_and_says_so_of_what_was_probed_only() -> None:
    sentence = verdict_sentence(a_report(a_finding(Level.OWN, Status.PASS)))
    assert sentence.startswith("No control was found broken")


def test_a_part_of_the_controls_is_not_shown_or_signed_as_all_of_them() -> None:
    for status in (Status.PASS, Status.FAIL):
        report = a_report(a_finding(Level.REQUIRED, status), controls=35)
        said = "1 of 35 controls of this side"
        assert said in verdict_sentence(report)
        page = signed_page(report, SIGNER).decode()
        assert f"<caption>{said}" in page
        assert "Every control" not in page
        assert checked_page(page.encode(), SIGNER.public_key).controls == 35
    facts = facts_of(report)
    assert (facts["probed"], facts["controls"]) == (1, 35)


def test_brackets_are_shown_to_people_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    remedy = "set [probes] ocr = true, [places] backups [/nothing] [bold"
    outcome = Outcome(Status.FAIL, "[red]seen[/red] \x1b[31m", remedy)
    show(a_report(Finding(a_control(), outcome)))
    shown = capsys.readouterr().out
    assert remedy in shown
    assert "[red]seen[/red]" in shown
    assert "\x1b" not in shown


def test_every_control_has_a_probe_and_every_probe_a_control() -> None:
    assert sorted(PROBES) == sorted(each.id for each in CONTROLS)


def test_before_the_daemon_runs_nothing_is_dialled_and_a_dry_run_writes_nothing() -> None:
    for side in Side:
        may_write = controls_before(side, may_write=True)
        assert not any(each.needs_daemon for each in may_write)
        dry = controls_before(side, may_write=False)
        assert not any(each.writes for each in dry)
        assert set(dry) <= set(may_write) <= set(controls_of(side))


def test_a_report_comes_back_from_its_bytes() -> None:
    findings = [a_finding(level, status) for level, status in product(Level, Status)]
    report = a_report(*findings)
    data = encode_report(report)
    assert encode_report(parse_report(data)) == data
    assert parse_report(data).verdict == report.verdict


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"format": 1}'])
def test_what_is_no_report_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        parse_report(data)


def test_a_page_is_checked_with_the_key_that_signed_it_and_no_other() -> None:
    report = a_report(a_finding(Level.REQUIRED, Status.PASS))
    page = signed_page(report, SIGNER)
    assert encode_report(checked_page(page, SIGNER.public_key)) == encode_report(report)
    with pytest.raises(IntegrityError):
        checked_page(page, ec.generate_private_key(ec.SECP256R1()).public_key())


@pytest.mark.parametrize(
    ("old", "new"), [(b">FAIL<", b">PASS<"), (b"1 FAIL", b"0 FAIL"), (b"do that", b"do nothing")]
)
def test_a_page_that_shows_something_else_than_was_signed_is_refused(
    old: bytes, new: bytes
) -> None:
    page = signed_page(a_report(a_finding(Level.REQUIRED, Status.FAIL)), SIGNER)
    assert old in page
    with pytest.raises(IntegrityError, match="something else"):
        checked_page(page.replace(old, new, 1), SIGNER.public_key)


def test_a_page_is_made_of_what_was_signed_and_not_of_what_was_measured() -> None:
    # To the tenth 1.3, and by way of the thousandth, 1.350, it is 1.4.
    report = replace(a_report(a_finding(Level.OWN, Status.PASS)), seconds=1.3496)
    checked_page(signed_page(report, SIGNER), SIGNER.public_key)


def test_a_page_without_an_envelope_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no signed envelope"):
        checked_page(b"<!doctype html>", SIGNER.public_key)


def test_what_a_probe_found_cannot_become_part_of_the_page() -> None:
    finding = a_finding(Level.REQUIRED, Status.FAIL)
    page = render_page(a_report(finding), b"{}").decode()
    assert "<b>this</b>" not in page
    assert "&lt;b&gt;this&lt;/b&gt;" in page


def test_a_page_loads_nothing_from_elsewhere() -> None:
    page = signed_page(a_report(a_finding(Level.OWN, Status.PASS)), SIGNER).decode()
    assert "src=" not in page
    assert "http" not in page
    assert "@import" not in page


def test_no_word_is_said_that_is_for_others_to_say() -> None:
    for level, status in product(Level, Status):
        report = a_report(a_finding(level, status))
        for said in (
            encode_report(report),
            signed_page(report, SIGNER),
            verdict_sentence(report).encode(),
        ):
            assert not forbidden_in(said)
    assert not forbidden_in("\n".join(table_lines()).encode())
    assert FORBIDDEN


def test_the_order_of_rows_is_part_of_what_is_signed() -> None:
    one, other = (a_finding(level, Status.PASS) for level in (Level.OWN, Level.REQUIRED))
    report = a_report(one, other)
    assert encode_report(report) != encode_report(replace(report, findings=(other, one)))
