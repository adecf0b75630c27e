"""What differential privacy has cost so far, by the log or by a hospital's ledger."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from matl.compliance.control import BrokenControlError, NotTestedError, Outcome, passed
from matl.compliance.site import CoordinatorSite, ParticipantSite, Site
from matl_common.errors import InvalidInputError
from matl_common.identity.held_keys import load_p256_key
from matl_common.privacy.charges import epsilon_of
from matl_common.protocol import PayloadType, StudyPlan
from matl_common.signing import verify
from matl_common.wire.documents import parse_study_plan
from matl_coordinator.service.story import LoggedEnvelope
from matl_participant.core.spending import Summary, statement
from matl_participant.files import StateFolder
from matl_participant.ledger import read_summaries
from matl_participant.verification import verify_ledgers

_ROUNDING = 1e-9


def spent(site: Site) -> Outcome:
    """Add up what was charged, by the signed plan."""
    return _by_log(site) if isinstance(site, CoordinatorSite) else _by_ledger(site)


def _by_log(site: CoordinatorSite) -> Outcome:
    events = site.log.events
    founded = next((each for each in events if each.get("event") == "study_founded"), None)
    if founded is None:
        raise NotTestedError("no study was founded yet", "start the coordinator")
    try:
        envelope = LoggedEnvelope.model_validate(founded.get("plan_envelope")).envelope()
    except (ValueError, InvalidInputError) as error:
        raise BrokenControlError("the log has no signed plan", "matl audit verify") from error
    own = load_p256_key(site.config.identity.signing_key)
    plan = parse_study_plan(verify(envelope, own.public_key, PayloadType.STUDY_PLAN))
    return judge_spending(
        plan,
        updates=Counter(
            str(each.get("node")) for each in events if each.get("event") == "update_admitted"
        ),
        evaluations=Counter(
            str(each.get("node")) for each in events if each.get("event") == "hospital_evaluated"
        ),
    )


def judge_spending(
    plan: StudyPlan, *, updates: Mapping[str, int], evaluations: Mapping[str, int]
) -> Outcome:
    """Compute what so many updates and evaluations of each hospital cost. Pure.

    Raises:
        BrokenControlError: more than the plan allows, or the plan promises nothing.
    """
    terms = plan.privacy
    if not terms.noise_multiplier or not math.isfinite(terms.target_epsilon):
        raise BrokenControlError(
            "the study promises no privacy: its plan has no noise",
            "found a study with a finite study.epsilon",
        )
    told, is_over = [], False
    for node, count in sorted(updates.items()):
        steps = count * plan.training.steps_per_round
        counted = evaluations.get(node, 0) if terms.evaluation is not None else 0
        epsilon = epsilon_of(terms, steps=steps, evaluations=counted)
        is_over |= epsilon > terms.target_epsilon * (1 + _ROUNDING)
        told.append(f"{node} {epsilon:.4g}")
    said = (
        f"epsilon spent by admitted updates in the log: {', '.join(told) or 'none yet'}; of "
        f"{terms.target_epsilon:g} at delta {terms.target_delta:g}, per {terms.unit}"
    )
    if is_over:
        raise BrokenControlError(said, "stop the study: matl pause, and see docs/privacy.md")
    return passed(said)


def _by_ledger(site: ParticipantSite) -> Outcome:
    state = StateFolder(site.state_dir)
    verdicts = verify_ledgers(state)
    if not verdicts:
        raise NotTestedError("no study has a privacy ledger here yet", "take part in a round")
    for each in verdicts:
        if each.problem is not None:
            raise BrokenControlError(f"{each.file}: {each.problem}", "see docs/privacy.md")
    summaries = read_summaries(state.ledger, limit=site.config.privacy.dataset_limit)
    return judge_ledgers(summaries)


def judge_ledgers(summaries: Iterable[Summary]) -> Outcome:
    """Compare what a hospital's studies have spent with what they may. Pure.

    Raises:
        BrokenControlError: one has spent more than its plan, or all together more than the
            hospital's own limit for the data set.
    """
    told, is_over = [], False
    for each in summaries:
        shares = (each.budget_fraction, each.together.budget_fraction or 0.0)
        is_over |= max(shares) > 1 + _ROUNDING
        told.append(f"{each.study_id}: {statement(each)}")
    said = "; ".join(told)
    if is_over:
        raise BrokenControlError(
            f"more is spent than is allowed: {said}",
            "stop the participant, and see docs/privacy.md",
        )
    return passed(said)
