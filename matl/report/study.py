"""What a log tells of a whole study, as a value. Pure.

The log's entries are the only source: what is not in them is not in a report. Facts come from
entries that somebody else has verified.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from matl_common.errors import InvalidInputError
from matl_common.identity.allowlist import parse_allowlist
from matl_common.privacy.charges import epsilon_of, fraction_of_plan
from matl_common.protocol import PrivacyTerms, StudyPlan
from matl_common.wire.documents import parse_study_plan
from matl_coordinator.core.trust_record import DEFAULT_POLICY
from matl_coordinator.service.story import LoggedEnvelope, together

Facts = Mapping[str, Any]
_PER_ROUND: Final = frozenset(
    {"round_opened", "collection_closed", "round_scored", "round_weighted", "model_released"}
)


@dataclass(frozen=True, slots=True)
class Logged:
    """An entry that was verified, with its place."""

    index: int
    facts: Facts

    @property
    def event(self) -> str:
        """Its kind."""
        return str(self.facts.get("event", ""))


@dataclass(frozen=True, slots=True)
class Standing:
    """A hospital's trust after a round, and its share in that round's model."""

    trust: float
    state: str
    why: str
    weight: float


@dataclass(frozen=True, slots=True)
class Scores:
    """A release on the holdout set; recall by class, NaN for one that the set lacks."""

    accuracy: float
    balanced_accuracy: float
    kappa: float
    recall: tuple[float, ...]
    images: int


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """A round from its invitation to its end; ``outcome`` is released, aborted or open."""

    round_id: int
    opened_at: str
    ended_at: str
    outcome: str
    why: str
    invited: tuple[str, ...]
    admitted: tuple[str, ...]
    excluded: Mapping[str, str]
    refused: Mapping[str, str]
    standings: Mapping[str, Standing]
    power: tuple[float, float]
    """Squared reputation of those that the round spoke against, and of all others."""
    scores: Scores | None


@dataclass(frozen=True, slots=True)
class Spending:
    """What one hospital's patients have paid: by round number, ε and share of the budget."""

    epsilon: tuple[tuple[int, float], ...]
    fraction: float


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that was noticed: who, what, and why, in the log's own words."""

    index: int
    at: str
    round_id: int | None
    node: str
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Study:
    """A study as its log tells it.

    Attributes:
        federation: its name.
        name: the study's.
        plan: what every hospital agreed to.
        founded_at: when it began.
        mode: of the coordinator, at its last start.
        rule: the aggregation, at its last start.
        claim: what that withstands, given what.
        trusted_from: the least trust that is trusted, at its last start.
        excluded_below: trust below which a hospital counts for nothing, likewise.
        patients: enrolled, by hospital.
        rounds: oldest first.
        spending: by hospital.
        incidents: attacks, refusals and orders, oldest first.
        releases: index of the entry that released each model, by round.
        models: digest of each release, by round.
    """

    federation: str
    name: str
    plan: StudyPlan
    founded_at: str
    mode: str
    rule: str
    claim: str
    trusted_from: float
    excluded_below: float
    patients: Mapping[str, int]
    rounds: tuple[RoundRecord, ...]
    spending: Mapping[str, Spending]
    incidents: tuple[Incident, ...]
    releases: Mapping[int, int]
    models: Mapping[int, str]

    @property
    def hospitals(self) -> tuple[str, ...]:
        """Everybody who is enrolled or ever took part, by name."""
        took_part = {node for rnd in self.rounds for node in rnd.invited}
        return tuple(sorted(took_part | set(self.patients)))

    @property
    def last_scores(self) -> Scores | None:
        """Of the newest release that was evaluated."""
        found = [each.scores for each in self.rounds if each.scores is not None]
        return found[-1] if found else None


def read_study(entries: Sequence[Logged]) -> Study:
    """Put a study together from all entries of its log, oldest first.

    Raises:
        InvalidInputError: the log does not tell of a study, or an entry does not say what it
            should.
    """
    founded = next((each.facts for each in entries if each.event == "study_founded"), None)
    if founded is None:
        raise InvalidInputError("the log does not tell of a study: none was founded")
    try:
        return _study(entries, founded)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidInputError(
            f"an entry of the log does not say what a report needs: {error}"
        ) from error


def _study(entries: Sequence[Logged], founded: Facts) -> Study:
    envelope = LoggedEnvelope.model_validate(founded["plan_envelope"]).envelope()
    plan = parse_study_plan(envelope.payload)
    rounds = tuple(_rounds(entries))
    started = [each.facts for each in entries if each.event == "coordinator_started"]
    last = started[-1] if started else {}
    bounds = last.get("trust_policy", {})
    releases = [each for each in entries if each.event == "model_released"]
    return Study(
        federation=plan.federation_id,
        name=plan.study_id,
        plan=plan,
        founded_at=str(founded["at"]),
        mode=str(last.get("mode", "")),
        rule=str(last.get("rule", "")),
        claim=str(last.get("claim", "")),
        trusted_from=float(bounds.get("trusted_from", DEFAULT_POLICY.trusted_from)),
        excluded_below=float(bounds.get("excluded_below", DEFAULT_POLICY.excluded_below)),
        patients=_patients(entries),
        rounds=rounds,
        spending=_spending(rounds, plan),
        incidents=tuple(_incidents(entries)),
        releases={int(each.facts["round"]): each.index for each in releases},
        models={int(each.facts["round"]): str(each.facts["model"]) for each in releases},
    )


def _patients(entries: Iterable[Logged]) -> Mapping[str, int]:
    """Enrolled patients by hospital, as the newest allow-list on record has them."""
    parts: list[Facts] = []
    for each in entries:
        if each.event == "allowlist_read":
            # In parts, where it is long; the first begins it anew.
            parts = [each.facts] if each.facts.get("part", 1) == 1 else [*parts, each.facts]
    text = "".join(str(part["allowlist"]) for part in parts)
    if not text:
        return {}
    nodes = parse_allowlist(text.encode()).nodes.values()
    return {each.node_id: each.enrolled_patients for each in nodes if each.enrolled_patients}


def _rounds(entries: Sequence[Logged]) -> Iterator[RoundRecord]:
    told: dict[int, dict[str, list[Facts]]] = {}
    for each in entries:
        number = each.facts.get("round")
        if isinstance(number, int):
            told.setdefault(number, {}).setdefault(each.event, []).append(each.facts)
    for number in sorted(told):
        if "round_opened" in told[number]:
            yield _round(number, told[number])


def _round(number: int, told: Mapping[str, list[Facts]]) -> RoundRecord:
    whole = {event: together(told[event]) for event in _PER_ROUND if event in told}
    aborted = told.get("round_aborted", [{}])[0]
    released = whole.get("model_released", {})
    closed = whole.get("collection_closed", {})
    scored = whole.get("round_scored", {})
    power = scored.get("power", {})
    outcome = "released" if released else "aborted" if aborted else "open"
    return RoundRecord(
        round_id=number,
        opened_at=str(whole["round_opened"]["at"]),
        ended_at=str(released.get("at") or aborted.get("at") or ""),
        outcome=outcome,
        why=str(aborted.get("reason", "")),
        invited=tuple(map(str, whole["round_opened"].get("invited", ()))),
        # Not those that counted when the collection closed: an update is paid for once it is sent.
        admitted=tuple(sorted({str(each["node"]) for each in told.get("update_admitted", ())})),
        excluded=dict(closed.get("excluded", {})),
        refused=dict(scored.get("refused", {})),
        standings=_standings(scored, whole.get("round_weighted", {}).get("weights") or {}),
        power=(float(power.get("against", 0.0)), float(power.get("honest", 0.0))),
        scores=_scores(released),
    )


def _standings(scored: Facts, weights: Facts) -> Mapping[str, Standing]:
    return {
        node: Standing(
            float(facts["trust"]),
            str(facts["state"]),
            str(facts.get("reason", "")),
            float(weights.get(node, 0.0)),
        )
        for node, facts in sorted(scored.get("trust", {}).items())
    }


def _scores(released: Facts) -> Scores | None:
    if "accuracy" not in released:
        return None
    recall = released.get("per_class_recall", ())
    return Scores(
        accuracy=float(released["accuracy"]),
        balanced_accuracy=float(released["balanced_accuracy"]),
        kappa=float(released["kappa"]),
        recall=tuple(math.nan if each is None else float(each) for each in recall),
        images=int(released.get("images", 0)),
    )


def _spending(rounds: Sequence[RoundRecord], plan: StudyPlan) -> Mapping[str, Spending]:
    """What admitted updates cost, by the plan; a ledger also counts attempts that got lost."""
    terms, per_round = plan.privacy, plan.training.steps_per_round
    nodes = sorted({node for rnd in rounds for node in rnd.admitted})
    priced = _priced(terms)
    found = {}
    for node in nodes:
        steps, points = 0, []
        for rnd in rounds:
            steps += per_round * (node in rnd.admitted)
            points.append((rnd.round_id, priced(steps)))
        found[node] = Spending(tuple(points), fraction_of_plan(terms, steps=steps))
    return found


def _priced(terms: PrivacyTerms) -> Any:
    # A sampled study's ε takes seconds to compose, and hospitals have the same number of steps.
    return cache(lambda steps: epsilon_of(terms, steps=steps))


_TOLD: Final = {
    "access_denied": "a call was denied",
    "alarm": "alarm",
    "allowlist_refused": "a changed allow-list was refused",
    "appeal_denied": "an appeal was denied",
    "appeal_filed": "an appeal was filed",
    "handshake_refused": "a connection was refused",
    "node_quarantined": "quarantined by an operator",
    "node_released": "released from quarantine by an operator",
    "node_removed": "removed from the round",
    "refusals_suppressed": "further refusals",
    "round_aborted": "round aborted",
    "study_paused": "study paused",
    "study_resumed": "study resumed",
    "update_refused": "update refused",
}


def _incidents(entries: Iterable[Logged]) -> Iterator[Incident]:
    quarantined: set[str] = set()
    for each in entries:
        if each.event in _TOLD:
            yield _incident(each, _TOLD[each.event], _reason(each.facts))
        if each.event == "round_scored":
            yield from _of_scoring(each, quarantined)


def _of_scoring(each: Logged, quarantined: set[str]) -> Iterator[Incident]:
    """What the judgement of a round noticed; ``quarantined`` remembers who was already."""
    for node, why in sorted(each.facts.get("refused", {}).items()):
        yield _incident(each, "update without its noise refused", str(why), node=node)
    clusters = each.facts.get("clusters", ())
    for names in clusters.values() if isinstance(clusters, dict) else clusters:
        why = f"{', '.join(map(str, names))} share one weight"
        yield _incident(each, "nearly identical updates", why)
    for node, facts in sorted(each.facts.get("trust", {}).items()):
        is_out = facts.get("state") == "quarantined"
        if is_out and node not in quarantined:
            yield _incident(each, "excluded by its trust", str(facts.get("reason")), node=node)
        if not is_out and node in quarantined:
            yield _incident(each, "readmitted by its trust", str(facts.get("reason")), node=node)
        (quarantined.add if is_out else quarantined.discard)(node)


def _incident(each: Logged, what: str, why: str, *, node: str = "") -> Incident:
    number = each.facts.get("round")
    return Incident(
        each.index,
        str(each.facts.get("at", "")),
        number if isinstance(number, int) else None,
        node or str(each.facts.get("node", "")),
        what,
        why,
    )


def _reason(facts: Facts) -> str:
    parts = [
        str(facts[name])
        for name in ("kind", "code", "reason", "text", "refusals")
        if facts.get(name)
    ]
    by = f" (operator {facts['operator']})" if facts.get("operator") else ""
    return f"{': '.join(parts)}{by}"
