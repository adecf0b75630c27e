"""Noised evaluations of hospitals: asked for, taken, shown, and never decided by."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from matl_common.errors import ConfigurationError
from matl_common.ids import Digest, NodeId
from matl_common.privacy.budget import full_batch_epsilon, inverse_variance
from matl_common.privacy.charges import epsilon_of, fraction_of_plan, full_batch_events
from matl_common.privacy.mechanisms import Noise
from matl_common.protocol import NoisedCount, RoundStart, StudyPlan
from matl_coordinator.core.admission import RefusalCode
from matl_coordinator.core.evaluations import HospitalEvaluation
from matl_coordinator.core.rounds import Phase, Round
from matl_coordinator.service.founding import StudyMismatchError
from matl_coordinator.service.intake import RefusedError
from tests.coordinator.harness import (
    ELEMENTS,
    NODES,
    SIZES,
    Running,
    Site,
    final_model,
    honest_update,
    make_site,
    next_round,
    running,
    seal,
    send,
    together,
)
from tests.coordinator.harness import (
    events_of as logged_events,
)

pytestmark = pytest.mark.privacy

A, B, C = NODES
ASKING: dict[str, str | float] = {"evaluation": "noised-count", "epsilon": 100.0}
Claims = dict[NodeId, float | None]


def site_asking(folder: Path, **study: object) -> Site:
    return make_site(folder, study={**ASKING, **study})


def site_of_one(folder: Path, study: dict[str, str | float]) -> Site:
    """A round opens for one hospital, and stays open for the others."""
    return make_site(folder, study=study, minimum_participants=1, quorum=1, byzantine=0)


def noise_of(plan: StudyPlan) -> float:
    terms = plan.privacy.evaluation
    assert terms is not None
    return terms.noise_multiplier


def noised_update(node_id: NodeId, start: RoundStart, plan: StudyPlan) -> NDArray[np.float64]:
    """An honest step with the noise that the plan promises, the same in every run."""
    draws = np.random.default_rng([start.round_id, SIZES[node_id]])
    stddev = plan.privacy.noise_multiplier / SIZES[node_id]
    return honest_update(node_id, start) + stddev * draws.normal(size=ELEMENTS)


async def take_part(coordinator: Running, node_id: NodeId, claim: float | None) -> None:
    plan, have_round = coordinator.plan, 0
    while (start := await next_round(coordinator, node_id, have_round=have_round)) is not None:
        evaluation = None if claim is None else NoisedCount(claim, noise_of(plan))
        sealed = seal(
            coordinator.site,
            node_id,
            start,
            plan,
            noised_update(node_id, start, plan),
            evaluation=evaluation,
        )
        await send(coordinator, node_id, sealed)
        have_round = start.round_id


async def play(coordinator: Running, claims: Claims) -> tuple[Round, ...]:
    await together(
        *(take_part(coordinator, node, claims.get(node)) for node in coordinator.site.hospitals)
    )
    return coordinator.store.rounds(after=0, limit=10)


async def test_counts_are_logged_and_shown_with_their_noise_beside_the_enrolled_patients(
    tmp_path: Path,
) -> None:
    store = (site := site_asking(tmp_path)).connect_store()
    async with running(site, store) as coordinator:
        rounds = await play(coordinator, {A: 801.5, B: -0.25})
        stddev = noise_of(coordinator.plan)
        declared = await coordinator.use_cases.overview.declared()
        metrics = generate_latest(coordinator.meter.registry).decode()
        logged = [each for each in logged_events(store) if each["event"] == "hospital_evaluated"]
    assert [rnd.phase for rnd in rounds] == [Phase.RELEASED] * 2
    for rnd in rounds:
        assert {each.node_id: each.evaluation for each in rnd.admitted} == {
            A: HospitalEvaluation(801.5, stddev, 1000),
            B: HospitalEvaluation(-0.25, stddev, 500),
            # It refused, and is none the worse for it.
            C: None,
        }
    assert sorted((each["round"], each["node"]) for each in logged) == [
        (number, node) for number in (1, 2) for node in (A, B)
    ]
    first = next(each for each in logged if (each["round"], each["node"]) == (1, A))
    assert {name: first[name] for name in ("correct", "stddev", "patients", "model")} == {
        "correct": 801.5,
        "stddev": stddev,
        "patients": 1000,
        "model": rounds[0].base_model,
    }
    assert 'matl_hospital_noised_accuracy_ratio{node="hospital_a"} 0.8015' in metrics
    assert f'_stddev_ratio{{node="hospital_b"}} {stddev / 500}' in metrics
    assert 'accuracy_ratio{node="hospital_c"}' not in metrics
    # Whoever evaluated has spent more, by the same figures that its own ledger shows.
    terms = coordinator.plan.privacy
    for node, evaluations in ((A, 2), (B, 2), (C, 0)):
        spent = declared(node)
        assert spent.epsilon == epsilon_of(terms, steps=2, evaluations=evaluations)
        assert spent.budget_fraction == fraction_of_plan(terms, steps=2, evaluations=evaluations)
        assert spent.rounds_left == 2
    assert (declared(A).epsilon or 0.0) > (declared(C).epsilon or 0.0)


async def test_whatever_hospitals_say_of_models_decides_nothing(tmp_path: Path) -> None:
    came_to: list[tuple[object, ...]] = []
    claims: list[Claims] = [
        {},
        {A: 900.0, B: 400.0, C: 250.0},
        {A: 0.0, B: math.nan, C: 1e300},
    ]
    for number, claim in enumerate(claims):
        (folder := tmp_path / str(number)).mkdir()
        site = site_asking(folder)
        async with running(site) as coordinator:
            with capture_logs() as logs:
                rounds = await play(coordinator, claim)
            state = await coordinator.register.state()
            model: Digest = await final_model(coordinator)
        shares = [each.weight for rnd in rounds for each in rnd.weights]
        came_to.append((model, shares, state.trust))
    assert came_to[0] == came_to[1] == came_to[2]
    assert min(came_to[0][1]) > 0.0  # type: ignore[call-overload]  # the shares
    # What cannot be is told, and is no number.
    doubts = [each for each in logs if each["event"] == "hospital_evaluation_doubted"]
    assert {(each["round"], each["node"], each["log_level"]) for each in doubts} == {
        (number, node, "warning") for number in (1, 2) for node in (B, C)
    }
    told = {each.node_id: each.evaluation for each in rounds[-1].admitted}
    for node in (B, C):
        found = told[node]
        assert found is not None
        assert found.correct is None
        assert found.doubt


@pytest.mark.parametrize("factor", [0.5, 0.999, 1.001, 2.0])
async def test_an_update_that_declares_another_noise_for_its_evaluation_is_refused(
    tmp_path: Path, factor: float
) -> None:
    store = (site := site_of_one(tmp_path, ASKING)).connect_store()
    async with running(site, store) as coordinator:
        start = await next_round(coordinator, A)
        assert start is not None
        plan = coordinator.plan
        sealed = seal(
            site,
            A,
            start,
            plan,
            noised_update(A, start, plan),
            evaluation=NoisedCount(800.0, factor * noise_of(plan)),
        )
        with pytest.raises(RefusedError, match="noise of the evaluation") as refused:
            await send(coordinator, A, sealed)
        rnd = (await coordinator.register.state()).round
    assert refused.value.code is RefusalCode.WRONG_PRIVACY
    # The round goes on, and the hospital may send what it should have.
    assert rnd is not None
    assert (rnd.phase, rnd.admitted) == (Phase.COLLECTING, ())


async def test_an_evaluation_that_nobody_asked_for_is_refused(tmp_path: Path) -> None:
    site = site_of_one(tmp_path, {})
    async with running(site) as coordinator:
        start = await next_round(coordinator, A)
        assert start is not None
        update = honest_update(A, start)
        sealed = seal(site, A, start, coordinator.plan, update, evaluation=NoisedCount(800.0, 50.0))
        with pytest.raises(RefusedError, match="asks for none"):
            await send(coordinator, A, sealed)


async def test_sending_an_update_again_logs_its_evaluation_once(tmp_path: Path) -> None:
    store = (site := site_of_one(tmp_path, ASKING)).connect_store()
    async with running(site, store) as coordinator:
        start = await next_round(coordinator, A)
        assert start is not None
        plan = coordinator.plan
        count = NoisedCount(800.0, noise_of(plan))
        sealed = seal(site, A, start, plan, noised_update(A, start, plan), evaluation=count)
        receipts = [(await send(coordinator, A, sealed)).receipt for _ in range(3)]
        names = [each["event"] for each in logged_events(store)]
    assert all(receipts)
    assert names.count("hospital_evaluated") == 1
    # Its admission is what the receipt names, so it comes first.
    assert names.index("update_admitted") + 1 == names.index("hospital_evaluated")


@pytest.mark.parametrize("noise", Noise)
@pytest.mark.parametrize("share", [0.05, 0.3])
async def test_the_plan_gives_evaluations_their_share_and_training_the_rest(
    tmp_path: Path, noise: Noise, share: float
) -> None:
    site = site_asking(tmp_path, noise=noise, evaluation_share=share, epsilon=1.0)
    store = site.connect_store()
    async with running(site, store) as coordinator:
        terms = coordinator.plan.privacy
        founded = logged_events(store)[0]
    assert terms.evaluation is not None
    rounds = site.config.study.max_rounds
    assert terms.evaluation.max_evaluations == rounds
    assert founded["evaluation"] == {
        "noise_multiplier": terms.evaluation.noise_multiplier,
        "max_evaluations": rounds,
    }
    training, evaluations = full_batch_events(terms, steps=terms.max_steps, evaluations=rounds)
    both = inverse_variance([training, evaluations])
    assert inverse_variance([evaluations]) / both == pytest.approx(share)
    assert 0.999 < full_batch_epsilon([training, evaluations], 1e-5) <= 1.0


async def test_a_study_that_has_begun_keeps_its_evaluations_and_their_share(
    tmp_path: Path,
) -> None:
    site = site_asking(tmp_path)
    async with running(site):
        await asyncio.sleep(0)
    for changes in ({"evaluation": "none"}, {"evaluation_share": 0.06}):
        study = site.config.study.model_copy(update=changes)
        changed = Site(
            site.folder, site.config.model_copy(update={"study": study}), site.allowlist, site.nodes
        )
        with pytest.raises(StudyMismatchError, match="differs from the plan"):
            async with running(changed):
                pass
    async with running(site):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("study", "why"),
    [
        ({"epsilon": float("inf")}, "finite epsilon"),
        ({"recipe": "full", "backbone": "small_gn"}, "recipe 'head'"),
        ({"evaluation_share": 0.0}, "evaluation_share"),
        ({"evaluation_share": 0.51}, "evaluation_share"),
        ({"evaluation": "exact"}, "evaluation"),
    ],
)
def test_a_study_whose_evaluations_cannot_be_is_refused_at_the_start(
    tmp_path: Path, study: dict[str, object], why: str
) -> None:
    with pytest.raises((ConfigurationError, ValueError), match=why):
        make_site(tmp_path, study={**ASKING, **study})
