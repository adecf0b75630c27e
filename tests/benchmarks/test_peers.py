"""Other implementations' rules in the simulation."""

import io
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks import evidence_results
from benchmarks.results import peers
from benchmarks.results.known import data_digest
from benchmarks.results.peer_rules import (
    BYZFLS,
    FLOWERS,
    MOST,
    VERSIONS,
    PeerArm,
    RuleFailedError,
    byzfl_rule,
    rules_digest,
)
from benchmarks.results.peers import peer_jobs, run_peers
from matl.simulation.arms import RoundInput
from matl.simulation.campaign import open_finished
from matl.simulation.study import ArmName, Study
from matl_common.errors import ConfigurationError
from matl_common.ids import NodeId

ROOT = Path(__file__).parents[2]
HONEST = np.array([[1.0, 0.0], [1.1, 0.1], [0.9, -0.1], [1.0, 0.1], [1.0, -0.1]], dtype=np.float32)
ROWS = np.concatenate([HONEST, [[-50.0, 0.0], [-50.0, 1.0]]]).astype(np.float32)


def closed(rows: Mapping[NodeId, np.ndarray], *, refused: Mapping[NodeId, str]) -> RoundInput:
    nothing = np.zeros(2, dtype=np.float32)
    return RoundInput(
        number=1,
        base=nothing,
        sent=rows,
        updates=rows,
        violations=refused,
        root=[],
        descent=lambda _part, _step: nothing,
        root_update=lambda: nothing,
        pooled_update=lambda: nothing,
        loss_improvement={},
        losses_before=np.zeros(1),
        losses=lambda _update: np.zeros(1),
    )


@pytest.mark.parametrize("name", BYZFLS)
def test_a_rule_of_byzfl_stands_two_of_seven(name: str) -> None:
    found = byzfl_rule(name, 2)(ROWS)
    assert found.dtype == np.float32
    assert np.linalg.norm(found - HONEST.mean(axis=0)) < 1.0
    assert np.linalg.norm(ROWS.mean(axis=0) - HONEST.mean(axis=0)) > 10.0


def test_every_rule_stands_as_many_as_its_proof_accepts() -> None:
    assert {*FLOWERS, *BYZFLS} == MOST.keys()
    most = {name: accepted(20) for name, accepted in MOST.items()}
    assert (most["krum"], most["multi-krum"], most["bulyan"]) == (8, 8, 4)
    assert {most["median"], most["trimmed-mean"], most["nnm+trimmed-mean"]} == {9}


def test_a_rule_that_fails_holds_the_round_and_the_model_stays() -> None:
    def rule(rows: np.ndarray) -> np.ndarray:
        if len(rows) < 3:
            raise RuleFailedError("too few")
        return np.asarray(rows.mean(axis=0))

    arm = PeerArm(rule, first_model=np.zeros(2, dtype=np.float32))
    nodes = [NodeId(f"hospital_{letter}") for letter in "abcd"]
    three: dict[NodeId, Any] = dict(zip(nodes, HONEST, strict=False))
    del three[nodes[3]]
    decision = arm.decide(closed(three, refused={nodes[3]: "not a number"}))
    assert arm.refused == {nodes[3]}
    assert decision.shares == dict.fromkeys(nodes[:3], 1 / 3)
    moved = arm.released()
    np.testing.assert_allclose(moved, HONEST[:3].mean(axis=0))
    for few in ({nodes[0]: HONEST[0]}, {}):
        assert arm.decide(closed(few, refused={})).base is None
    assert arm.released() is moved


def test_without_flower_the_rest_is_measured_and_the_way_to_have_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "python"
    monkeypatch.setattr(evidence_results, "FLOWER", gone)
    said = io.StringIO()
    console = Console(file=said, width=200)
    evidence_results.run_missing_peers({}, console, fashion=tmp_path, out=tmp_path)
    assert "715 runs" in said.getvalue()
    assert f"{gone} is missing; make peers" in said.getvalue()
    jobs = peer_jobs(fashion=tmp_path)[:1]
    with pytest.raises(ConfigurationError, match="make peers"):
        run_peers(jobs, console, flower=gone, out=tmp_path)


def test_only_what_is_not_finished_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = Study.model_validate({"hospitals": {"count": 7}, "training": {"rounds": 1}})
    (job,) = peer_jobs()[:1]
    arms: Any = (ArmName.ORACLE, "byzfl krum")
    job = replace(job, study=digits, arms=arms)
    monkeypatch.setattr(peers, "flower_rules", lambda _python: open(__file__))  # noqa: SIM115
    said = io.StringIO()
    for expected in (2, 0):
        run_peers([job], Console(file=said, width=200), flower=Path(__file__), out=tmp_path)
        assert said.getvalue().count(" %") == expected
        said.truncate(0)
        said.seek(0)
    finished = open_finished(tmp_path, peers.NAME)
    assert all(finished.get(job, arm) is not None for arm in arms)


def test_a_run_is_known_by_the_rules_and_versions_that_made_it(tmp_path: Path) -> None:
    job = peer_jobs(fashion=tmp_path)[0]
    assert job.beside == rules_digest()
    other = replace(job, beside="of other rules")
    assert job.key(ArmName.MEAN) != other.key(ArmName.MEAN)
    assert data_digest(job) != data_digest(other)
    assert data_digest(replace(job, beside="")) == data_digest(job).split(" ")[0]
    assert f"flwr[simulation]=={VERSIONS['flwr']}" in (ROOT / "Makefile").read_text()
    assert VERSIONS["byzfl"] == metadata.version("byzfl")
