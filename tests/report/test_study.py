"""A study put together from its log's entries, and set as a document."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest

from matl.log.verification import AuditReport
from matl.report.document import sealed_document, study_document
from matl.report.evidence import Evidence
from matl.report.html import report_html
from matl.report.pdf import report_pdf
from matl.report.study import Logged, Study, read_study
from matl_common.errors import InvalidInputError
from matl_common.privacy.charges import epsilon_of
from matl_common.protocol import PayloadType
from matl_common.signing import Envelope
from matl_common.tlog.verification import Tally
from matl_common.wire.documents import format_study_plan
from matl_coordinator.core.trust_record import DEFAULT_POLICY
from matl_coordinator.service.story import envelope_facts
from tests.fuzz.samples import PLAN

MADE_AT = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
DIGEST = "ab" * 32


def founding() -> dict[str, Any]:
    envelope = Envelope(PayloadType.STUDY_PLAN, format_study_plan(PLAN), "key", b"signature")
    return {"event": "study_founded", "plan_envelope": envelope_facts(envelope)}


def a_round(number: int, *, state: str, clusters: object = (), **more: object) -> list[Any]:
    """A round of two hospitals, told in two parts, in which the second stands as told."""
    standing = {"trust": 0.9, "state": "trusted", "reason": "agrees"}
    suspect = {"trust": 0.2, "state": state, "reason": "<b>against</b> the reference"}
    return [
        {"event": "round_opened", "round": number, "invited": ["hospital_a", "hospital_b"]},
        *(
            {"event": "update_admitted", "round": number, "node": node}
            for node in ("hospital_a", "hospital_b")[: 2 if number == 1 else 1]
        ),
        {
            "event": "collection_closed",
            "round": number,
            "excluded": {} if number == 1 else {"hospital_b": "late: no update"},
        },
        {
            "event": "round_scored",
            "round": number,
            "part": 1,
            "clusters": clusters,
            "power": {"against": 1.0, "honest": 3.0},
            "trust": {"hospital_a": standing},
            **more,
        },
        {"event": "round_scored", "round": number, "part": 2, "trust": {"hospital_b": suspect}},
        {"event": "round_weighted", "round": number, "weights": {"hospital_a": 1.0}},
        {
            "event": "model_released",
            "round": number,
            "model": DIGEST,
            "accuracy": 0.8,
            "balanced_accuracy": 0.7,
            "kappa": 0.6,
            "per_class_recall": [0.5, None],
            "images": 500,
        },
    ]


def logged(entries: Sequence[dict[str, Any]]) -> tuple[Logged, ...]:
    told = ({"at": "2026-11-28T10:00:00.000Z", **each} for each in entries)
    return tuple(Logged(index, facts) for index, facts in enumerate(told))


def study(*rounds: list[Any]) -> Study:
    return read_study(logged([founding(), *(each for rnd in rounds for each in rnd)]))


def evidence(entries: tuple[Logged, ...] = ()) -> Evidence:
    tally = Tally(9, bytes(32), 0, None, 0, 1)
    return Evidence("log", AuditReport(tally, 9, 0, 9, ()), entries, 0, {})


def test_a_round_told_in_parts_is_one_round() -> None:
    (found,) = study(a_round(1, state="marginal")).rounds
    assert (found.outcome, found.admitted) == ("released", ("hospital_a", "hospital_b"))
    assert {node: each.trust for node, each in found.standings.items()} == {
        "hospital_a": 0.9,
        "hospital_b": 0.2,
    }
    assert found.standings["hospital_a"].weight == 1.0
    assert found.power == (1.0, 3.0)


def test_trust_is_drawn_against_the_bounds_that_the_log_says_were_kept() -> None:
    rounds = a_round(1, state="marginal")
    policies = ({"trusted_from": 0.8, "excluded_below": 0.3}, {"trusted_from": 0.9})
    started = [{"event": "coordinator_started", "trust_policy": each} for each in policies]
    found = read_study(logged([founding(), *started, *rounds]))
    assert (found.trusted_from, found.excluded_below) == (0.9, DEFAULT_POLICY.excluded_below)
    page = report_html(study_document(found, evidence(), made_at=MADE_AT))
    assert "trusted from 0.9" in page
    # Logs of older versions do not say.
    assert study(rounds).trusted_from == DEFAULT_POLICY.trusted_from


def test_budgets_count_the_updates_that_were_admitted_and_no_others() -> None:
    found = study(a_round(1, state="trusted"), a_round(2, state="trusted")).spending
    one, two = (epsilon_of(PLAN.privacy, steps=n * PLAN.training.steps_per_round) for n in (1, 2))
    assert found["hospital_a"].epsilon == ((1, one), (2, two))
    # Its second update came late, and cost nothing that the log knows of.
    assert found["hospital_b"].epsilon == ((1, one), (2, one))
    assert found["hospital_a"].fraction == 2 * found["hospital_b"].fraction


def test_exclusion_is_told_once_and_so_is_the_way_back() -> None:
    states = ("marginal", "quarantined", "quarantined", "marginal")
    found = study(*(a_round(n, state=state) for n, state in enumerate(states, start=1)))
    assert [(each.round_id, each.node, each.what) for each in found.incidents] == [
        (2, "hospital_b", "excluded by its trust"),
        (4, "hospital_b", "readmitted by its trust"),
    ]


def test_clones_missing_noise_refusals_and_orders_are_told_with_their_reasons() -> None:
    refused = {"hospital_b": "without the promised noise"}
    events: list[dict[str, Any]] = [
        {"event": "update_refused", "node": "hospital_b", "round": 1, "reason": "3 are NaN"},
        {"event": "node_quarantined", "node": "hospital_b", "operator": "o", "reason": "labels"},
        {"event": "access_denied", "reason": "wrong_role"},
        {"event": "log_read", "operator": "o"},
    ]
    clusters = [["hospital_a", "hospital_b"]]
    rnd = a_round(1, state="trusted", clusters=clusters, refused=refused)
    found = read_study(logged([founding(), *rnd, *events])).incidents
    assert [(each.what, each.why) for each in found] == [
        ("update without its noise refused", "without the promised noise"),
        ("nearly identical updates", "hospital_a, hospital_b share one weight"),
        ("update refused", "3 are NaN"),
        ("quarantined by an operator", "labels (operator o)"),
        ("a call was denied", "wrong_role"),
    ]


def test_a_log_without_a_study_or_with_a_senseless_entry_gives_none() -> None:
    with pytest.raises(InvalidInputError, match="none was founded"):
        read_study(logged([{"event": "log_read"}]))
    with pytest.raises(InvalidInputError, match="does not say what a report needs"):
        study([{"event": "round_opened", "round": 1}, {"event": "model_released", "round": 1}])


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_a_report_loads_nothing_runs_nothing_and_takes_no_markup_from_the_log() -> None:
    document = study_document(study(a_round(1, state="marginal")), evidence(), made_at=MADE_AT)
    text = report_html(document)
    assert "&lt;b&gt;against&lt;/b&gt;" in text
    parsed = _Tags()
    parsed.feed(text)
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "img", "link", "iframe", "object", "b"}
    links = [attrs["href"] for tag, attrs in parsed.tags if tag == "a"]
    assert links
    assert all(link is not None and link.startswith("#") for link in links)
    assert "@import" not in text
    assert "url(" not in text


def test_a_report_is_set_as_pdf_with_the_letters_that_it_needs() -> None:
    document = study_document(study(a_round(1, state="marginal")), evidence(), made_at=MADE_AT)
    assert report_pdf(document, made_at=MADE_AT).startswith(b"%PDF-")


def test_an_encrypted_log_gives_a_report_of_what_its_leaves_tell() -> None:
    leaves = logged([{"event": "model_released", "round": 1}, {"event": "log_read"}])
    document = sealed_document(evidence(leaves), made_at=MADE_AT)
    assert "are encrypted" in report_html(document)
    assert report_pdf(document, made_at=MADE_AT).startswith(b"%PDF-")


def test_a_study_without_rounds_or_holdout_set_is_reported_too() -> None:
    document = study_document(study(), evidence(), made_at=MADE_AT)
    text = report_html(document)
    for sentence in ("No release was evaluated", "No round was scored", "No model was released"):
        assert sentence in text
