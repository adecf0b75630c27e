"""What the log tells of one round: enough to make its model again from the spooled updates.

Entries only. Nothing here looks into a table of the coordinator's, or at a file.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from matl_common.errors import InvalidInputError
from matl_common.identity.allowlist import AllowedNode, Allowlist, parse_allowlist
from matl_common.ids import Digest, NodeId, RoundId, parse_digest, parse_node_id
from matl_common.signing import Envelope
from matl_coordinator.core.robust.registry import Aggregator, Choice, make_aggregator
from matl_coordinator.core.rounds import Admitted, NodeWeight, Phase, Round, RoundRules
from matl_coordinator.service.parts import Fact

_Part = TypeVar("_Part", bound=BaseModel)


class _Facts(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, hide_input_in_errors=True)


class LoggedEnvelope(_Facts):
    """A DSSE envelope as an entry holds it."""

    payload_type: str
    payload: str
    keyid: str
    signature: str

    def envelope(self) -> Envelope:
        """Back as a value.

        Raises:
            InvalidInputError: it is not base64.
        """
        try:
            payload = base64.b64decode(self.payload, validate=True)
            signature = base64.b64decode(self.signature, validate=True)
        except binascii.Error as error:
            raise InvalidInputError("an envelope in the log is not base64") from error
        return Envelope(self.payload_type, payload, self.keyid, signature)


def envelope_facts(envelope: Envelope) -> dict[str, Fact]:
    """An envelope as an entry holds it: whoever has the entry can verify the signature."""
    return {
        "payload_type": str(envelope.payload_type),
        "payload": base64.b64encode(envelope.payload).decode(),
        "keyid": envelope.keyid,
        "signature": base64.b64encode(envelope.signature).decode(),
    }


class LoggedChoice(_Facts):
    """A rule or pre-aggregation with the value of every parameter."""

    name: str
    parameters: dict[str, int | float] = Field(default_factory=dict)

    def choice(self) -> Choice:
        """Back as a value."""
        return Choice(self.name, self.parameters)


class LoggedAggregator(_Facts):
    """The rule that a round's updates were combined by, as it was configured."""

    rule: LoggedChoice
    before: list[LoggedChoice]
    f: int

    def aggregator(self) -> Aggregator:
        """Back as a value.

        Raises:
            ConfigurationError: this version knows no such rule.
        """
        before = [each.choice() for each in self.before]
        return make_aggregator(self.rule.choice(), before, f=self.f)


def aggregator_facts(aggregator: Aggregator, *, f: int) -> dict[str, Fact]:
    """An aggregator as an entry holds it; ``f`` is the study's."""
    rule, before = aggregator.asked
    return {"rule": _choice(rule), "before": [_choice(each) for each in before], "f": f}


def _choice(choice: Choice) -> Fact:
    parameters: dict[str, Fact] = dict(choice.parameters)
    return {"name": choice.name, "parameters": parameters}


class _Founded(_Facts):
    plan_envelope: LoggedEnvelope


class _AllowlistRead(_Facts):
    allowlist: str


class _Scheduled(_Facts):
    base_model: str
    nonce: str


class _Declared(_Facts):
    node: str
    update: str
    manifest: LoggedEnvelope


class _Closed(_Facts):
    admitted: dict[str, str]


class _LoggedComponents(_Facts):
    z: float
    loss_improvement: float
    pogq: float
    quality: float
    harm: bool
    mode: str


class LoggedTrust(_Facts):
    """What ``round_scored`` says of a hospital, as far as it is signed too."""

    trust: float
    state: str
    as_of_round: int
    components: _LoggedComponents | None = None


class _Scored(_Facts):
    aggregator: LoggedAggregator
    coordinate_seed: str
    root: dict[str, str]
    trust: dict[str, LoggedTrust]


class _ScoreSigned(_Facts):
    node: str
    receipt: LoggedEnvelope


class _Weighted(_Facts):
    weights: dict[str, float] | None = None
    reach: float = 1.0


class _Aggregated(_Facts):
    model: str
    updates: dict[str, str]
    reach: float | None = None
    """Earlier versions took as much as ``round_weighted`` says."""


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that went into a round's model, and what came out.

    Attributes:
        plan: the study plan, signed by the coordinator.
        allowlist: who was enrolled when the round was scored, and with which keys.
        round: as it stood when its updates were aggregated.
        manifests: what each admitted hospital signed.
        aggregator: what the updates were combined by.
        f: how many hospitals the study took to be hostile.
        seed: for everything drawn at random.
        root: digests of the root set's rows, by name.
        trust: what was made of each hospital.
        receipts: what the coordinator signed of their scores.
        model: the round's own model.
        earlier: the base models of the rounds before, by round.
        released: the round that released this one's base model; 0 for the study's first.
    """

    plan: Envelope
    allowlist: Allowlist
    round: Round
    manifests: Mapping[NodeId, Envelope]
    aggregator: Aggregator
    f: int
    seed: int
    root: Mapping[str, Digest]
    trust: Mapping[NodeId, LoggedTrust]
    receipts: Mapping[NodeId, Envelope]
    model: Digest
    earlier: Mapping[RoundId, Digest]
    released: int

    def enrolled(self, node_id: NodeId) -> AllowedNode:
        """A hospital's enrolment.

        Raises:
            InvalidInputError: it was not enrolled.
        """
        node = self.allowlist.lookup(node_id)
        if node is None:
            raise InvalidInputError(f"{node_id} was admitted and not enrolled")
        return node


_OF_ANY_ROUND = frozenset({"study_founded", "allowlist_read", "round_scheduled", "model_released"})


def is_told(event: str, round_id: int | None, number: int) -> bool:
    """Whether an entry of this event and round belongs to the story of round ``number``."""
    return round_id == number or event in _OF_ANY_ROUND


def read_story(entries: Iterable[Mapping[str, Any]], number: int) -> Story:
    """Put a round together from the log's entries, from the first one on.

    Raises:
        InvalidInputError: the log does not tell of a round of this number that was aggregated,
            or an entry of it does not say what it should.
    """
    told: dict[str, list[Mapping[str, Any]]] = {}
    founded: Mapping[str, Any] | None = None
    allowlist: list[Mapping[str, Any]] = []
    earlier: dict[RoundId, Digest] = {}
    released = 0
    for facts in entries:
        event, at = str(facts.get("event")), facts.get("round")
        match event:
            case "study_founded":
                founded = facts
            case "allowlist_read" if "round_scored" not in told:
                # In parts, where it is long; the first begins it anew.
                begins = facts.get("part", 1) == 1
                allowlist = [facts] if begins else [*allowlist, facts]
            case "round_scheduled" if isinstance(at, int) and at < number:
                earlier[RoundId(at)] = parse_digest(str(facts.get("base_model")))
            case "model_released" if isinstance(at, int) and at < number:
                released = at
        if at == number:
            told.setdefault(event, []).append(facts)
    if founded is None or not allowlist:
        raise InvalidInputError("the log does not tell what the study is, or who was enrolled")
    return _story(
        number,
        told=told,
        founded=founded,
        allowlist=allowlist,
        earlier=earlier,
        released=released,
    )


def _story(
    number: int,
    *,
    told: Mapping[str, list[Mapping[str, Any]]],
    founded: Mapping[str, Any],
    allowlist: list[Mapping[str, Any]],
    earlier: Mapping[RoundId, Digest],
    released: int,
) -> Story:
    def whole(kind: type[_Part], event: str) -> _Part:
        parts = told.get(event)
        if not parts:
            raise InvalidInputError(f"the log has no {event} of round {number}")
        return _parsed(kind, together(parts))

    scheduled, closed = whole(_Scheduled, "round_scheduled"), whole(_Closed, "collection_closed")
    scored, weighted = whole(_Scored, "round_scored"), whole(_Weighted, "round_weighted")
    aggregated = whole(_Aggregated, "model_aggregated")
    removed = {str(each.get("node")) for each in told.get("node_removed", ())}
    admitted = {
        parse_node_id(node): parse_digest(digest)
        for node, digest in closed.admitted.items()
        if node not in removed
    }
    declared = [_parsed(_Declared, each) for each in told.get("update_declared", ())]
    manifests = {
        parse_node_id(each.node): each.manifest.envelope()
        for each in declared
        if admitted.get(NodeId(each.node)) == each.update
    }
    plan = _parsed(_Founded, founded).plan_envelope.envelope()
    texts = [_parsed(_AllowlistRead, each).allowlist for each in allowlist]
    rnd = Round(
        round_id=RoundId(number),
        nonce=bytes.fromhex(scheduled.nonce),
        plan_digest=parse_digest(str(founded.get("plan"))),
        base_model=parse_digest(scheduled.base_model),
        rules=RoundRules(1, 1, max(1, len(admitted)), timedelta()),
        opens_at=datetime.fromtimestamp(0, UTC),
        phase=Phase.AGGREGATING,
        admitted=tuple(Admitted(node, admitted[node]) for node in sorted(admitted)),
        weights=tuple(
            NodeWeight(parse_node_id(node), weight)
            for node, weight in sorted((weighted.weights or {}).items())
        ),
        reach=weighted.reach if aggregated.reach is None else aggregated.reach,
    )
    return Story(
        plan=plan,
        allowlist=parse_allowlist("".join(texts).encode()),
        round=rnd,
        manifests=manifests,
        aggregator=scored.aggregator.aggregator(),
        f=scored.aggregator.f,
        seed=int(scored.coordinate_seed, 16),
        root={name: parse_digest(digest) for name, digest in scored.root.items()},
        trust={parse_node_id(node): trust for node, trust in scored.trust.items()},
        receipts={
            parse_node_id(each.node): each.receipt.envelope()
            for each in (_parsed(_ScoreSigned, told) for told in told.get("score_signed", ()))
        },
        model=parse_digest(aggregated.model),
        earlier=earlier,
        released=released,
    )


def together(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """An event's facts, put together from the entries they were cut into; see ``parts``."""
    whole: dict[str, Any] = {}
    for part in parts:
        _merge(whole, part)
    return whole


def _merge(whole: dict[str, Any], part: Mapping[str, Any]) -> None:
    for key, fact in part.items():
        match whole.get(key), fact:
            case dict() as known, dict():
                _merge(known, fact)
            case list() as known, list():
                known.extend(fact)
            case None, dict():
                whole[key] = {}
                _merge(whole[key], fact)
            case None, list():
                whole[key] = list(fact)
            case _:
                whole[key] = fact


def _parsed(kind: type[_Part], facts: Mapping[str, Any]) -> _Part:
    try:
        return kind.model_validate(facts)
    except ValidationError as error:
        event = facts.get("event")
        names = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        raise InvalidInputError(
            f"the log's entry {event} of round {facts.get('round')} does not say what a replay "
            f"needs: {names}; an earlier version of the coordinator wrote it"
        ) from error
