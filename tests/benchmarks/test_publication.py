"""What ``evidence.json`` says of where a figure comes from, and what may take its place."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import evidence_results
from benchmarks.results.gather import run_of
from benchmarks.results.publication import (
    merged,
    published_study,
    read_published,
    summary_of,
    text_of,
)
from matl.simulation.campaign import fingerprint
from matl.simulation.study import Hostile, Study
from matl_common.errors import ConfigurationError
from tests.simulation.outcomes import made_outcome

ROOT = Path(__file__).parents[2]


def some(*seeds: int, arm: str = "matl", **more: Any) -> dict[str, Any]:
    """A study with one cell, which has these seeds."""
    cell = {"study": "of", "arm": arm, "seeds": list(seeds)}
    return {"asked_runs": 10, "finished_runs": len(seeds), "cells": [cell], **more}


def test_no_published_run_is_lost_however_many_others_there_are() -> None:
    published = {"robust-n5": some(0, 1), "tutorial-fundus": some(0)}
    for fewer in (some(0), some(1, 2, 3), some(0, 1, arm="mean")):
        with pytest.raises(ConfigurationError, match=r"robust-n5 \([12] of 2: matl\).*--replace"):
            merged(published, {"robust-n5": fewer, "tutorial-fundus": some(0, 1)}, order=())
    same = {"robust-n5": some(0, 1, code="new")}
    assert merged(published, same, order=())["robust-n5"]["code"] == "new"


def test_a_study_of_which_nothing_is_finished_here_stays_as_it_was_published() -> None:
    published = {"robust-n5": some(0), "peers": some(0)}
    whole = merged(published, {"tutorial-fundus": some(0)}, order=evidence_results.ORDER)
    assert list(whole) == ["tutorial-fundus", "robust-n5", "peers"]
    assert whole["peers"] == published["peers"]


def published(studies: dict[str, Any]) -> dict[str, Any]:
    return {"date": "2026-01-01", "command": "before", "summary": {"old": 1}, "studies": studies}


def test_without_finished_runs_what_was_published_stays_as_it_was() -> None:
    before = published({"robust-n5": some(0)})
    after = evidence_results.to_publish(before, {}, command="now", replaced=False)
    assert after == {**before, "summary": summary_of(before["studies"])}


def test_what_is_published_is_replaced_by_less_only_when_that_is_asked_for() -> None:
    before = published({"robust-n5": some(0, 1), "peers": some(0)})
    found = {"robust-n5": some(1)}
    with pytest.raises(ConfigurationError, match="published runs are not finished here"):
        evidence_results.to_publish(before, found, command="now", replaced=False)
    after = evidence_results.to_publish(before, found, command="now", replaced=True)
    assert (after["studies"], after["command"]) == (found, "now")
    for nothing, replaced in ((before, True), (published({}), False)):
        with pytest.raises(ConfigurationError, match="nothing to publish"):
            evidence_results.to_publish(nothing, {}, command="now", replaced=replaced)


def test_tables_on_a_fresh_clone_write_what_is_committed(tmp_path: Path) -> None:
    copied = (evidence_results.RESULTS, evidence_results.PAGE)
    for path in copied:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    (tmp_path / evidence_results.PLOTS).mkdir()
    (tmp_path / evidence_results.STUDIES).parent.mkdir()
    (tmp_path / evidence_results.STUDIES).symlink_to(ROOT / evidence_results.STUDIES)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.evidence_results", "--tables"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "No run is finished" in done.stdout
    for path in copied:
        assert (tmp_path / path).read_text() == (ROOT / path).read_text()


def test_a_study_says_which_code_and_features_its_figures_came_of_and_when(tmp_path: Path) -> None:
    features = tmp_path / "x.safetensors"
    features.write_bytes(b"features")
    attacked = Study(hostile=Hostile(attack="nan", count=1))
    study = published_study(
        [run_of(Study(), made_outcome(accuracy=0.9))],
        asked=[Study(), attacked],
        asked_runs=2,
        command="python -m x",
        newest="2026-01-02T00:00:00+00:00",
        features=features,
        data="d",
    )
    assert study["newest_run"] == "2026-01-02T00:00:00+00:00"
    assert (study["command"], study["data"]) == ("python -m x", "d")
    assert study["code"] == fingerprint()
    assert study["fingerprint"] == fingerprint(features) != fingerprint()
    without = fingerprint(features, keeps_trust=False)
    assert study["fingerprint_without_trust"] == without != fingerprint(keeps_trust=False)
    assert (study["finished_runs"], study["asked_runs"]) == (1, 2)
    assert study["asked_attacks"] == ["nan"]
    text = text_of(published({"x": study}))
    assert text.count("\n    {") == 1, "one line a cell"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"studies": {"x": {}}}', '{"studies": {"x": {"cells": [{}]}}}'],
)
def test_a_file_that_is_not_the_evidence_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "evidence.json"
    assert read_published(path) == {"studies": {}}
    path.write_text(text)
    with pytest.raises(
        ConfigurationError, match=r"evidence\.json is not what make evidence writes"
    ):
        read_published(path)


def test_the_summary_has_the_gap_of_both_recipes() -> None:
    gap = {"mean": 2.2, "half_width": 1.9, "runs": 4}
    cell = {
        "arm": "matl",
        "attack": "label_complement",
        "mix": "sites",
        "epsilon": "inf",
        "below_centralised_points": gap,
    }
    studies = {"tuned-fundus-inf": {"cells": [cell]}}
    name = "matl_vs_centralised_gap_points_eps_inf_fundus_recipe_for_accuracy"
    assert summary_of(studies) == {name: gap}
