import json
from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np
import pytest

from matl_common.ids import NodeId, RoundId
from matl_coordinator.core.compliance import QuietPart
from matl_coordinator.core.judgement import Enrolment, Judgement, judge_round
from matl_coordinator.core.robust.gram import AggregationError, Float64Array, Gram, PrivacyNoise
from matl_coordinator.core.robust.root import RootRow
from matl_coordinator.core.trust import TrustError, TrustRecord, TrustState
from matl_coordinator.store import codec

NODES = tuple(NodeId(name) for name in "abcde")
A, B, C, D, E = NODES
ENROLLED = {node: Enrolment(100, (0.5, 0.25, 0.25)) for node in NODES}
ROOT = tuple(RootRow(f"root-{c}-{k}", c, k, images=10) for c in range(3) for k in range(4))
ELEMENTS = 200
DOWNHILL = np.random.default_rng(0).normal(size=ELEMENTS)


def updates(seed: int, **others: Float64Array) -> dict[NodeId, Float64Array]:
    """Honest updates of all five, but for those given by name."""
    generator = np.random.default_rng(seed)
    honest = {node: DOWNHILL + generator.normal(size=ELEMENTS) for node in NODES}
    return honest | {NodeId(name): value for name, value in others.items()}


def gram_of(rows: Mapping[NodeId, Float64Array]) -> Gram:
    generator = np.random.default_rng(9)
    extras = {row.name: 0.1 * (DOWNHILL + generator.normal(size=ELEMENTS)) for row in ROOT}
    return Gram.of(rows, extras)


def judged(
    gram: Gram,
    *,
    trust: tuple[TrustRecord, ...] = (),
    violations: Mapping[NodeId, str] | None = None,
    root: tuple[RootRow, ...] | None = ROOT,
    number: int = 1,
    quiet: Mapping[NodeId, QuietPart] | None = None,
) -> Judgement:
    return judge_round(
        gram,
        root=root,
        loss_improvement=dict.fromkeys(gram.nodes, 0.01),
        trust=trust,
        enrolled=ENROLLED,
        violations=violations or {},
        round_id=RoundId(number),
        byzantine=2,
        quiet=quiet,
    )


def record_of(judgement: Judgement, node: NodeId) -> TrustRecord:
    return next(record for record in judgement.records if record.node_id == node)


def test_a_round_of_honest_updates_is_shared_out_by_capped_size() -> None:
    outcome = judged(gram_of(updates(1)))
    assert outcome.hold is None
    # Trust is near the .7 from which a hospital counts in full.
    assert outcome.shares == dict.fromkeys(NODES, pytest.approx(0.2, rel=0.05))
    assert (outcome.refused, outcome.clusters) == ({}, ())
    assert outcome.power.against == 0.0
    assert all(record.trust > 0.65 for record in outcome.records)


def test_the_first_harmful_round_counts_for_nothing_and_rings_the_alarm() -> None:
    outcome = judged(gram_of(updates(1, d=-DOWNHILL, e=-2 * DOWNHILL)))
    assert outcome.shares[D] == outcome.shares[E] == 0.0
    assert sum(outcome.shares.values()) == pytest.approx(1.0)
    # Both came with the reputation everybody starts with.
    assert outcome.power.ratio == pytest.approx(2 / 3)
    assert outcome.power.is_alarming
    again = judged(gram_of(updates(2, d=-DOWNHILL, e=-DOWNHILL)), trust=outcome.records, number=2)
    assert {record_of(again, node).state for node in (D, E)} == {TrustState.QUARANTINED}
    later = judged(gram_of(updates(3, d=-DOWNHILL, e=-DOWNHILL)), trust=again.records, number=3)
    assert later.power.against == 0.0
    assert record_of(later, E).reason.startswith(
        "excluded: three rounds against the holdout reference, z = -"
    )


def test_clones_share_one_weight_and_read_so() -> None:
    rows = updates(1)
    rows[D] = rows[E] = rows[A]
    outcome = judged(gram_of(rows))
    assert outcome.clusters == (frozenset({A, D, E}),)
    assert [outcome.shares[node] for node in NODES] == pytest.approx(
        [1 / 9, 1 / 3, 1 / 3, 1 / 9, 1 / 9]
    )
    for node in (A, D, E):
        assert record_of(outcome, node).reason.endswith(
            "; shares its weight with 2 nearly identical updates"
        )
    assert "shares" not in record_of(outcome, B).reason
    # Nobody is lowered for it: the one that was copied is not to blame.
    assert record_of(outcome, A).state is TrustState.TRUSTED
    assert outcome.power.cartel == frozenset({A, D, E})
    assert outcome.power.cartel_share == pytest.approx(0.6)


def test_the_order_of_the_input_changes_nothing() -> None:
    rows = updates(1, e=-DOWNHILL)
    rows[D] = rows[A]
    gram = gram_of(rows)
    first = judged(gram)
    shuffled = _reversed(gram)
    assert shuffled.nodes == NODES[::-1]
    again = judge_round(
        shuffled,
        root=ROOT[::-1],
        loss_improvement=dict.fromkeys((E, D, C, B, A), 0.01),
        trust=(),
        enrolled=dict(reversed(ENROLLED.items())),
        violations={},
        round_id=RoundId(1),
        byzantine=2,
    )
    # Equal to the bit, not only nearly.
    assert {r.node_id: asdict(r) for r in again.records} == {
        r.node_id: asdict(r) for r in first.records
    }
    assert again.shares == first.shares
    assert (again.clusters, again.power) == (first.clusters, first.power)


def _reversed(gram: Gram) -> Gram:
    """The same numbers with nodes and extra rows the other way round."""
    order = [*range(gram.n - 1, -1, -1), *range(len(gram.row_names) - 1, gram.n - 1, -1)]
    return replace(
        gram,
        matrix=gram.matrix[np.ix_(order, order)],
        nodes=gram.nodes[::-1],
        extras=gram.extras[::-1],
    )


def test_the_same_rounds_replayed_give_the_same_records() -> None:
    def played() -> list[tuple[TrustRecord, ...]]:
        history: list[tuple[TrustRecord, ...]] = [()]
        for number in range(1, 13):
            rows = updates(number, e=DOWNHILL * (1 if number < 6 else -3))
            history.append(judged(gram_of(rows), trust=history[-1], number=number).records)
        return history

    assert played() == played()
    assert record_of_last(played()).state is TrustState.QUARANTINED


def record_of_last(history: list[tuple[TrustRecord, ...]]) -> TrustRecord:
    return next(record for record in history[-1] if record.node_id == E)


def noisy_gram(rows: Mapping[NodeId, Float64Array]) -> Gram:
    return replace(gram_of(rows), noise=PrivacyNoise(np.full(len(rows), 5.0), signal_bound=20.0))


def test_an_update_without_the_promised_noise_is_refused_and_does_not_count() -> None:
    generator = np.random.default_rng(3)
    rows = {node: DOWNHILL + 5.0 * generator.normal(size=ELEMENTS) for node in NODES}
    rows[E] = DOWNHILL
    outcome = judged(noisy_gram(rows))
    assert set(outcome.refused) == {E}
    assert E not in outcome.shares
    record = record_of(outcome, E)
    assert record.trust == pytest.approx(0.3)
    assert record.reason == f"excluded: {outcome.refused[E]}"
    assert outcome.power.against > 0.0


def test_the_quiet_part_reveals_what_length_cannot() -> None:
    generator = np.random.default_rng(3)
    rows = {node: DOWNHILL + 5.0 * generator.normal(size=ELEMENTS) for node in NODES}
    quiet = {node: QuietPart(25.0 * 40, 40) for node in NODES} | {E: QuietPart(0.0, 40)}
    outcome = judged(noisy_gram(rows), quiet=quiet)
    assert set(outcome.refused) == {E}
    assert "0.00 times the promised privacy noise" in outcome.refused[E]


def test_an_update_with_values_that_are_not_finite_is_refused_and_does_not_count() -> None:
    gram = gram_of(updates(1, e=np.where(np.arange(ELEMENTS) == 7, np.nan, DOWNHILL)))
    outcome = judged(gram)
    assert outcome.refused == {E: "its update held values that are not finite"}
    assert E not in outcome.shares
    assert record_of(outcome, E).reason == "excluded: its update held values that are not finite"


def test_a_refused_update_has_no_components_of_an_earlier_round() -> None:
    scored = judged(gram_of(updates(1)))
    assert record_of(scored, E).components is not None
    refused = judged(
        gram_of(updates(2)), trust=scored.records, number=2, violations={E: "too long"}
    )
    record = record_of(refused, E)
    assert (record.as_of_round, record.components) == (2, None)
    assert refused.power.against > 0.0
    document = codec.TRUST.encode(refused.records)
    assert codec.TRUST.decode(document) == refused.records


def test_a_violation_outweighs_what_the_update_says() -> None:
    outcome = judged(gram_of(updates(1)), violations={E: "it sent two updates"})
    assert E not in outcome.shares
    assert record_of(outcome, E).reason == "excluded: it sent two updates"
    # A hospital need not have an admitted update to have broken the protocol.
    absent = judged(gram_of(updates(1)).select(NODES[:4]), violations={E: "it sent two updates"})
    assert record_of(absent, E) == record_of(outcome, E)


def test_a_broken_update_does_not_disturb_the_scores_of_others() -> None:
    honest = judged(gram_of(updates(1)).select(NODES[:4]))
    huge = judged(gram_of(updates(1, e=1e6 * DOWNHILL)), violations={E: "too long"})
    assert [record_of(huge, node) for node in NODES[:4]] == [
        record_of(honest, node) for node in NODES[:4]
    ]


def test_without_a_root_set_nobody_is_excluded_by_the_others() -> None:
    records: tuple[TrustRecord, ...] = ()
    for number in range(1, 15):
        rows = updates(number, e=-2 * DOWNHILL)
        outcome = judged(gram_of(rows), trust=records, root=None, number=number)
        records = outcome.records
    assert outcome.hold is None
    assert {record_of(outcome, node).state for node in NODES[:4]} == {TrustState.TRUSTED}
    assert record_of(outcome, E).state is TrustState.MARGINAL
    assert 0.0 < outcome.shares[E] < 0.5 * outcome.shares[A]


@pytest.mark.parametrize("root", [None, ROOT])
def test_a_long_update_does_not_set_the_others_against_each_other(
    root: tuple[RootRow, ...] | None,
) -> None:
    outcome = judged(gram_of(updates(1, e=-1000 * DOWNHILL)), root=root)
    assert all(record_of(outcome, node).trust > 0.6 for node in NODES[:4])
    parts = record_of(outcome, A).components
    assert parts is not None
    assert parts.peer_cosine is not None
    assert parts.peer_cosine > 0.3


def test_a_round_of_which_nothing_is_left_is_held() -> None:
    outcome = judged(gram_of(updates(1)), violations=dict.fromkeys(NODES, "it broke off"))
    assert outcome.shares == {}
    assert outcome.hold is not None
    assert outcome.power.is_alarming


def test_input_that_does_not_fit_together_is_refused() -> None:
    gram = gram_of(updates(1))
    with pytest.raises(TrustError, match="stranger sent an update but is not enrolled"):
        judged(gram_of({**updates(1), NodeId("stranger"): DOWNHILL}))
    with pytest.raises(TrustError, match="stranger"):
        judged(gram, violations={NodeId("stranger"): "it broke off"})
    with pytest.raises(AggregationError, match="root rows missing"):
        judged(replace(gram, extras=tuple(f"x{name}" for name in gram.extras)))
    with pytest.raises(AggregationError, match="no holdout loss was measured for e"):
        judge_round(
            gram,
            root=ROOT,
            loss_improvement=dict.fromkeys(NODES[:4], 0.0),
            trust=(),
            enrolled=ENROLLED,
            violations={},
            round_id=RoundId(1),
            byzantine=2,
        )


def test_records_kept_before_clones_and_the_composite_were_known_still_load() -> None:
    (record,) = judged(gram_of(updates(1)).select([A]), number=1).records[:1]
    (document,) = json.loads(codec.TRUST.encode([record]))
    for name in ("mode", "clones", "composite", "tcdm", "entropy"):
        del document["components"][name]
    (loaded,) = codec.TRUST.decode(json.dumps([document]))
    assert loaded.components is not None
    assert (loaded.components.mode, loaded.components.clones) == ("root", 0)
    assert loaded.components.composite is None
    assert loaded.trust == record.trust


def test_who_goes_against_the_holdout_set_is_not_heard_about_others() -> None:
    outcome = judged(gram_of(updates(1, d=-DOWNHILL, e=-DOWNHILL)))
    for node in (A, B, C):
        parts = record_of(outcome, node).components
        assert parts is not None
        assert parts.peer_cosine is not None
        assert parts.peer_cosine > 0.4


def test_privacy_noise_enters_the_variance_of_a_score() -> None:
    generator = np.random.default_rng(3)
    rows = {node: DOWNHILL + 5.0 * generator.normal(size=ELEMENTS) for node in NODES}
    parts = record_of(judged(noisy_gram(rows)), A).components
    assert parts is not None
    # 5 ‖r̄‖, and the reference is a tenth of the direction and a little noise.
    assert parts.standard_error == pytest.approx(
        5.0 * 0.1 * float(np.linalg.norm(DOWNHILL)), rel=0.2
    )


def test_the_declared_number_of_hostile_hospitals_sets_the_reference() -> None:
    gram = gram_of(updates(1))
    for byzantine, rank in ((1, 2), (2, 3)):
        outcome = judge_round(
            gram,
            root=ROOT,
            loss_improvement=dict.fromkeys(NODES, 0.01),
            trust=(),
            enrolled=ENROLLED,
            violations={},
            round_id=RoundId(1),
            byzantine=byzantine,
        )
        parts = [record.components for record in outcome.records]
        relative = sorted((each.relative for each in parts if each is not None), reverse=True)
        assert relative[rank - 1] == 1.0
        assert relative[rank] < 1.0
