"""What is logged of every hospital fits log entries, however many hospitals there are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from matl_common.clock import utc_now
from matl_common.ids import Digest, NodeId, RoundId
from matl_common.tlog.entry import MAX_ENTRY_BYTES, Entry, parse_entry
from matl_coordinator.core.judgement import Judgement
from matl_coordinator.core.power import ByzantinePower
from matl_coordinator.core.robust.registry import Choice, make_aggregator
from matl_coordinator.core.robust.root import RootRow
from matl_coordinator.core.rounds import (
    Admitted,
    Aggregated,
    CollectionClosed,
    Event,
    Excluded,
    NodeWeight,
    Opened,
    Phase,
    Round,
    RoundRules,
    Scored,
)
from matl_coordinator.core.trust_record import initial_record
from matl_coordinator.ports import PutRound, RootGradient
from matl_coordinator.service.alarms import alarms_of
from matl_coordinator.service.entries import alarm_entry, entries, round_entries, score_entries
from matl_coordinator.service.judging import Verdict
from matl_coordinator.service.parts import Fact, in_parts
from matl_coordinator.service.register import Decision
from tests.coordinator.harness import events_of, make_site, running

DIGEST = Digest("f" * 64)
MANY = tuple(NodeId(f"h{number:062d}") for number in range(1000))
SOME, REST = MANY[:700], MANY[700:]


def large_round() -> Round:
    return Round(
        round_id=RoundId(7),
        nonce=bytes(32),
        plan_digest=DIGEST,
        base_model=DIGEST,
        rules=RoundRules(3, 3, 1000, timedelta(seconds=9)),
        opens_at=utc_now(),
        phase=Phase.SCORING,
        invited=frozenset(MANY),
        admitted=tuple(Admitted(node, DIGEST) for node in SOME),
        excluded=tuple(Excluded(node, "refused: " + "x" * 400) for node in REST),
        weights=tuple(NodeWeight(node, 1 / 3000) for node in SOME),
    )


def together(parts: Iterable[Entry]) -> dict[str, Fact]:
    """The event that parts of it tell; checks that each says which part it is, and fits."""
    whole: dict[str, Fact] = {}
    encoded = [each.data for each in parts]
    assert max(map(len, encoded)) <= MAX_ENTRY_BYTES
    for number, data in enumerate(encoded, start=1):
        facts = dict(parse_entry(data))
        if len(encoded) > 1:
            assert (facts.pop("part"), facts.pop("parts")) == (number, len(encoded))
        merge(whole, facts)
    return whole


def merge(whole: dict[str, Fact], part: dict[str, object]) -> None:
    for key, fact in part.items():
        known = whole.get(key)
        if isinstance(known, dict) and isinstance(fact, dict):
            merge(known, fact)
        elif isinstance(known, list) and isinstance(fact, list):
            known.extend(fact)
        else:
            assert known in (None, fact), key
            whole[key] = fact  # type: ignore[assignment]  # parsed from JSON


def events() -> Iterator[tuple[Event, dict[str, Fact], dict[str, object]]]:
    """Every event with facts of each hospital: it, what goes with it, and what it must tell."""
    digests: dict[str, Fact] = dict.fromkeys(SOME, DIGEST)
    weights: dict[str, Fact] = dict.fromkeys(SOME, 1 / 3000)
    now = utc_now()
    yield Opened(now, frozenset(MANY)), {}, {"invited": list(MANY), "base_model": DIGEST}
    reasons = dict.fromkeys(REST, "refused: " + "x" * 400)
    yield CollectionClosed(now), {}, {"admitted": digests, "excluded": reasons}
    told = tuple(NodeWeight(node, 1 / 3000) for node in SOME)
    yield Scored(told, 0.5), {"weights": weights}, {"weights": weights, "reach": 0.5}
    released: dict[str, Fact] = {"model": DIGEST, "updates": digests}
    yield Aggregated(DIGEST, 0.25), released, {**released, "reach": 0.25}


@pytest.mark.parametrize("case", list(events()), ids=lambda case: type(case[0]).__name__)
def test_an_event_of_a_thousand_hospitals_is_told_whole_in_entries_that_fit(
    case: tuple[Event, dict[str, Fact], dict[str, object]],
) -> None:
    event, facts, expected = case
    encoded = list(round_entries(large_round(), event, at=utc_now(), **facts))
    assert len(encoded) > 1
    told = together(encoded)
    assert told["round"] == 7
    for name, fact in expected.items():
        assert told[name] == fact, name


def test_a_judgement_of_a_thousand_hospitals_is_told_whole_even_when_all_send_the_same() -> None:
    records = tuple(replace(initial_record(node), reason="x" * 500) for node in MANY)
    everybody = frozenset(MANY)
    root = tuple(
        RootGradient(RootRow(f"root-{c}-{k}", c, k, 9), Path("row"), DIGEST)
        for c in range(64)
        for k in range(4)
    )
    judgement = Judgement(
        records=records,
        shares={},
        hold=None,
        refused=dict.fromkeys(MANY, "r" * 250),
        clusters=(everybody,),
        power=ByzantinePower(1.0, 1.0, everybody, 0.5),
    )
    verdict = Verdict(
        judgement, (), 1.0, root, "matl", configured=make_aggregator(Choice("matl"), f=1), f=1
    )
    encoded = list(score_entries(large_round(), verdict, seed=1, at=utc_now()))
    told = together(encoded)
    assert told["trust"].keys() == told["refused"].keys() == everybody  # type: ignore[union-attr]
    assert told["clusters"] == {"1": list(MANY)}
    assert isinstance(told["power"], dict)
    assert told["power"]["cartel"] == list(MANY)
    assert len(told["root"]) == 256  # type: ignore[arg-type]
    # A hospital's standing is in one part, whole.
    for part in (parse_entry(each.data) for each in encoded):
        trust = part.get("trust", {})
        assert isinstance(trust, dict)
        assert {len(standing) for standing in trust.values()} <= {len(told["trust"][MANY[0]])}  # type: ignore[index,call-overload,arg-type]


def test_an_alarm_over_a_thousand_hospitals_fits_an_entry() -> None:
    power = ByzantinePower(1.0, 1.0, frozenset(MANY), 0.9)
    for alarm in alarms_of(power, cartel_share=0.3):
        assert len(alarm_entry(alarm, round_id=7, at=utc_now()).data) < 4096


def test_facts_that_fit_one_entry_are_not_cut() -> None:
    facts: dict[str, Fact] = {"admitted": {"a": "1"}, "excluded": {}, "names": ["b", "c"]}
    assert in_parts(facts) == [facts]
    (alone,) = entries("some_event", at=utc_now(), round_id=1, **facts)
    assert "part" not in parse_entry(alone.data)


async def test_a_round_of_nine_hundred_hospitals_closes(tmp_path: Path) -> None:
    site = make_site(tmp_path, study={"rounds": 1}, schedule="manual")
    nodes = MANY[:900]
    async with running(site) as coordinator:
        state = await coordinator.register.state()
        assert state.study is not None
        assert state.latest_model is not None
        now = utc_now()
        collecting = replace(
            large_round(),
            round_id=RoundId(1),
            plan_digest=state.study.plan_digest,
            base_model=state.latest_model.digest,
            phase=Phase.COLLECTING,
            opened_at=now,
            deadline=now + timedelta(seconds=60),
            invited=frozenset(nodes),
            admitted=tuple(Admitted(node, DIGEST) for node in nodes),
            excluded=(),
            weights=(),
        )
        await coordinator.register.decide(lambda _: Decision(None, (PutRound(collecting),)))
        async with asyncio.timeout(10.0):
            while (state := await coordinator.register.state()).round is None or (
                state.round.phase is Phase.COLLECTING
            ):
                await coordinator.register.wait_for_change(state, seconds=1.0)
        closed = [e for e in events_of(coordinator.store) if e["event"] == "collection_closed"]
    admitted: set[str] = set()
    for each in closed:
        part = each.get("admitted", {})
        assert isinstance(part, dict)
        admitted |= part.keys()
    assert admitted == set(nodes)
