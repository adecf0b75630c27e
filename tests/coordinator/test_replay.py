"""A round's log entries and the spooled updates give its model again, and nothing else does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matl_common.errors import ConfigurationError, IntegrityError, InvalidInputError
from matl_common.ids import digest_of
from matl_common.protocol import PayloadType
from matl_common.signing import verify
from matl_common.tlog.entry import parse_entry
from matl_common.tlog.leaf import parse_leaf
from matl_common.wire.documents import parse_score_receipt
from matl_coordinator.replay import ReplayDifferenceError, replay_round
from matl_coordinator.service.story import read_story
from tests.coordinator.harness import Site, make_site, play, running

FIVE = {f"hospital_{letter}": 1000 for letter in "abcde"}
Facts = dict[str, Any]

RULES: dict[str, Mapping[str, Any]] = {
    "median": {"rule": "coordinate_median"},
    "nnm and trimmed mean": {
        "rule": "trimmed_mean",
        "pre_aggregation": [{"name": "nnm", "parameters": {}}],
    },
    "centered clipping, which goes on from the last aggregate": {"rule": "centered_clipping"},
}


async def a_study(folder: Path, **rounds: Any) -> tuple[Site, list[Facts]]:
    """Two rounds played to the end, and what the log says."""
    site = make_site(folder, sizes=FIVE, keep_spooled=10, byzantine=1, **rounds)
    async with running(site) as coordinator:
        await play(coordinator)
        assert len(coordinator.store.rounds(after=0, limit=9)) == 2
        logged = coordinator.store.log_entries(start=0, limit=10_000)
    return site, [dict(parse_entry(each.data)) for each in logged if each.data is not None]


@pytest.mark.parametrize("name", RULES)
async def test_both_rounds_come_out_as_the_log_says(tmp_path: Path, name: str) -> None:
    site, entries = await a_study(tmp_path, **RULES[name])
    models = sorted((site.config.state_dir / "models").iterdir())
    for number in (1, 2):
        steps = await replay_round(site.config, entries, number)
        told = read_story(entries, number)
        assert steps[-1].what == "Model"
        assert steps[-1].found == told.model
    # Nothing was added to the coordinator's folders.
    assert sorted((site.config.state_dir / "models").iterdir()) == models
    assert list((site.config.state_dir / "spool").glob("*/scratch")) == []


def changed(entries: list[Facts], event: str, **facts: Any) -> list[Facts]:
    """The entries of round 1 with another fact, as a lying coordinator would have logged."""
    return [
        {**each, **facts} if (each["event"], each.get("round")) == (event, 1) else each
        for each in entries
    ]


async def test_the_first_thing_that_differs_is_named(tmp_path: Path) -> None:
    site, entries = await a_study(tmp_path, **RULES["median"])
    weights = dict.fromkeys(("hospital_a", "hospital_b"), 1 / 2)
    lies: list[tuple[list[Facts], str]] = [
        (changed(entries, "model_aggregated", model="ab" * 32), "the log says abab"),
        (changed(entries, "round_weighted", weights=weights), "weights, reach, rule or model"),
        (changed(entries, "round_scored", coordinate_seed="0" * 15), "coordinate_seed"),
        (changed(entries, "round_scheduled", nonce="00" * 32), "coordinate_seed"),
    ]
    for told, difference in lies:
        with pytest.raises(ReplayDifferenceError, match=difference):
            await replay_round(site.config, told, 1)


async def test_an_update_that_is_not_what_its_hospital_signed_is_found(tmp_path: Path) -> None:
    site, entries = await a_study(tmp_path, **RULES["median"])
    path = site.config.state_dir / "spool" / "1" / "hospital_c.update"
    values = np.fromfile(path, dtype="<f4")
    values[0] += 1
    values.tofile(path)
    with pytest.raises(ReplayDifferenceError, match="update of hospital_c is not the one"):
        await replay_round(site.config, entries, 1)
    path.unlink()
    with pytest.raises(ConfigurationError, match="no longer spooled"):
        await replay_round(site.config, entries, 1)


async def test_a_manifest_that_its_hospital_did_not_sign_is_found(tmp_path: Path) -> None:
    site, entries = await a_study(tmp_path, **RULES["median"])
    declared = [each for each in entries if each["event"] == "update_declared"]
    first, second = (json.loads(json.dumps(each["manifest"])) for each in declared[:2])
    forged = [
        {**each, "manifest": {**first, "signature": second["signature"]}}
        if each is declared[0]
        else each
        for each in entries
    ]
    with pytest.raises(IntegrityError, match="signature"):
        await replay_round(site.config, forged, 1)
    exchanged = [{**each, "manifest": second} if each is declared[0] else each for each in entries]
    with pytest.raises(IntegrityError):
        await replay_round(site.config, exchanged, 1)


@pytest.mark.parametrize("name", RULES)
async def test_every_score_of_the_holdout_set_is_signed_and_the_hospital_may_read_it(
    tmp_path: Path, name: str
) -> None:
    site, entries = await a_study(tmp_path, **RULES[name])
    key = site.coordinator_key()
    for number in (1, 2):
        story = read_story(entries, number)
        assert sorted(story.receipts) == sorted(FIVE)
        for node, envelope in story.receipts.items():
            receipt = parse_score_receipt(verify(envelope, key, PayloadType.SCORE))
            assert (receipt.round_id, receipt.node_id) == (number, node)
            assert receipt.base_model == story.round.base_model
            assert receipt.update_digest == digest_of(story.manifests[node].payload)
            assert receipt.trust == story.trust[node].trust
    # The leaf names the hospital, which is what lets it read the entry behind it.
    store = site.connect_store()
    leaves = [parse_leaf(each.leaf) for each in store.log_entries(start=0, limit=10_000)]
    store.close()
    assert {each.node for each in leaves if each.event == "score_signed"} == set(FIVE)


async def test_a_score_other_than_the_signed_one_is_found(tmp_path: Path) -> None:
    site, entries = await a_study(tmp_path, **RULES["median"])
    (scored,) = (e for e in entries if (e["event"], e.get("round")) == ("round_scored", 1))
    better = json.loads(json.dumps(scored["trust"]))
    better["hospital_a"]["trust"] = 0.99
    smoother = json.loads(json.dumps(scored["trust"]))
    smoother["hospital_a"]["components"]["z"] += 1.0
    unscored = json.loads(json.dumps(scored["trust"]))
    del unscored["hospital_a"]["components"]
    for trust, why in (
        (better, "signed .* for hospital_a, and the log tells"),
        (smoother, "signed .* for hospital_a, and the log tells"),
        (unscored, "without a signed receipt, or the reverse: hospital_a"),
    ):
        with pytest.raises(ReplayDifferenceError, match=why):
            await replay_round(site.config, changed(entries, "round_scored", trust=trust), 1)
    missing = [e for e in entries if (e["event"], e.get("node")) != ("score_signed", "hospital_b")]
    with pytest.raises(ReplayDifferenceError, match=r"signed receipt.*: hospital_b"):
        await replay_round(site.config, missing, 1)
    first, second = (
        next(e for e in entries if (e["event"], e.get("round")) == ("score_signed", number))
        for number in (1, 2)
    )
    # A genuine receipt, of another round.
    replayed = [{**e, "receipt": second["receipt"]} if e is first else e for e in entries]
    with pytest.raises(ReplayDifferenceError, match="and the log tells"):
        await replay_round(site.config, replayed, 1)
    forged = {**first["receipt"], "signature": second["receipt"]["signature"]}
    unsigned = [{**e, "receipt": forged} if e is first else e for e in entries]
    with pytest.raises(IntegrityError, match="signature"):
        await replay_round(site.config, unsigned, 1)


async def test_without_a_holdout_set_there_is_no_score_to_sign(tmp_path: Path) -> None:
    site, entries = await a_study(tmp_path, has_holdout=False, **RULES["median"])
    assert read_story(entries, 1).receipts == {}
    await replay_round(site.config, entries, 1)


async def test_a_log_that_does_not_tell_enough_says_what_is_missing(tmp_path: Path) -> None:
    site, entries = await a_study(tmp_path, **RULES["median"])
    for event in ("study_founded", "allowlist_read", "round_scored", "model_aggregated"):
        told = [each for each in entries if each["event"] != event]
        with pytest.raises(InvalidInputError):
            await replay_round(site.config, told, 1)
    with pytest.raises(InvalidInputError, match="no round_scheduled of round 3"):
        await replay_round(site.config, entries, 3)
    with pytest.raises(InvalidInputError, match="aggregator"):
        await replay_round(site.config, changed(entries, "round_scored", aggregator={}), 1)
