"""What is shown of a snapshot, and what of it is called to an operator's attention."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta

import pytest

from matl.dashboard import html
from matl.dashboard.alerts import alerts_of
from matl.dashboard.board import Tone, board_of, trust_tone
from matl.dashboard.snapshot import LogState, Proof
from matl.operations import Appeal
from tests.dashboard.samples import (
    HOSPITALS,
    NOW,
    collecting,
    entry,
    finished,
    participant,
    snapshot,
    status,
)


def test_a_sound_federation_calls_nobody() -> None:
    assert alerts_of(snapshot()) == ()
    assert "Nothing needs attention" in html.alerts_html(alerts_of(snapshot()))


def test_the_tiles_tell_presence_round_accuracy_budget_and_log() -> None:
    tiles = {each.label: (each.value, each.tone) for each in board_of(snapshot()).tiles}
    assert tiles["Active hospitals"] == ("3 of 3", Tone.GOOD)
    assert tiles["Round"] == ("3", Tone.PLAIN)
    assert tiles["Models released"] == ("2 of 6", Tone.PLAIN)
    assert tiles["Accuracy"] == ("52.0%", Tone.PLAIN)
    assert tiles["Privacy budget"] == ("90% left", Tone.GOOD)
    assert tiles["Log"] == ("40 entries", Tone.GOOD)


def test_the_round_shows_how_far_every_upload_is_and_why_one_is_refused() -> None:
    panel = board_of(snapshot()).round
    assert panel is not None
    assert "closes in 10 min" in panel.says
    uploads = {each.node: each for each in panel.uploads}
    assert uploads["hospital_b"].fraction == 0.5
    assert (uploads["hospital_c"].tone, uploads["hospital_c"].why) == (
        Tone.BAD,
        "refused: 3 values are NaN",
    )
    assert [each.name for each in panel.steps if each.state == "now"] == ["collecting"]
    shown = html.round_html(panel)
    assert 'aria-valuenow="50"' in shown
    assert 'aria-current="step"' in shown


def test_trust_is_told_with_its_reason_its_change_and_every_round() -> None:
    board = board_of(snapshot())
    row = board.trust[0]
    assert (row.why, row.change) == ("agrees with the holdout reference", "+0.10")
    assert row.line.points == ((1, 0.7), (2, 0.8))
    assert {(each.round_id, each.node, each.why) for each in board.trust_steps} == {
        (number, node, "agrees") for number in (1, 2) for node in HOSPITALS
    }


@pytest.mark.parametrize(
    ("state", "tone"),
    [
        ("trusted", Tone.GOOD),
        ("marginal", Tone.WARNING),
        ("quarantined", Tone.BAD),
        ("of a later version", Tone.PLAIN),
    ],
)
def test_trust_is_coloured_as_the_coordinator_judged_it(state: str, tone: Tone) -> None:
    assert trust_tone(state) is tone


def test_each_thing_that_goes_wrong_has_its_own_alert() -> None:
    appeal = Appeal("our labels are right", NOW, "open", "")
    wrong = {
        "The log does not hold": snapshot(log=LogState(40, problem="it was forked")),
        "The log is not verified here": snapshot(log=LogState(40)),
        "The study is paused": snapshot(status=status(paused=True)),
        "The configuration asks for more than is there": snapshot(status=status(warnings=("f",))),
        "hospital_a is quarantined": snapshot(
            participants=(participant("hospital_a", state="quarantined"),)
        ),
        "Low trust: hospital_a at 0.49": snapshot(
            participants=(participant("hospital_a", trust=0.49),)
        ),
        "More than half of the privacy budget is spent": snapshot(
            participants=(participant("hospital_a", budget_fraction=0.5),)
        ),
        "Privacy budget spent": snapshot(
            participants=(participant("hospital_a", budget_fraction=1.0, rounds_left=0),)
        ),
        "Hospitals that are not heard from": snapshot(
            participants=(participant("hospital_c", last_seen=NOW - timedelta(minutes=3)),)
        ),
        "hospital_a appeals": snapshot(participants=(participant("hospital_a", appeal=appeal),)),
        "Allowlist refused": snapshot(alarms=(entry(30, "allowlist_refused", reason="r"),)),
        "Round 2: Cartel": snapshot(alarms=(entry(30, "alarm", round=2, kind="cartel"),)),
    }
    for title, found in wrong.items():
        assert [each.title for each in alerts_of(found)] == [title]


def test_an_alarm_of_long_ago_and_silence_after_the_end_call_nobody() -> None:
    rounds = tuple(map(finished, range(1, 9)))
    old = snapshot(rounds=rounds, alarms=(entry(3, "alarm", round=2, kind="cartel"),))
    assert alerts_of(old) == ()
    over = snapshot(
        status=status(study_complete=True),
        participants=(participant("hospital_a", last_seen=None),),
    )
    assert alerts_of(over) == ()


def test_what_an_allow_list_left_open_is_told_once_until_the_next_list_is_read() -> None:
    refused = [entry(number, "allowlist_refused", reason="r") for number in (32, 31)]
    removed = entry(30, "node_removed", round=1, node="hospital_a", reason="no longer enrolled")
    # The list that removes a hospital comes before it in the log.
    alarms = (*refused, removed, entry(29, "allowlist_read"))
    open_still = snapshot(rounds=tuple(map(finished, range(1, 9))), alarms=alarms)
    assert [each.title for each in alerts_of(open_still)] == [
        "Allowlist refused",
        "hospital_a was removed from round 1",
    ]
    assert alerts_of(snapshot(alarms=(entry(33, "allowlist_read"), *alarms))) == ()


def test_hospitals_at_work_on_a_round_are_not_missed_before_its_deadline() -> None:
    long_ago = NOW - timedelta(minutes=6)
    quiet = tuple(participant(each, last_seen=long_ago) for each in HOSPITALS[:2])
    at_work = snapshot(participants=quiet)
    assert alerts_of(at_work) == ()
    tile = board_of(at_work).tiles[0]
    assert (tile.value, tile.tone) == ("2 of 2", Tone.GOOD)
    for found in (
        replace(at_work, status=status(current_round=None)),
        replace(at_work, status=status(current_round=replace(collecting(3), deadline=long_ago))),
        replace(at_work, status=status(current_round=replace(collecting(3), phase="scoring"))),
    ):
        assert [each.says for each in alerts_of(found)] == ["hospital_a, hospital_b"]
        assert board_of(found).tiles[0].value == "0 of 2"


def test_bad_alerts_come_first() -> None:
    found = snapshot(
        participants=(
            participant("hospital_a", budget_fraction=0.6),
            participant("hospital_b", state="quarantined"),
        )
    )
    assert [each.tone for each in alerts_of(found)] == [Tone.BAD, Tone.WARNING]


def test_an_entry_that_proves_nothing_is_shown_as_such() -> None:
    rows = board_of(snapshot(entries=(entry(1, "x", Proof.BROKEN), entry(0, "y")))).entries
    assert [(each.proof, each.tone) for each in rows] == [
        ("DOES NOT HOLD", Tone.BAD),
        ("proven", Tone.GOOD),
    ]


def test_an_entry_tells_no_fact_that_is_not_on_the_list() -> None:
    shown = board_of(
        snapshot(entries=(entry(1, "study_founded", plan_envelope="SECRET", reason="because"),))
    ).entries[0]
    assert shown.says == "reason because"


def test_what_others_wrote_cannot_become_markup() -> None:
    evil = "<script>alert(1)</script>"
    board = board_of(
        snapshot(
            participants=(participant("hospital_a", reason=evil, state="quarantined"),),
            entries=(entry(1, "study_paused", reason=evil),),
        )
    )
    alerts = alerts_of(snapshot(participants=(participant("a", reason=evil, state="quarantined"),)))
    page = "".join(
        (
            html.trust_html(board.trust),
            html.entries_html(board.entries, evil),
            html.alerts_html(alerts),
            html.budget_html(board.budget, evil),
        )
    )
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 5


def test_before_the_first_round_there_is_a_page_too() -> None:
    nothing = snapshot(rounds=(), status=status(current_round=None), entries=(), participants=())
    board = board_of(nothing)
    assert board.round is None
    assert "No round yet" in html.round_html(board.round)
    assert "No release" in html.accuracy_html(board.accuracy)
    assert "No round was scored" in html.trust_chart_html(board.trust)


def test_the_page_names_no_other_host() -> None:
    board = board_of(snapshot())
    pieces = (html.accuracy_html(board.accuracy), html.trust_chart_html(board.trust))
    assert not re.search(r"(?:src|href)=\"(?!data:)", "".join(pieces))
