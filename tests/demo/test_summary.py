"""What is reported of a study: figures where they are looked for, and honest about gaps."""

import io
import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from matl.demo.federation import LOG_FILE, PLOT_FILE, SUMMARY_FILE, Layout
from matl.demo.progress import Findings, NoResultError
from matl.demo.reference import ReferenceArms
from matl.demo.study import Attack, Settings
from matl.demo.summary import (
    Report,
    Spending,
    print_summary,
    spending_of,
    summary_document,
    trust_by_hospital,
    write_results,
)
from matl.operations import Contribution, Evaluation, Participant, Round, Status
from matl_common.ids import Digest, NodeId, RoundId
from matl_common.privacy.budget import calibrate_noise, gaussian_epsilon
from matl_common.protocol import PrivacyTerms
from matl_participant.core.account import Account, Attempt, AttemptState, Planned

NODES = [NodeId(f"hospital_{letter}") for letter in "abcde"]
AT = datetime(2026, 11, 23, 12, tzinfo=UTC)
MODEL = Digest("ab" * 32)
EVALUATION = Evaluation(0.8, 0.79, 0.9, (0.9, 0.8, 0.7, 0.8, math.nan), 500)
NOISE = calibrate_noise(1.0, 1e-5, steps=12)
TERMS = PrivacyTerms("patient", "add-or-remove-one", 1.0, 1e-5, NOISE, 1.0, 1.0, 12)


def released(number: int, trust: dict[NodeId, float]) -> Round:
    contributions = tuple(
        Contribution(node, "admitted", "", 1.0, value, 0.2) for node, value in trust.items()
    )
    return Round(number, "released", "", contributions, "00" * 32, MODEL, EVALUATION)


def findings() -> Findings:
    rounds = (
        released(1, dict.fromkeys(NODES, 0.6)),
        released(2, dict.fromkeys(NODES[:4], 0.8)),
        released(3, {**dict.fromkeys(NODES[:4], 0.9), NODES[4]: 0.2}),
    )
    status = Status(
        "0.1.0", "dr-study", "retinopathy", False, True, 3, 3, rounds[-1], MODEL, 40, "cd" * 32, 5
    )
    participants = tuple(
        Participant(
            *(node, 0.9, "trusted", "it agrees", 100, None),
            *(0.7, 1.0, 0.5, 3, "add-or-remove-one patient", 1e-5),
        )
        for node in NODES
    )
    return Findings(status, rounds, participants, (b'{"event":"a"}', b'{"event":"b"}'))


def report(settings: Settings | None = None) -> Report:
    return Report(
        settings=settings or Settings(),
        findings=findings(),
        matl=(0.5, 0.7, 0.88),
        own=(0.5, 0.7, 0.862),
        references=ReferenceArms(
            (0.6, 0.8, 0.95), (0.4, 0.5, 0.6), (0.5, 0.7, 0.87), (0.5, 0.7, 0.875)
        ),
        spending={
            node: Spending(
                *(0.8, 1.0, (0.6, 0.4, 0.2)),
                has_ledger=True,
                budget_fraction=0.667,
                rounds_left=1,
            )
            for node in NODES
        },
        seconds={"federation": 12.34},
        command="python -m matl.demo",
        date=AT,
    )


def account(*attempts: Attempt, terms: PrivacyTerms = TERMS) -> Account:
    planned = Planned(AT, "dr-study", "retinopathy", "retina", MODEL, MODEL, terms, 4, "0.1.0")
    return Account(planned, attempts)


def attempt(number: int, state: AttemptState = AttemptState.ACKNOWLEDGED) -> Attempt:
    return Attempt(RoundId(number), 4, MODEL, state)


def printed(given: Report, folder: Path) -> str:
    console = Console(file=io.StringIO(), width=140)
    print_summary(console, given, Layout(folder, folder / "data"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_summary_has_the_figures_under_the_names_they_are_looked_for() -> None:
    document = summary_document(report())
    assert document["accuracy"] == {
        "matl": 0.88,
        "fedavg": 0.6,
        "fedavg_weighted": 0.87,
        "centralised": 0.95,
    }
    trust, epsilon = document["trust"], document["epsilon"]
    assert isinstance(trust, dict)
    assert isinstance(epsilon, dict)
    assert trust["hospital_a"] == [0.6, 0.8, 0.9]
    assert (epsilon["hospital_b"]["spent"], epsilon["hospital_b"]["budget"]) == (0.8, 1.0)
    assert (document["rounds"], document["released_model"]) == (3, MODEL)
    assert document["log"] == {"size": 40, "root": "cd" * 32}
    for key in ("machine", "date", "command", "measurements"):
        assert document[key]


def test_figures_that_are_not_finite_are_null_in_the_summary() -> None:
    without = replace(
        report(Settings(epsilon=math.inf)),
        spending={n: Spending(math.inf, math.inf, (), has_ledger=True) for n in NODES},
    )
    text = json.dumps(summary_document(without), allow_nan=False)
    assert json.loads(text)["epsilon"]["hospital_a"]["spent"] is None
    assert json.loads(text)["holdout"][0]["recall"][4] is None


def test_a_hospital_that_misses_a_round_keeps_its_trust() -> None:
    assert trust_by_hospital(Settings(), findings().rounds)[NODES[4]] == [0.6, 0.6, 0.2]


@pytest.mark.privacy
def test_epsilon_is_what_the_ledger_charged_by_each_round() -> None:
    spending = spending_of(account(attempt(1), attempt(2), attempt(3)), findings().rounds)
    after = [gaussian_epsilon(math.sqrt(steps) / NOISE, 1e-5) for steps in (4, 8, 12)]
    assert spending.spent == after[2]
    assert spending.remaining == tuple(1.0 - epsilon for epsilon in after)
    assert 0.0 <= spending.remaining[2] < 1e-6


@pytest.mark.privacy
def test_an_attempt_that_was_lost_is_charged_all_the_same() -> None:
    lost = attempt(1, AttemptState.ABANDONED)
    spending = spending_of(account(lost, attempt(1), attempt(2)), findings().rounds)
    once = spending_of(account(attempt(1), attempt(2)), findings().rounds)
    assert spending.attempts_lost == 1
    assert spending.spent > once.spent
    assert spending.remaining[0] < once.remaining[0]
    assert (spending.budget_fraction, spending.rounds_left) == (1.0, 0)
    assert once.rounds_left == 1


def test_without_noise_the_spending_is_infinite_and_nothing_remains() -> None:
    terms = replace(TERMS, noise_multiplier=0.0, target_epsilon=math.inf)
    spending = spending_of(account(attempt(1), terms=terms), findings().rounds)
    assert spending.spent == math.inf
    assert spending.remaining == (0.0, 0.0, 0.0)


def test_a_ledger_without_a_plan_is_no_result() -> None:
    with pytest.raises(NoResultError, match="no plan"):
        spending_of(Account(), findings().rounds)


def test_the_printed_summary_says_what_the_images_are_and_what_each_hospital_spent(
    tmp_path: Path,
) -> None:
    text = printed(report(), tmp_path)
    assert "semi-synthetic" in text
    assert "0.800" in text
    assert "66.7%" in text
    assert "add-or-remove-one patient" in text
    assert "88.0 %" in text
    assert "barely notices a small mislabelling hospital" in text
    assert "not reached" in text


def test_a_released_mean_is_told_apart_from_the_last_rounds_own_model(tmp_path: Path) -> None:
    given = report()
    *earlier, last = given.findings.rounds
    averaged = replace(given.findings, rounds=(*earlier, replace(last, averaged=2)))
    given = replace(given, findings=averaged)
    document = summary_document(given)
    per_round = document["accuracy_per_round"]
    assert isinstance(per_round, dict)
    assert (document["released_model"], document["averaged"]) == (MODEL, 2)
    assert per_round["matl_not_averaged"] == [0.5, 0.7, 0.862]
    assert "the mean of the models of the last 2 rounds" in printed(given, tmp_path)
    assert "own reaches 86.2 %" in printed(given, tmp_path)
    assert "the mean of the models" not in printed(report(), tmp_path)


def test_a_hostile_hospital_is_named_and_has_no_ledger(tmp_path: Path) -> None:
    given = report(Settings(attack=Attack.SIGN_FLIP))
    spending = {**given.spending, NODES[4]: Spending(0.7, 1.0, (), has_ledger=False)}
    text = printed(replace(given, spending=spending), tmp_path)
    assert "hostile: sign-flip" in text
    assert "no ledger" in text
    assert "mislabelling" not in text


def test_results_are_complete_when_the_summary_is_there(tmp_path: Path) -> None:
    layout = Layout(tmp_path, tmp_path / "data")
    layout.models.mkdir(parents=True)
    (layout.models / f"{MODEL}.safetensors").write_bytes(b"model")
    write_results(layout, report())
    assert json.loads((tmp_path / SUMMARY_FILE).read_text())["rounds"] == 3
    assert (tmp_path / f"{MODEL}.safetensors").read_bytes() == b"model"
    assert (tmp_path / LOG_FILE).read_bytes() == b'{"event":"a"}\n{"event":"b"}\n'
    assert (tmp_path / PLOT_FILE).stat().st_size > 50_000
