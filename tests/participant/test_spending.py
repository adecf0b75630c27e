"""Studies on the same patients compose, and a budget is shown in one way."""

import json
import math
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from matl_common.errors import InvalidInputError
from matl_common.ids import Digest, RoundId, digest_of
from matl_common.privacy.budget import (
    Budget,
    calibrate_noise,
    full_batch_epsilon,
    gaussian_epsilon,
    inverse_variance,
)
from matl_common.privacy.charges import events_of
from matl_common.privacy.concentrated import zcdp_epsilon
from matl_common.privacy.mechanisms import (
    DiscreteGaussianEvent,
    GaussianEvent,
    Noise,
    PoissonSampledGaussianEvent,
)
from matl_common.privacy.poisson import (
    calibrate_poisson_noise,
    composed_guarantee,
    poisson_guarantee,
)
from matl_common.protocol import PrivacyTerms
from matl_participant.core.account import Account, Attempt, AttemptState, Planned
from matl_participant.core.journal import LedgerCorruptError
from matl_participant.core.spending import (
    ALONE,
    DatasetLimit,
    Shared,
    dataset_statement,
    projected_end,
    record,
    shown_epsilon,
    statement,
    summarise,
    warning_epsilon,
    why_over_budget,
)
from matl_participant.ledger import BudgetExhaustedError, ledger_path, open_ledger, read_summaries
from matl_participant.metrics import Metrics
from matl_participant.reports import Reports
from tests.participant.test_ledger import NOW, PLANNED, STEPS, TERMS, abandon, reserve

pytestmark = pytest.mark.privacy

DELTA = 1e-5
LIMIT = DatasetLimit(1.0, DELTA)
IMPLIED = DatasetLimit(1.0, DELTA, is_implied=True)
RATE, SAMPLED_STEPS = 0.1, 200
SAMPLED = replace(
    TERMS,
    noise_multiplier=calibrate_poisson_noise(1.0, DELTA, sample_rate=RATE, steps=SAMPLED_STEPS),
    sample_rate=RATE,
    max_steps=SAMPLED_STEPS,
)


def study(
    study_id: str,
    *,
    rounds: int = 0,
    terms: PrivacyTerms = TERMS,
    dataset: str = "retina",
    content: bytes = b"labels",
) -> Account:
    """A study that has charged this many rounds."""
    plan = replace(
        PLANNED,
        study_id=study_id,
        dataset=dataset,
        dataset_digest=digest_of(content),
        privacy=terms,
    )
    attempts = tuple(
        Attempt(RoundId(number), STEPS, digest_of(b"base"), AttemptState.ABANDONED)
        for number in range(1, rounds + 1)
    )
    return Account(plan, attempts)


def beside(*others: Account, limit: DatasetLimit | None = LIMIT) -> Shared:
    return Shared(limit, others)


def planned_for(study_id: str, terms: PrivacyTerms = TERMS) -> Planned:
    return replace(PLANNED, study_id=study_id, privacy=terms)


def test_a_second_study_gets_what_the_first_left_of_the_data_sets_budget() -> None:
    first = study("first", rounds=3)
    assert why_over_budget(study("second", rounds=1), steps=STEPS, shared=beside(first)) is None
    why = why_over_budget(study("second", rounds=2), steps=STEPS, shared=beside(first))
    assert why is not None
    assert "data set 'retina'" in why
    assert "privacy.dataset_epsilon" in why
    assert "add-or-remove-one patient" in why
    assert "2 have spent" in why


def test_where_no_limit_was_set_all_studies_together_get_what_one_may_cost() -> None:
    others = (study("first", rounds=3), study("second", rounds=1))
    shared = beside(*others, limit=IMPLIED)
    assert why_over_budget(study("third"), steps=STEPS, shared=shared) is None
    assert summarise(study("third"), shared).rounds_left == 1
    why = why_over_budget(study("third", rounds=1), steps=STEPS, shared=shared)
    assert why is not None
    assert "ε = 1 (privacy.dataset_epsilon, which is privacy.max_epsilon as it is not set)" in why
    assert "3 have spent" in why
    assert "among them 'first', 'second'" in why
    assert "set privacy.dataset_epsilon to what all studies may cost them, or to inf" in why
    # A limit that was set is not said to be another one.
    why = why_over_budget(study("third", rounds=1), steps=STEPS, shared=beside(*others))
    assert why is not None
    assert "max_epsilon" not in why


def test_of_very_many_earlier_studies_some_are_named_and_all_counted() -> None:
    others = [study(f"study-{number}", rounds=1) for number in range(8)]
    why = why_over_budget(study("last"), steps=STEPS, shared=beside(*others, limit=IMPLIED))
    assert why is not None
    assert "9 have spent" in why
    assert "'study-4', 3 more, and" in why


ALMOST = replace(SAMPLED, noise_multiplier=SAMPLED.noise_multiplier - 0.002)
"""Its ε is above 1 by what no honest plan's is, so that a comparison with 1 would show."""


@pytest.mark.parametrize("delta", [DELTA, 1e-9], ids=["its own δ", "a smaller δ"])
@pytest.mark.parametrize("terms", [TERMS, ALMOST], ids=["full batch", "sampled"])
def test_one_study_alone_has_its_own_budget_whole_where_no_limit_was_set(
    tmp_path: Path, terms: PrivacyTerms, delta: float
) -> None:
    limit = replace(IMPLIED, delta=delta)
    rounds = terms.max_steps // STEPS
    with open_ledger(tmp_path, dataset="retina", study_id="a", limit=limit) as ledger:
        ledger.plan(planned_for("a", terms))
        for number in range(1, rounds + 1):
            assert ledger.summary().rounds_left == rounds + 1 - number
            reserve(ledger, number)
            abandon(ledger, number)
        summary = ledger.summary()
        with pytest.raises(BudgetExhaustedError, match="of the study's"):
            reserve(ledger, rounds + 1)
    assert summary.budget_fraction == pytest.approx(rounds * STEPS / terms.max_steps)
    assert summary.together.budget_fraction is None
    assert "of 1 spent" in dataset_statement(summary)
    # The next one finds nothing left.
    with open_ledger(tmp_path, dataset="retina", study_id="b", limit=limit) as second:
        second.plan(planned_for("b"))
        with pytest.raises(BudgetExhaustedError, match="among them 'a'"):
            reserve(second, 1)


def test_without_a_limit_each_study_has_its_own_budget_and_the_sum_is_still_told() -> None:
    shared = beside(study("first", rounds=5), limit=None)
    second = study("second", rounds=4)
    assert why_over_budget(second, steps=STEPS, shared=shared) is None
    together = summarise(second, shared).together
    mu = math.sqrt(9 * STEPS) / TERMS.noise_multiplier
    assert together.epsilon_spent == pytest.approx(gaussian_epsilon(mu, DELTA))
    assert (together.studies, together.limit_epsilon) == (2, None)
    infinite = beside(study("first", rounds=5), limit=DatasetLimit(math.inf, DELTA))
    assert why_over_budget(second, steps=STEPS, shared=infinite) is None
    told = record(summarise(second, infinite))
    assert (told["dataset_studies"], told["dataset_epsilon_limit"]) == (2, None)


def test_two_studies_of_epsilon_one_come_to_the_published_1_465() -> None:
    shared = beside(study("first", rounds=5), limit=None)
    together = summarise(study("second", rounds=5), shared).together
    assert together.epsilon_spent == pytest.approx(1.465, abs=5e-4)
    three = beside(study("first", rounds=5), study("third", rounds=5), limit=None)
    together = summarise(study("second", rounds=5), three).together
    assert together.epsilon_spent == pytest.approx(1.835, abs=5e-4)


@pytest.mark.parametrize(
    ("dataset", "content", "composes"),
    [
        ("retina", b"labels", True),
        ("retina", b"more patients", True),
        ("renamed", b"labels", True),
        ("fundus", b"other patients", False),
    ],
)
def test_patients_are_the_same_by_the_data_sets_name_or_by_its_content(
    dataset: str,
    content: bytes,
    composes: bool,  # noqa: FBT001 - pytest passes by name
) -> None:
    other = study("other", rounds=5, dataset=dataset, content=content)
    why = why_over_budget(study("mine"), steps=STEPS, shared=beside(other))
    assert (why is not None) is composes


def test_studies_that_read_no_data_cost_nothing() -> None:
    shared = beside(study("refused"), Account(), study("sampled, never begun", terms=SAMPLED))
    assert why_over_budget(study("mine", rounds=4), steps=STEPS, shared=shared) is None
    assert summarise(study("mine"), shared).together.studies == 1


def test_a_study_without_noise_leaves_nothing_of_a_finite_budget() -> None:
    bare = replace(TERMS, noise_multiplier=0.0, target_epsilon=math.inf)
    spent = beside(study("bare", rounds=1, terms=bare))
    assert why_over_budget(study("mine"), steps=STEPS, shared=spent)
    assert why_over_budget(study("bare", terms=bare), steps=STEPS, shared=beside())
    together = summarise(study("mine"), spent).together
    assert (together.epsilon_spent, together.budget_fraction) == (math.inf, None)


def test_a_sampled_study_counts_with_its_complete_plan() -> None:
    assert why_over_budget(study("s", terms=SAMPLED), steps=STEPS, shared=beside()) is None
    # One round of another study is too much: the sampled one's plan fills the budget.
    other = study("other", rounds=1)
    assert why_over_budget(study("s", terms=SAMPLED), steps=STEPS, shared=beside(other))
    begun = study("s", rounds=1, terms=SAMPLED)
    assert why_over_budget(study("other"), steps=STEPS, shared=beside(begun))
    generous = DatasetLimit(1.6, DELTA)
    assert not why_over_budget(study("other"), steps=STEPS, shared=beside(begun, limit=generous))
    summary = summarise(study("other"), beside(begun, limit=generous))
    assert (summary.rounds_left, summary.together.budget_fraction) == (5, None)


def test_sampled_and_full_batch_studies_compose_as_privacy_loss_distributions() -> None:
    full, sampled = GaussianEvent(45.691, 150), PoissonSampledGaussianEvent(16.622, 0.128, 1200)
    both = composed_guarantee([full, sampled], DELTA).epsilon
    assert 1.4 < both < 1.5
    assert composed_guarantee([sampled, full], DELTA).epsilon == pytest.approx(both, abs=1e-4)
    assert composed_guarantee([sampled], DELTA) == poisson_guarantee(sampled, DELTA)
    alone = composed_guarantee([full, GaussianEvent(1.0, 0)], DELTA).epsilon
    assert alone == pytest.approx(1.0, abs=1e-3)
    # Rate 1 samples nothing: it is the full-batch event.
    whole = PoissonSampledGaussianEvent(45.691, 1.0, 150)
    assert composed_guarantee([whole], DELTA).epsilon == pytest.approx(alone, abs=1e-4)


HARDENED = replace(
    TERMS,
    noise=Noise.DISCRETE_GAUSSIAN,
    noise_multiplier=calibrate_noise(1.0, DELTA, steps=5 * STEPS, noise=Noise.DISCRETE_GAUSSIAN),
)


def test_a_study_with_discrete_noise_is_accounted_for_by_its_own_bound() -> None:
    whole = summarise(study("h", rounds=5, terms=HARDENED))
    assert whole.noise is Noise.DISCRETE_GAUSSIAN
    assert 0.9999 < whole.epsilon_spent <= 1.0
    assert record(whole)["noise"] == "discrete-gaussian"
    # Not by the exact one of continuous noise, which would be less.
    mu = math.sqrt(5 * STEPS) / HARDENED.noise_multiplier
    assert gaussian_epsilon(mu, DELTA) < 0.95


def test_a_data_set_with_any_discrete_noise_has_the_lower_limit_for_all_its_studies() -> None:
    hardened = study("h", rounds=1, terms=HARDENED)
    capacity = Budget(1.0, DELTA).concentrated_capacity
    spent = inverse_variance(
        [
            DiscreteGaussianEvent(HARDENED.noise_multiplier, STEPS),
            GaussianEvent(TERMS.noise_multiplier, 3 * STEPS),
        ]
    )
    together = summarise(study("g", rounds=3), beside(hardened)).together
    assert together.budget_fraction == pytest.approx(spent / capacity)
    assert together.epsilon_spent == pytest.approx(zcdp_epsilon(spent / 2.0, DELTA))
    # Four rounds of a fifth each fit beside continuous noise, and not beside this.
    assert why_over_budget(study("g", rounds=3), steps=STEPS, shared=beside(hardened))
    assert not why_over_budget(
        study("g", rounds=3), steps=STEPS, shared=beside(study("c", rounds=1))
    )
    # Nor the other way round.
    assert why_over_budget(hardened, steps=STEPS, shared=beside(study("g", rounds=3)))
    assert summarise(hardened, beside(study("g", rounds=3))).rounds_left == 0
    assert summarise(hardened, beside(study("g", rounds=1))).rounds_left == 2


def test_discrete_noise_beside_a_sampled_study_gets_half_of_delta() -> None:
    sampled = PoissonSampledGaussianEvent(16.622, 0.128, 1200)
    discrete = DiscreteGaussianEvent(49.5, 150)
    both = composed_guarantee([sampled, discrete], DELTA).epsilon
    parts = composed_guarantee([sampled], DELTA / 2).epsilon + full_batch_epsilon(
        [discrete], DELTA / 2
    )
    assert both == pytest.approx(parts)
    assert both > composed_guarantee([sampled, GaussianEvent(49.5, 150)], DELTA).epsilon
    assert composed_guarantee([discrete], DELTA).epsilon == full_batch_epsilon([discrete], DELTA)
    begun = study("s", rounds=1, terms=SAMPLED)
    assert why_over_budget(study("h", terms=HARDENED), steps=STEPS, shared=beside(begun))
    generous = DatasetLimit(2.2, DELTA)
    assert not why_over_budget(
        study("h", terms=HARDENED), steps=STEPS, shared=beside(begun, limit=generous)
    )


def test_noise_that_no_mechanism_samples_with_is_not_accounted_for() -> None:
    with pytest.raises(InvalidInputError, match="full batches"):
        events_of(replace(SAMPLED, noise=Noise.DISCRETE_GAUSSIAN), steps=1)


@given(
    first=st.integers(0, 5),
    second=st.integers(0, 5),
    epsilon=st.sampled_from([0.3, 0.7, 1.0, 1.465, 3.0]),
)
def test_rounds_left_is_how_often_a_round_is_granted(
    first: int, second: int, epsilon: float
) -> None:
    shared = beside(study("first", rounds=first), limit=DatasetLimit(epsilon, DELTA))
    granted, account = 0, study("second", rounds=second)
    while why_over_budget(account, steps=STEPS, shared=shared) is None:
        granted += 1
        account = study("second", rounds=second + granted)
    assert summarise(study("second", rounds=second), shared).rounds_left == granted
    fraction = summarise(account, shared).together.budget_fraction
    assert fraction is not None
    if granted:
        assert fraction <= 1.0


def test_a_halted_study_has_no_round_left() -> None:
    halted = replace(study("a", rounds=1), halted="the operator left the study")
    assert summarise(study("a", rounds=1)).rounds_left == 4
    assert summarise(halted).rounds_left == 0


def test_a_ledger_counts_what_its_sisters_spent_since_it_was_opened(tmp_path: Path) -> None:
    with (
        open_ledger(tmp_path, dataset="retina", study_id="a", limit=LIMIT) as first,
        open_ledger(tmp_path, dataset="retina", study_id="b", limit=LIMIT) as second,
    ):
        first.plan(planned_for("a"))
        second.plan(planned_for("b"))
        for number in range(1, 4):
            reserve(first, number)
            abandon(first, number)
        reserve(second, 1)
        abandon(second, 1)
        reserve(second, 2)
        abandon(second, 2)
        with pytest.raises(BudgetExhaustedError, match="dataset_epsilon"):
            reserve(second, 3)
        assert second.account.halted is not None
        with pytest.raises(BudgetExhaustedError, match="2 have spent"):
            reserve(first, 4)
        spent = first.account.steps_spent + second.account.steps_spent
    assert spent == 5 * STEPS
    told = read_summaries(tmp_path, limit=LIMIT)
    assert [each.study_id for each in sorted(told, key=lambda each: each.study_id)] == ["a", "b"]
    assert {each.together.epsilon_spent for each in told} == {told[0].together.epsilon_spent}
    assert told[0].together.epsilon_spent == pytest.approx(1.0, abs=1e-6)
    assert told[0].together.budget_fraction == pytest.approx(1.0)


def test_a_damaged_ledger_of_another_study_stops_this_one_and_is_named(tmp_path: Path) -> None:
    open_ledger(tmp_path, dataset="retina", study_id="a").close()
    path = ledger_path(tmp_path, dataset="retina", study_id="a")
    path.write_bytes(b"not a ledger\n")
    with pytest.raises(LedgerCorruptError, match=path.name) as raised:
        open_ledger(tmp_path, dataset="retina", study_id="b")
    assert raised.value.line == 1
    path.unlink()
    # The failed opening let go of its lock.
    open_ledger(tmp_path, dataset="retina", study_id="b").close()


def test_a_copy_of_a_ledger_only_ever_adds_to_what_was_spent(tmp_path: Path) -> None:
    with open_ledger(tmp_path, dataset="retina", study_id="a", limit=LIMIT) as ledger:
        ledger.plan(planned_for("a"))
        for number in range(1, 4):
            reserve(ledger, number)
            abandon(ledger, number)
    path = ledger_path(tmp_path, dataset="retina", study_id="a")
    shutil.copy(path, ledger_path(tmp_path, dataset="retina", study_id="copy"))
    with open_ledger(tmp_path, dataset="retina", study_id="a", limit=LIMIT) as ledger:
        assert ledger.summary().rounds_left == 0


def test_the_projected_end_follows_the_pace_so_far() -> None:
    def at(*hours: int) -> Account:
        attempts = tuple(
            Attempt(RoundId(n), STEPS, Digest("0" * 64), reserved_at=NOW + timedelta(hours=hour))
            for n, hour in enumerate(hours, start=1)
        )
        return Account(PLANNED, attempts)

    soon = NOW + timedelta(minutes=1)
    assert projected_end(at(0), rounds=4, now=soon) is None
    assert projected_end(at(0, 6), rounds=0, now=soon) is None
    assert projected_end(at(0, 6), rounds=3, now=soon) == NOW + timedelta(hours=24)
    assert projected_end(at(0, 2, 6), rounds=2, now=soon) == NOW + timedelta(hours=12)
    # The study has stood still since: its next round is expected now.
    late = datetime(2026, 6, 1, tzinfo=UTC)
    assert projected_end(at(0, 6), rounds=1, now=late) == late
    assert projected_end(at(0, 6), rounds=2, now=late) == late + timedelta(hours=6)


def test_a_reservation_remembers_when_it_was_made(tmp_path: Path) -> None:
    with open_ledger(tmp_path, dataset="retina", study_id="a") as ledger:
        ledger.plan(PLANNED)
        reserve(ledger)
    with open_ledger(tmp_path, dataset="retina", study_id="a") as ledger:
        assert ledger.account.attempts[0].reserved_at == NOW


def test_half_of_the_budget_is_not_half_of_epsilon() -> None:
    two, three = (summarise(study("a", rounds=rounds)) for rounds in (2, 3))
    assert two.epsilon_spent > 0.5
    assert not two.is_half_spent
    assert three.is_half_spent
    # What is drawn as the warning lies between the two.
    assert two.epsilon_spent < warning_epsilon(1.0, DELTA) < three.epsilon_spent
    assert warning_epsilon(1.0, DELTA) == pytest.approx(0.684, abs=1e-3)
    # The data set's budget may be half spent before the study's.
    shared = beside(study("other", rounds=3))
    assert summarise(study("a"), shared).is_half_spent


def test_every_statement_names_the_neighbouring_relation_next_to_epsilon() -> None:
    summary = summarise(study("a", rounds=1), ALONE)
    assert statement(summary) == (
        "ε 0.4151 of 1 spent at δ = 1e-05 (add-or-remove-one patient); 20.0% of the budget, "
        "4 rounds left"
    )
    assert statement(summarise(study("a", rounds=4))).endswith("80.0% of the budget, 1 round left")
    with_others = summarise(study("a", rounds=1), beside(study("b", rounds=1)))
    assert dataset_statement(with_others) == (
        "ε 0.6057 of 1 spent at δ = 1e-05 (add-or-remove-one patient) by 2 studies on data set "
        "'retina'; 40.0% of the budget"
    )
    assert dataset_statement(summary).startswith("ε 0.4151 spent at δ")


def test_a_study_without_noise_is_told_in_words_and_its_record_is_json() -> None:
    bare = replace(TERMS, noise_multiplier=0.0, target_epsilon=math.inf)
    summary = summarise(study("a", rounds=1, terms=bare))
    assert "protects nobody" in statement(summary)
    told = json.loads(json.dumps(record(summary), allow_nan=False))
    assert told["epsilon_spent"] == told["dataset_epsilon_spent"] == "no privacy"


def test_a_record_holds_every_figure_once_and_its_statement() -> None:
    told = record(summarise(study("a", rounds=1), beside(study("b", rounds=1))))
    assert told["statement"].startswith("ε ")
    assert (told["epsilon_spent"], told["adjacency"], told["unit"]) == (
        0.4151,
        "add-or-remove-one",
        "patient",
    )
    assert (told["dataset_studies"], told["dataset_epsilon_limit"]) == (2, 1.0)
    assert told["dataset_budget_fraction"] == pytest.approx(0.4, abs=1e-6)


@given(st.floats(1e-9, 50.0))
def test_a_shown_epsilon_understates_nothing(epsilon: float) -> None:
    shown = shown_epsilon(epsilon)
    assert isinstance(shown, float)
    assert epsilon - 1e-9 <= shown <= epsilon + 1.01e-4


def test_the_metrics_show_the_study_and_the_data_set() -> None:
    metrics = Metrics()
    metrics.show_budget(summarise(study("a", rounds=1), beside(study("b", rounds=1))))

    def shown(name: str) -> float | None:
        return metrics.registry.get_sample_value(f"matl_participant_{name}")

    assert shown("epsilon_spent") == pytest.approx(0.4151, abs=1e-4)
    assert shown("dataset_epsilon_spent") == pytest.approx(0.6057, abs=1e-4)
    assert (shown("budget_fraction"), shown("rounds_left")) == (0.2, 3)
    assert shown("dataset_epsilon_limit") == 1.0
    metrics.show_budget(summarise(study("a", rounds=1)))
    assert shown("dataset_epsilon_limit") == math.inf


def test_the_log_warns_once_from_half_of_the_budget_on() -> None:
    with capture_logs() as logs:
        reports = Reports(Metrics())
        for rounds in range(5):
            reports.budget(summarise(study("a", rounds=rounds)))
    warnings = [each for each in logs if each["log_level"] == "warning"]
    assert [each["event"] for each in warnings] == ["participant.budget_half_spent"]
    assert warnings[0]["budget_fraction"] == 0.6
    told = [each for each in logs if each["event"] == "participant.budget"]
    assert all("(add-or-remove-one patient)" in each["statement"] for each in told)


def test_gradients_left_out_are_told_on_site_and_only_if_there_are_any() -> None:
    with capture_logs() as logs:
        reports = Reports(Metrics())
        for answer in ({}, {"gradients_left_out": 0}, {"gradients_left_out": 3}):
            reports.trained(answer)
    assert [(each["event"], each["count"]) for each in logs] == [
        ("participant.gradients_left_out", 3)
    ]
