import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from matl_common.ids import NodeId, RoundId
from matl_common.protocol import PrivacyTerms, Recipe, StudyPlan, TrainingPlan
from matl_common.tensors import TensorSpec, parse_schema
from matl_coordinator.core.compliance import QuietPart
from matl_coordinator.core.judgement import Enrolment, Judgement, judge_round
from matl_coordinator.core.profile import Profile, has_profiles, profiles_of, read_profiles
from matl_coordinator.core.robust.gram import Float64Array, Gram, PrivacyNoise
from matl_coordinator.core.robust.root import RootRow
from matl_coordinator.core.trust import DEFAULT_POLICY, TrustRecord, TrustState, initial_record
from matl_coordinator.store import codec

pytestmark = pytest.mark.privacy

NODES = tuple(NodeId(f"h{index}") for index in range(7))
LAST = NODES[-1]
CLASSES, FOLDS, ELEMENTS = 3, 4, 165
SHARES = (0.5, 0.3, 0.2)
ROOT = tuple(RootRow(f"root-{c}-{k}", c, k, 20) for c in range(CLASSES) for k in range(FOLDS))
STEP, STD = 2.0, 0.02
_DRAWS = np.random.default_rng(0)
GRADIENTS = _DRAWS.normal(size=(CLASSES, ELEMENTS)) / np.sqrt(ELEMENTS)
FOLD_ROWS = {
    row.name: GRADIENTS[row.class_index] + 0.1 * _DRAWS.normal(size=ELEMENTS) / np.sqrt(ELEMENTS)
    for row in ROOT
}
MEANS = np.stack(
    [
        np.mean([FOLD_ROWS[row.name] for row in ROOT if row.class_index == c], axis=0)
        for c in range(CLASSES)
    ]
)


def signal(*shares: float) -> Float64Array:
    found: Float64Array = STEP * np.asarray(shares) @ MEANS
    return found


HONEST = signal(*SHARES)
LACKING = signal(SHARES[0], SHARES[1], -0.1)


def gram_of(rows: Mapping[NodeId, Float64Array], *, std: float = STD) -> Gram:
    gram = Gram.of(rows, FOLD_ROWS)
    return replace(gram, noise=PrivacyNoise(np.full(len(rows), std), signal_bound=20.0))


def sent(seed: int, **others: Float64Array) -> dict[NodeId, Float64Array]:
    """Honest updates of all seven, but for the signals given by name, with their noise."""
    draws = np.random.default_rng(seed)
    signals = dict.fromkeys(NODES, HONEST)
    signals |= {NodeId(name): value for name, value in others.items()}
    return {node: each + STD * draws.normal(size=ELEMENTS) for node, each in signals.items()}


def profiled(
    rows: Mapping[NodeId, Float64Array], *, f: int = 3, std: float = STD
) -> dict[NodeId, Profile]:
    shares = dict.fromkeys(rows, SHARES)
    found = profiles_of(
        gram_of(rows, std=std), ROOT, label_shares=shares, f=f, policy=DEFAULT_POLICY
    )
    return {each.node_id: each for each in found}


def test_an_update_of_the_enrolled_mix_has_no_surplus_and_one_without_a_class_lacks_it() -> None:
    found = profiled(dict.fromkeys(NODES, HONEST) | {LAST: LACKING})
    assert found[NODES[0]].surplus == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
    # Its own step length is a little lower, by which the rest of it would be more than due.
    assert found[LAST].surplus[2] == pytest.approx(-0.3, abs=0.03)
    assert found[LAST].classes == (0, 1, 2)


def test_the_variance_is_that_of_privacy_noise_and_of_the_holdout_set() -> None:
    rows = dict.fromkeys(NODES, HONEST)
    squared = np.einsum("ce,ce->c", MEANS, MEANS)
    quiet, noisy = profiled(rows, std=1e-9)[LAST], profiled(rows, std=0.5)[LAST]
    from_noise = np.array(noisy.variance) - np.array(quiet.variance)
    assert from_noise == pytest.approx(0.25 / squared / STEP**2)
    spread = [
        np.var([HONEST @ FOLD_ROWS[row.name] for row in ROOT if row.class_index == c], ddof=1)
        for c in range(CLASSES)
    ]
    assert quiet.variance == pytest.approx(np.array(spread) / FOLDS / squared**2 / STEP**2)


def test_simulated_noise_leaves_the_variance_that_is_stated() -> None:
    found = [profiled(sent(seed))[NODES[0]] for seed in range(300)]
    # The holdout set is the same throughout, so what varies is the privacy noise.
    stated = profiled(dict.fromkeys(NODES, HONEST))[NODES[0]].variance
    quiet = profiled(dict.fromkeys(NODES, HONEST), std=1e-9)[NODES[0]].variance
    measured = np.var([each.surplus for each in found], axis=0)
    assert measured == pytest.approx(np.array(stated) - np.array(quiet), rel=0.35)


def test_a_slightly_lower_step_length_is_no_deficit_and_a_much_lower_one_is() -> None:
    rows = dict.fromkeys(NODES, HONEST)
    low, lower = (
        min(profiled({**rows, LAST: factor * HONEST})[LAST].surplus) for factor in (0.86, 0.3)
    )
    assert low == pytest.approx(0.0, abs=1e-9)
    assert lower < -0.2


def test_hospitals_that_overstate_make_no_deficit_of_the_others() -> None:
    honest = dict(zip(NODES, (0.95 * HONEST, HONEST, 1.05 * HONEST, 1.1 * HONEST), strict=False))
    found = profiled(honest | dict.fromkeys(NODES[4:], 1000 * HONEST))
    assert all(min(found[node].surplus) > -1e-9 for node in NODES[:4])


def test_there_is_no_profile_without_an_enrolled_mix_or_a_step_downhill() -> None:
    rows = dict.fromkeys(NODES, HONEST)
    known = dict.fromkeys(NODES[:3], SHARES)
    found = profiles_of(gram_of(rows), ROOT, label_shares=known, f=1, policy=DEFAULT_POLICY)
    assert [each.node_id for each in found] == list(NODES[:3])
    assert profiled(dict.fromkeys(NODES, -HONEST)) == {}
    nobody = profiles_of(gram_of(rows), ROOT, label_shares={}, f=1, policy=DEFAULT_POLICY)
    assert nobody == ()


@pytest.mark.parametrize(
    ("recipe", "noise", "has"),
    [(Recipe.HEAD, 1.0, True), (Recipe.FULL, 1.0, False), (Recipe.HEAD, 0.0, False)],
)
def test_only_the_private_head_recipe_has_profiles(
    *, recipe: Recipe, noise: float, has: bool
) -> None:
    plan = StudyPlan(
        federation_id="dr-study",
        study_id="dr-2026",
        # Both end in a linear layer, so that both have a quiet part.
        schema=parse_schema([TensorSpec("head.weight", (3, 54)), TensorSpec("head.bias", (3,))]),
        training=TrainingPlan(recipe, "resnet50", None, 224, 2, 4, 0.5, 1),
        privacy=PrivacyTerms("patient", "add-or-remove-one", 1.0, 1e-5, noise, 1.0, 1.0, 32),
    )
    assert has_profiles(plan) is has


def fresh() -> tuple[TrustRecord, ...]:
    return tuple(initial_record(node) for node in NODES)


def lacking(
    deficits: Mapping[NodeId, float], *, z: float = 10.0, share: float = 0.3
) -> list[Profile]:
    """Deficits of class 1, each of ``z`` standard errors or of the margin's."""
    return [
        Profile(
            node,
            (0, 1),
            (1.0 - share, share),
            (0.0, -deficits.get(node, 0.0)),
            (1e-4, (max(deficits.get(node, 0.0), 0.1) / z) ** 2),
        )
        for node in NODES
    ]


def harmful(profiles: list[Profile], *, f: int = 3) -> set[NodeId]:
    readings = read_profiles(fresh(), profiles, f=f, policy=DEFAULT_POLICY)
    return {node for node, reading in readings.items() if reading.harm}


def test_harm_is_a_deficit_over_the_margin_that_noise_does_not_explain() -> None:
    assert harmful(lacking({LAST: 0.09})) == {LAST}
    assert harmful(lacking({LAST: 0.07})) == set()
    assert harmful(lacking({LAST: 0.3}, z=3.9)) == set()
    assert harmful(lacking({LAST: 0.3}, z=4.1)) == {LAST}


def test_a_hospital_of_one_class_mostly_may_lack_a_quarter_of_it_but_not_more() -> None:
    # Its local steps learn the class before they are over.
    assert harmful(lacking({LAST: 0.19}, share=0.8)) == set()
    assert harmful(lacking({LAST: 0.21}, share=0.8)) == {LAST}
    # What is lacked of another class is not excused by it.
    assert harmful(lacking({LAST: 0.09}, share=0.2)) == {LAST}


def test_where_middling_hospitals_have_deficits_a_larger_one_is_needed() -> None:
    common = dict.fromkeys(NODES, 0.05)
    assert harmful(lacking({**common, LAST: 0.19})) == set()
    assert harmful(lacking({**common, LAST: 0.21})) == {LAST}


def test_no_more_than_the_declared_number_do_harm_and_those_are_the_worst() -> None:
    many = {node: 0.2 + 0.1 * index for index, node in enumerate(NODES[4:])}
    assert harmful(lacking(many), f=3) == set(NODES[4:])
    assert harmful(lacking(many), f=2) == set(NODES[5:])
    assert harmful(lacking(many), f=0) == set()


def test_deficits_too_weak_for_one_round_add_up_and_old_ones_fade() -> None:
    records = fresh()
    harm = []
    for number in range(30):
        deficit = 0.3 if number < 12 else -0.1
        readings = read_profiles(
            records, lacking({LAST: deficit}, z=2.5), f=3, policy=DEFAULT_POLICY
        )
        harm.append(readings[LAST].harm)
        records = tuple(
            replace(
                record,
                profile_signal=readings[record.node_id].signal,
                profile_information=readings[record.node_id].information,
            )
            for record in records
        )
    assert not harm[0]
    assert harm[5]
    assert not harm[-1]


def test_a_round_is_added_by_its_precision_and_the_past_fades() -> None:
    record = replace(
        initial_record(LAST), profile_signal=(1.0, -2.0), profile_information=(4.0, 5.0)
    )
    seen = Profile(LAST, (0, 3), (0.5, 0.5), (0.2, -0.4), (0.1, 0.5))
    reading = read_profiles([record], [seen], f=0, policy=DEFAULT_POLICY)[LAST]
    assert reading.signal == pytest.approx((0.9 + 2.0, -1.8 - 0.8))
    assert reading.information == pytest.approx((3.6 + 10.0, 4.5 + 2.0))
    assert reading.worst_class == 3
    assert reading.surplus == pytest.approx(-2.6 / 6.5)
    assert reading.z == pytest.approx(-2.6 / 6.5**0.5)


def test_another_set_of_classes_begins_anew_and_a_surplus_known_without_error_is_left_out() -> None:
    (known,) = [p for p in lacking({LAST: 0.3}) if p.node_id == LAST]
    record = replace(
        initial_record(LAST), profile_signal=(1.0,) * 5, profile_information=(1.0,) * 5
    )
    assert read_profiles([record], [known], f=1, policy=DEFAULT_POLICY)[LAST].surplus == (
        pytest.approx(-0.3)
    )
    certain = replace(known, variance=(0.0, 1.0))
    assert read_profiles([record], [certain], f=1, policy=DEFAULT_POLICY) == {}
    tiny = replace(known, variance=(1e-320, 1.0))
    assert read_profiles([record], [tiny], f=1, policy=DEFAULT_POLICY) == {}


def judged(
    rows: Mapping[NodeId, Float64Array],
    trust: tuple[TrustRecord, ...],
    number: int,
    *,
    is_head: bool = True,
    shares: tuple[float, ...] | None = SHARES,
) -> Judgement:
    # A network that ends in a linear layer has a quiet part too, and yet no profile.
    quiet = {node: QuietPart(STD**2 * 40, 40) for node in rows}
    return judge_round(
        gram_of(rows),
        root=ROOT,
        loss_improvement=dict.fromkeys(rows, 0.01),
        trust=trust,
        enrolled=dict.fromkeys(NODES, Enrolment(1000, shares)),
        violations={},
        round_id=RoundId(number),
        byzantine=3,
        quiet=quiet,
        compare_profiles=is_head,
    )


@pytest.mark.parametrize(
    ("is_head", "shares", "state"),
    [
        (True, SHARES, TrustState.QUARANTINED),
        (False, SHARES, TrustState.TRUSTED),
        (True, None, TrustState.TRUSTED),
    ],
)
def test_a_hospital_whose_updates_lack_a_class_is_excluded_where_its_mix_is_known(
    *, is_head: bool, shares: tuple[float, ...] | None, state: TrustState
) -> None:
    records: tuple[TrustRecord, ...] = ()
    for number in range(1, 7):
        rows = sent(number, h6=LACKING)
        outcome = judged(rows, records, number, is_head=is_head, shares=shares)
        records = outcome.records
    by_node = {record.node_id: record for record in records}
    assert by_node[LAST].state is state
    assert {by_node[node].state for node in NODES[:-1]} == {TrustState.TRUSTED}
    assert (outcome.shares[LAST] == 0.0) is (state is TrustState.QUARANTINED)
    parts = by_node[LAST].components
    assert parts is not None
    # On average it helps, which is all that the projection can see.
    assert parts.z > 3.0
    if state is TrustState.QUARANTINED:
        assert (parts.profile_harm, parts.profile_class) == (True, 2)
        assert parts.profile_surplus == pytest.approx(-0.3, abs=0.1)
        assert by_node[LAST].reason == (
            "excluded: its updates lack what its enrolled label mix predicts for class 2, "
            f"z = {parts.profile_z:+.1f}"
        )


def test_who_goes_against_the_holdout_set_outright_is_told_that_and_not_which_class() -> None:
    records: tuple[TrustRecord, ...] = ()
    for number in range(1, 4):
        records = judged(sent(number, h6=-HONEST), records, number).records
    assert records[-1].components is not None
    assert records[-1].components.profile_harm
    assert records[-1].reason.startswith("excluded: three rounds against the holdout reference")


def test_it_returns_when_its_updates_have_the_class_again() -> None:
    records: tuple[TrustRecord, ...] = ()
    states = []
    for number in range(1, 41):
        rows = sent(number, h6=LACKING if number <= 3 else HONEST)
        records = judged(rows, records, number).records
        states.append(records[-1].state)
    assert states[2] is TrustState.QUARANTINED
    assert states[-1] is TrustState.TRUSTED


def test_what_is_remembered_of_profiles_survives_the_store_and_older_records_load() -> None:
    records = judged(sent(1), (), 1).records
    assert len(records[0].profile_signal) == CLASSES
    document = codec.TRUST.encode(records)
    assert codec.TRUST.decode(document) == records
    older = json.loads(document)
    for record in older:
        for name in ("profile_signal", "profile_information", "rounds_excused"):
            del record[name]
        for name in [name for name in record["components"] if name.startswith("profile_")]:
            del record["components"][name]
    loaded = codec.TRUST.decode(json.dumps(older))
    assert [record.profile_signal for record in loaded] == [()] * len(NODES)
    assert judged(sent(2), loaded, 2).hold is None
