"""Histories from dictionaries and from what a coordinator tells, and plots of what they lack."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from matl import plot_medical_fl_results
from matl.checklist import Row, SafeguardsError, _data_row
from matl.compliance.control import Status
from matl.history import history_of, relation_of
from matl.operations import Contribution, Evaluation, Participant, Round
from matl.privacy import DifferentialPrivacy
from matl.results import summary_of
from matl.sdk.told import told_by_coordinator
from matl_common.errors import ConfigurationError

TUTORIALS: dict[str, Any] = {
    "rounds": [0, 1],
    "accuracy": [50.0, 93.8],
    "trust_scores": [[0.6, 0.6], [0.8, 0.3]],
    "privacy_budget": [0.9, 0.7],
}


def test_the_tutorials_dictionary_is_enough() -> None:
    history = history_of(TUTORIALS)
    assert history.accuracy == [0.5, 0.938]
    assert history.trust == {"Hospital A": [0.6, 0.8], "Hospital B": [0.6, 0.3]}
    assert history.least_epsilon_remaining == [0.9, 0.7]
    assert history.epsilon_remaining == {}
    assert history.epsilon_budget == 0.9
    assert history.epsilon_warning == 0.45
    promised = history_of(TUTORIALS, privacy=DifferentialPrivacy(epsilon=1.0, delta=1e-5))
    assert (promised.epsilon_budget, promised.delta) == (1.0, 1e-5)
    assert promised.epsilon_warning == pytest.approx(0.684, abs=1e-3)


def test_a_summary_says_the_last_round_in_words(tmp_path: Path) -> None:
    told: list[str] = []
    privacy = DifferentialPrivacy(epsilon=1.0, delta=1e-5)
    plot_medical_fl_results(TUTORIALS, tmp_path / "p.png", privacy=privacy, report=told.append)
    assert told == [
        "Final model accuracy: 93.80 %",
        "Threshold of 92 %: met",
        "Trust in Hospital A: 0.800, trusted",
        "Trust in Hospital B: 0.300, excluded",
        "Privacy budget left: ε = 0.70 of 1 (δ = 1e-05, add or remove one patient)",
    ]


def test_a_summary_claims_nothing_that_nobody_measured() -> None:
    unknown = {"accuracy": [math.nan] * 2, "privacy_budget": [math.nan] * 2, "epsilon_budget": 1.0}
    said = list(summary_of(history_of({**TUTORIALS, **unknown})))
    assert (said[0], said[-1]) == (
        "Final model accuracy: not measured",
        "Privacy budget: only the hospitals' own ledgers know what is left",
    )
    without = history_of({**TUTORIALS, "privacy_budget": [math.inf] * 2})
    assert list(summary_of(without))[-1].endswith("promises no privacy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": [50.0]}, "lengths"),
        ({"rounds": [], "accuracy": [], "trust_scores": [], "privacy_budget": []}, "at least one"),
        ({"trust_scores": [[0.6, 0.6], [0.8]]}, "another number of hospitals"),
    ],
)
def test_a_dictionary_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        history_of({**TUTORIALS, **change})


def test_an_epsilon_is_told_with_its_delta_and_relation() -> None:
    assert relation_of(history_of({**TUTORIALS, "delta": 1e-5}).delta) == (
        "δ = 1e-05, add or remove one patient"
    )
    assert relation_of(history_of(TUTORIALS).delta).startswith("δ is not told, ")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigurationError, match="no privacy_budget"):
        history_of({key: TUTORIALS[key] for key in TUTORIALS if key != "privacy_budget"})


def a_round(number: int, *, phase: str = "released", **status: str) -> Round:
    contributions = tuple(
        Contribution(node, said, "", 1.0, 0.6 + number / 10, 0.5) for node, said in status.items()
    )
    evaluation = Evaluation(0.9, 0.9, 0.9, (0.9,), 100) if number == 2 else None
    return Round(number, phase, "", contributions, "", "", evaluation)


def a_hospital(name: str, *, fraction: float, spent: float | None) -> Participant:
    return Participant(name, 0.7, "trusted", "", 100, None, spent, 1.0, fraction, 1, "", 1e-5)


def test_what_earlier_rounds_cost_follows_from_what_is_spent_now() -> None:
    """ε of each round is a ledger's, though the coordinator tells only what is spent by now."""
    privacy = DifferentialPrivacy(epsilon=1.0, delta=1e-5)
    rounds = [
        a_round(1, a="admitted", b="late"),
        a_round(2, phase="aborted", a="admitted", b="admitted"),
        a_round(3, a="admitted", b="admitted"),
    ]
    history = told_by_coordinator(
        rounds,
        [a_hospital("a", fraction=3 / 4, spent=0.84), a_hospital("b", fraction=2 / 4, spent=0.68)],
    )
    assert history["rounds"] == [1, 3]
    (a1, b1), (a3, b3) = history["epsilon_remaining"]
    assert a1 == pytest.approx(1.0 - privacy.epsilon_after(1, of=4), abs=1e-6)
    assert a3 == pytest.approx(1.0 - privacy.epsilon_after(3, of=4), abs=1e-6)
    assert (b1, b3) == pytest.approx((1.0, 1.0 - privacy.epsilon_after(2, of=4)), abs=1e-6)
    assert history["privacy_budget"] == [a1, a3]
    assert math.isnan(history["accuracy"][0])


def test_a_hospital_that_only_its_ledger_knows_of_has_no_line() -> None:
    rounds = [a_round(2, a="admitted", b="admitted")]
    hospitals = [
        a_hospital("a", fraction=0.5, spent=None),
        a_hospital("b", fraction=0.5, spent=0.7),
    ]
    history = history_of(told_by_coordinator(rounds, hospitals))
    assert list(history.epsilon_remaining) == ["B"]
    assert history.accuracy == [0.9]


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": [math.nan, math.nan], "trust_scores": [[math.nan, 0.6], [math.nan, 0.3]]},
        {"rounds": [1], "accuracy": [9.0], "trust_scores": [[0.6]], "privacy_budget": [math.inf]},
    ],
)
def test_a_history_with_gaps_is_drawn(tmp_path: Path, change: dict[str, Any]) -> None:
    path = plot_medical_fl_results({**TUTORIALS, **change}, tmp_path / "plots.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_reference_has_a_value_for_every_round(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="1 values for 2 rounds"):
        plot_medical_fl_results(TUTORIALS, tmp_path / "p.png", references={"FedAvg": [87.3]})


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no study"):
        plot_medical_fl_results(tmp_path, tmp_path / "p.png")


class Labels:
    def __init__(self, *columns: str) -> None:
        self.columns = columns


class Labelled:
    def __init__(self, *columns: str) -> None:
        self.labels = Labels(*columns)


@pytest.mark.parametrize(
    ("dataset", "status"),
    [
        (Labelled("image_id", "dr_level"), Status.PASS),
        (Labelled("image_id", "dr_level", "patient_name"), Status.FAIL),
        (Labelled("image_id", "dr_level", "notes"), Status.FAIL),
        ([1, 2], Status.NOT_TESTED),
    ],
)
def test_columns_that_nobody_allowed_fail_and_what_has_none_is_not_tested(
    dataset: Any, status: Status
) -> None:
    assert _data_row("hospital_a", dataset).status is status


@pytest.mark.parametrize(
    ("status", "is_required", "is_unsound"),
    [
        (Status.PASS, True, False),
        (Status.ATTESTED, True, False),
        (Status.FAIL, False, True),
        (Status.NOT_TESTED, True, True),
        (Status.NOT_TESTED, False, False),
    ],
)
def test_what_was_not_tested_stands_against_the_whole_where_it_is_required(
    status: Status, *, is_required: bool, is_unsound: bool
) -> None:
    assert Row("a", status, "b", is_required=is_required).is_unsound == is_unsound


def test_a_failure_says_what_to_do() -> None:
    row = _data_row("hospital_a", Labelled("ssn"))
    assert "matl phi scan" in str(SafeguardsError([row]))
