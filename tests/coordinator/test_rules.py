"""The whole rule family behind a running coordinator, and what a kill does to it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matl_common.clock import utc_now
from matl_common.errors import IntegrityError
from matl_common.ids import Digest, NodeId, RoundId
from matl_common.protocol import RoundStart
from matl_common.tensors import safetensors_header
from matl_common.tlog.entry import Entry, parse_entry
from matl_coordinator.aggregation import Histories, LocalExecutor
from matl_coordinator.core.judgement import Enrolment
from matl_coordinator.core.robust.gram import PREVIOUS_AGGREGATE, Gram, Needs
from matl_coordinator.core.robust.registry import Choice, make_aggregator
from matl_coordinator.core.robust.root import RootRow
from matl_coordinator.core.rounds import Phase, Round
from matl_coordinator.ports import Change, LoggedEntry, State, Store, StoreError
from matl_coordinator.service.entries import score_entries
from matl_coordinator.service.judging import fitted
from matl_coordinator.service.survey import (
    Surveyor,
    coordinate_seed,
    reference_in,
    remembered_hashes,
    write_difference,
)
from matl_coordinator.store.files import LocalFiles
from matl_coordinator.store.histories import FileHistories
from matl_coordinator.store.spool import DiskSpool
from tests.coordinator.harness import (
    ELEMENTS,
    SCHEMA,
    Running,
    events_of,
    honest_update,
    loss,
    make_site,
    play,
    running,
    weights_of,
)
from tests.fakes import Fault, FaultyStore

FIVE = {
    "hospital_a": 1000,
    "hospital_b": 500,
    "hospital_c": 300,
    "hospital_d": 300,
    "hospital_e": 200,
}
NNM = ({"name": "nnm"},)
# What each measures beside inner products: the root, the last aggregate, coordinates, the past.
DEMANDING: dict[str, dict[str, Any]] = {
    "fltrust": {"rule": "fltrust"},
    "centered_clipping": {"rule": "centered_clipping"},
    "dnc": {"rule": "dnc", "quorum": 3},
    "foolsgold": {"rule": "foolsgold"},
    "nnm": {"rule": "geometric_median", "pre_aggregation": NNM, "quorum": 3},
}


def rounds_of(coordinator: Running) -> tuple[Round, ...]:
    return coordinator.store.rounds(after=0, limit=100)


async def built_again(coordinator: Running, number: int) -> Digest:
    """The model of a round that is over, made from what is still on disk."""
    rnd = replace(rounds_of(coordinator)[number - 1], phase=Phase.AGGREGATING, candidate=None)
    built = await coordinator.use_cases.judge.build(
        rnd, updates=coordinator.store.updates(rnd.round_id), released_in=number - 1
    )
    return built.model


@pytest.mark.parametrize("name", DEMANDING)
async def test_a_study_learns_by_any_rule_and_leaves_no_scratch(tmp_path: Path, name: str) -> None:
    site = make_site(tmp_path, keep_spooled=10, **DEMANDING[name])
    async with running(site) as coordinator:
        await play(coordinator)
        first, second = rounds_of(coordinator)
        assert second.candidate is not None
        final = weights_of(coordinator.models.path(second.candidate))
        assert loss(final) < 0.6 * loss(np.zeros(ELEMENTS))
        assert await built_again(coordinator, 1) == first.candidate
        assert await built_again(coordinator, 2) == second.candidate
        scored = [each for each in events_of(coordinator.store) if each["event"] == "round_scored"]
    assert [DEMANDING[name]["rule"] in str(each["rule"]) for each in scored] == [True, True]
    assert list((site.config.state_dir / "spool").glob("*/scratch-*")) == []


async def test_scratch_that_cannot_be_deleted_costs_no_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fail(self: LocalFiles, folder: Path) -> None:
        tried.append(folder)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(LocalFiles, "remove_tree", fail)
    site = make_site(tmp_path, keep_spooled=10, **DEMANDING["fltrust"])
    async with running(site) as coordinator:
        await play(coordinator)
        assert [each.phase for each in rounds_of(coordinator)] == [Phase.RELEASED] * 2
    assert all(each.name.startswith("scratch-") for each in tried)
    assert len(tried) >= 2 * len(rounds_of(coordinator))


async def test_a_model_made_from_what_judging_measured_is_the_one_that_is_measured_again(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path, sizes=FIVE, keep_spooled=10, has_holdout=False, **DEMANDING["nnm"])
    async with running(site) as coordinator:
        await play(coordinator)
        for rnd in rounds_of(coordinator):
            assert rnd.candidate is not None
            assert await built_again(coordinator, rnd.round_id) == rnd.candidate


@pytest.mark.hostile
async def test_an_update_changed_after_it_was_judged_is_not_aggregated(tmp_path: Path) -> None:
    site = make_site(tmp_path, sizes=FIVE, keep_spooled=10, has_holdout=False, **DEMANDING["nnm"])
    async with running(site) as coordinator:
        await play(coordinator)
        rnd = rounds_of(coordinator)[1]
        updates = coordinator.store.updates(rnd.round_id)
        judge = coordinator.use_cases.judge
        await judge.judge(replace(rnd, phase=Phase.SCORING), (), updates=updates, violations={})
        spooled = site.config.state_dir / "spool" / "2" / "hospital_a.update"
        data = bytearray(spooled.read_bytes())
        data[100_000] ^= 1
        spooled.write_bytes(data)
        with pytest.raises(IntegrityError, match="hospital_a is not the one that was admitted"):
            await built_again(coordinator, 2)


class DyingStore(FaultyStore):
    """Fails the first commit with an entry of this event, and everything after it."""

    def __init__(self, store: Store, event: str, fault: Fault) -> None:
        super().__init__(store)
        self._event, self._fault = event, fault
        self._is_dead = False

    def load(self) -> State:
        if self._is_dead:
            raise StoreError("the process is dead (injected)")
        return super().load()

    def commit(
        self, changes: Sequence[Change], entries: Sequence[Entry]
    ) -> tuple[LoggedEntry, ...]:
        if any(each.event == self._event for each in entries):
            self._is_dead = True
            self.fail_commit(self.commits, self._fault)
        return super().commit(changes, entries)


@pytest.mark.crash
@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("name", DEMANDING)
async def test_a_process_that_dies_at_any_step_of_a_round_leaves_the_same_model_to_be_made(
    tmp_path: Path, name: str, fault: Fault
) -> None:
    site = make_site(tmp_path, keep_spooled=10, **DEMANDING[name])
    for event in ("collection_closed", "round_scored", "model_aggregated", "model_released"):
        with pytest.raises(StoreError):
            async with running(site, DyingStore(site.connect_store(), event, fault)) as dying:
                await play(dying)
    async with running(site) as coordinator:
        await play(coordinator)
        assert [each.phase for each in rounds_of(coordinator)] == [Phase.RELEASED] * 2
        for rnd in rounds_of(coordinator):
            assert await built_again(coordinator, rnd.round_id) == rnd.candidate
        names = [str(each["event"]) for each in events_of(coordinator.store)]
    for event in ("round_scored", "round_weighted", "model_aggregated", "model_released"):
        assert names.count(event) == 2, event


def harmful(node_id: NodeId, start: RoundStart) -> np.ndarray[Any, np.dtype[np.float64]]:
    return -honest_update(node_id, start)


@pytest.mark.hostile
async def test_the_scores_in_the_log_follow_from_the_spooled_updates(tmp_path: Path) -> None:
    site = make_site(tmp_path, sizes=FIVE, keep_spooled=10, study={"rounds": 3})
    async with running(site) as coordinator:
        await play(coordinator, make={NodeId("hospital_e"): harmful})
    async with running(site) as coordinator:
        store = coordinator.store
        history = {each.round_id: each.records for each in store.trust_history(after=0, limit=9)}
        logged = [
            each.data
            for each in store.log_entries(start=0, limit=1000)
            if each.data is not None and parse_entry(each.data)["event"] == "round_scored"
        ]
        for rnd in rounds_of(coordinator):
            verdict = await coordinator.use_cases.judge.judge(
                rnd,
                history.get(RoundId(rnd.round_id - 1), ()),
                updates=store.updates(rnd.round_id),
                violations={},
            )
            assert verdict.judgement.records == history[rnd.round_id]
            assert verdict.weights == rnd.weights
            (again,) = score_entries(rnd, verdict, seed=coordinate_seed(rnd), at=utc_now())
            assert without_time(again.data) == without_time(logged[rnd.round_id - 1])
    last = parse_entry(logged[-1])["trust"]
    assert isinstance(last, dict)
    assert last["hospital_e"]["components"]["z"] < 0 < last["hospital_a"]["components"]["z"]
    assert last["hospital_e"]["state"] == "quarantined"


def without_time(entry: bytes) -> dict[str, object]:
    """Without the time and whose reign it was, which is stamped on when it is written."""
    facts = parse_entry(entry).items()
    return {name: fact for name, fact in facts if name not in {"at", "reign"}}


async def test_a_large_federations_scores_are_split_over_entries_that_fit(tmp_path: Path) -> None:
    site = make_site(tmp_path, study={"rounds": 1}, keep_spooled=10)
    async with running(site) as coordinator:
        await play(coordinator)
        (rnd,) = rounds_of(coordinator)
        verdict = await coordinator.use_cases.judge.judge(
            rnd, (), updates=coordinator.store.updates(rnd.round_id), violations={}
        )
    (record, *_) = verdict.judgement.records
    many = tuple(
        replace(record, node_id=NodeId(f"hospital_{n:054d}"), reason="x" * 500) for n in range(1000)
    )
    large = replace(verdict, judgement=replace(verdict.judgement, records=many))
    entries = list(score_entries(rnd, large, seed=1, at=utc_now()))
    parsed = [parse_entry(each.data) for each in entries]
    assert [each["part"] for each in parsed] == list(range(1, len(entries) + 1))
    named: set[str] = set()
    for each in parsed:
        assert isinstance(each["trust"], dict)
        named |= each["trust"].keys()
    assert len(named) == 1000


@pytest.mark.parametrize(
    ("counting", "excluded", "f"), [(5, 0, 1), (4, 1, 0), (3, 2, 0), (4, 0, None), (2, 3, None)]
)
def test_a_rule_is_fitted_to_the_updates_that_count(
    counting: int, excluded: int, f: int | None
) -> None:
    krum = make_aggregator(Choice("krum"), f=1)
    found = fitted(krum, f=1, counting=counting, excluded=excluded)
    assert (None if found is None else found.rule.parameters["f"]) == f


@pytest.mark.hostile
async def test_krum_goes_on_without_the_hospital_that_trust_excluded(tmp_path: Path) -> None:
    site = make_site(tmp_path, sizes=FIVE, rule="krum", quorum=5, study={"rounds": 3})
    async with running(site) as coordinator:
        await play(coordinator, make={NodeId("hospital_e"): harmful})
        last = rounds_of(coordinator)[-1]
        scored = [each for each in events_of(coordinator.store) if each["event"] == "round_scored"]
    assert last.phase is Phase.RELEASED
    assert {each.node_id for each in last.weights if each.weight == 0.0} == {"hospital_e"}
    assert str(scored[-1]["rule"]).startswith("krum(f=0")


def test_the_reference_is_the_mean_over_classes_of_the_mean_over_folds() -> None:
    vectors = {f"root-{c}-{f}": np.array([c + 1.0, f]) for c in (0, 1) for f in range(c + 2)}
    gram = Gram.of({NodeId("a"): np.array([1.0, 0.0])}, vectors)
    root = [RootRow(name, int(name[5]), int(name[7]), 10) for name in vectors]
    reference = reference_in(gram, root, step=2.0)
    rows = np.stack([np.array([1.0, 0.0]), *vectors.values()])
    assert np.allclose(reference @ rows, [3.0, 1.5])


def test_the_difference_of_two_models_is_laid_out_like_an_update(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / "newer", tmp_path / "older"]
    values = [
        {spec.name: rng.normal(size=spec.shape).astype("<f4") for spec in SCHEMA.tensors}
        for _ in paths
    ]
    for path, tensors in zip(paths, values, strict=True):
        body = b"".join(tensors[spec.name].tobytes() for spec in SCHEMA.tensors)
        path.write_bytes(safetensors_header(SCHEMA) + body)
    write_difference(tmp_path / "row", newer=paths[0], older=paths[1], schema=SCHEMA)
    found = np.fromfile(tmp_path / "row", dtype="<f4")
    expected = values[0]["head.weight"] - values[1]["head.weight"]
    assert np.array_equal(found, expected.ravel())


async def test_damaged_histories_hold_the_round_and_say_what_to_do(tmp_path: Path) -> None:
    site = make_site(tmp_path, keep_spooled=10, **DEMANDING["foolsgold"])
    async with running(site) as coordinator:
        await play(coordinator)
        folder = site.config.state_dir / "histories"
        assert sorted(each.name for each in folder.iterdir()) == ["1.histories", "2.histories"]
        FileHistories.open_folder(folder).put(RoundId(1), b"not histories")
        with pytest.raises(IntegrityError, match="remove its folder"):
            await built_again(coordinator, 2)


async def test_the_last_aggregate_is_the_base_model_less_the_one_it_came_from(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path, keep_spooled=10)
    async with running(site) as coordinator:
        await play(coordinator)
        store, models = coordinator.store, coordinator.models
        spool = DiskSpool.open_folder(site.config.state_dir / "spool")

        def base_model_of(number: RoundId) -> Digest | None:
            found = store.round(number)
            return None if found is None else found.base_model

        surveyor = Surveyor(
            hashes=remembered_hashes(),
            plan=coordinator.plan,
            spool=spool,
            models=models,
            scorer=coordinator.scorer,
            enrolled=lambda: {node: Enrolment(1) for node in site.hospitals},
            histories=FileHistories.open_folder(site.config.state_dir / "histories"),
            base_model_of=base_model_of,
            threads=1,
            executor=LocalExecutor(),
        )
        found = []
        for rnd in rounds_of(coordinator):
            survey = await surveyor.survey(
                rnd,
                store.updates(rnd.round_id),
                nodes=rnd.admitted_nodes,
                needs=Needs(previous=True),
                released_in=rnd.round_id - 1,
            )
            found.append(np.fromfile(survey.extras[0].path, dtype="<f4"))
            assert survey.gram.extras == (PREVIOUS_AGGREGATE,)
        first, second = (
            weights_of(models.path(each.base_model)) for each in rounds_of(coordinator)
        )
    assert not found[0].any()
    assert found[0].shape == found[1].shape
    assert np.allclose(found[1], second - first, atol=1e-7)
    assert found[1].any()


@pytest.mark.hostile
async def test_what_an_excluded_hospital_sends_is_in_the_histories_all_the_same(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path, sizes=FIVE, **DEMANDING["foolsgold"])
    async with running(site) as coordinator:
        await play(coordinator, make={NodeId("hospital_e"): harmful})
        last = rounds_of(coordinator)[-1]
        assert {each.node_id for each in last.weights if each.weight == 0.0} == {"hospital_e"}
    stored = FileHistories.open_folder(site.config.state_dir / "histories").before(RoundId(3))
    assert stored is not None
    histories = Histories.parse(stored)
    assert tuple(histories.sketches) == site.hospitals
    products = histories.inner_products(site.hospitals)
    # Against the others in both rounds, whatever trust made of it.
    assert (products[4, :4] < 0).all()
    # One round's update is 0.3 of the way to a target one away; two of them are 0.6.
    assert products[0, 0] == pytest.approx(0.36, rel=0.2)
