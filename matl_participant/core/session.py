"""What the participant does next, as a value.

``next_action`` is asked again after every action. It sees what is durable (the ledger
and the files beside it) and a few facts of this run, so start-up after a crash is an
ordinary question with an ordinary answer. Nothing here acts, waits or reads a clock.

The order of the questions is the policy: finish the durable step at hand, give up
what is lost, stop if the log lied or if told to, see what machine the coordinator is
where that is required, deliver what is sealed, and only then look for work. Whatever the
answer is, nothing is said to the coordinator before the time for it.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from matl_common.ids import Digest, RoundId
from matl_common.protocol import RoundStart
from matl_participant.core.account import Account, Attempt, AttemptState
from matl_participant.core.sending import Look, may_speak_from
from matl_participant.core.spending import ALONE, Shared, why_over_budget

MAX_BACKOFF_SECONDS = 300.0
MAX_BACKOFF_IN_TURN_SECONDS = 8.0
_FIRST_BACKOFF_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Attest:
    """Have the coordinator show what runs on its machine."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Introduce ourselves and check the study plan."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Check the data set, compute its features, and freeze the plan in the ledger."""


@dataclass(frozen=True, slots=True)
class AwaitRound:
    """Ask for a round after ``have_round``."""

    have_round: int


@dataclass(frozen=True, slots=True)
class PullModel:
    """Fetch the base model of the round, from the last byte on disk."""

    digest: Digest
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Train:
    """Reserve steps and evaluation in the ledger, then evaluate the base model and train."""

    round_start: RoundStart
    steps: int
    evaluations: int = 0
    """One, where the study asks for it and the hospital does not refuse."""


@dataclass(frozen=True, slots=True)
class Seal:
    """Sign what was trained and fix it in the ledger."""

    round_id: RoundId


@dataclass(frozen=True, slots=True)
class Upload:
    """Send the sealed update, from the first chunk missing at the coordinator."""

    round_id: RoundId


@dataclass(frozen=True, slots=True)
class Abandon:
    """Give up an attempt; what it cost stays spent."""

    round_id: RoundId


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing before this moment."""

    until: datetime


@dataclass(frozen=True, slots=True)
class Halt:
    """Never train in this study again, or not before the operator has acted."""

    is_final: bool
    """Whether the ledger has to say so."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The study is complete: stop, successfully."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Stop; everything worth keeping is durable."""


Action = (
    Attest
    | Hello
    | Prepare
    | AwaitRound
    | PullModel
    | Train
    | Seal
    | Upload
    | Abandon
    | Wait
    | Halt
    | Finish
    | Drain
)

_SPEAKS = Attest | Hello | AwaitRound | PullModel | Upload
"""What the coordinator hears, and whose time must therefore not depend on data."""


@dataclass(frozen=True, slots=True)
class View:
    """Everything the decision depends on."""

    # Durable: from the ledger, and from the files beside it.
    account: Account = field(default_factory=Account)
    shared: Shared = ALONE
    """The other studies on the same patients, and what all may cost."""
    sealed_until: datetime | None = None
    """When the sealed update on disk stops being wanted; ``None``: its files are not there."""
    has_model: bool = False
    """The round's base model is on disk, whole and verified."""

    # Of this run.
    draining: bool = False
    distrust: str | None = None
    """What shows that the coordinator's log is not to be trusted."""
    unattested: bool = False
    """Evidence is required of the coordinator, and there is none that still counts."""
    connected: bool = False
    """The coordinator has been greeted, and its plan is the one in the ledger."""
    refusal: str | None = None
    """Why the coordinator's plan, or this hospital's data, is not acceptable."""
    prepared: bool = False
    """The data set is the one in the ledger, which has a plan."""
    study_complete: bool = False
    round_start: RoundStart | None = None
    has_result: bool = False
    """The open reservation's training has ended, and its output is on disk."""
    retry_at: datetime | None = None
    retry_reason: str = ""
    looked: Look | None = None
    """The last look at the data."""

    send_after: timedelta = timedelta()
    """How long after its beginning; from the study's plan."""
    attempts_per_round: int = 1
    """How often one round may be charged."""
    may_evaluate: bool = True
    """The hospital allows noised evaluations where a study asks for them."""


def next_action(view: View, now: datetime) -> tuple[Action, str]:
    """Decide what to do next, and say why."""
    action, why = _wanted(view, now)
    if isinstance(action, _SPEAKS) and view.looked is not None:
        until = may_speak_from(view.looked, view.send_after)
        if now < until:
            return Wait(until), "when we speak must not tell how long a look at the data took"
    return action, why


def _wanted(view: View, now: datetime) -> tuple[Action, str]:
    """What to do next if time told nobody anything."""
    attempt = view.account.open_attempt
    if attempt is not None and attempt.state is AttemptState.RESERVED:
        if view.has_result:
            return _seal(attempt.round_id, view, now)
        return Abandon(attempt.round_id), "training was interrupted; what it cost stays spent"
    if view.distrust is not None:
        return Halt(is_final=False), view.distrust
    if view.draining:
        return Drain(), "asked to stop"
    if attempt is not None and (lost := _why_lost(view, now)):
        return Abandon(attempt.round_id), lost
    if view.refusal is not None:
        return Halt(is_final=False), view.refusal
    if view.retry_at is not None and now < view.retry_at:
        return Wait(view.retry_at), view.retry_reason
    if view.unattested or not view.connected:
        return _meet(view)
    if attempt is not None:
        return Upload(attempt.round_id), "a sealed update has not been admitted yet"
    if view.account.halted is not None:
        return Halt(is_final=False), view.account.halted
    if view.study_complete:
        return Finish(), "the coordinator says that the study is complete"
    if not view.prepared:
        return Prepare(), "the data set has not been checked in this run"
    return _next_of_round(view, now)


def _meet(view: View) -> tuple[Action, str]:
    """Know the machine, where that is required, before greeting who runs it."""
    if view.unattested:
        return Attest(), "the coordinator has shown no evidence of its machine that still counts"
    return Hello(), "not connected"


def _seal(round_id: RoundId, view: View, now: datetime) -> tuple[Action, str]:
    """Seal what was trained; where that has failed, again later while it can be of use."""
    if view.retry_at is None or now >= view.retry_at:
        return Seal(round_id), "training has ended; its result is not sealed yet"
    if view.distrust is not None:
        return Abandon(round_id), view.distrust
    if view.draining:
        return Drain(), f"asked to stop while a result waits to be sealed: {view.retry_reason}"
    if view.round_start is not None and now >= view.round_start.deadline:
        return Abandon(round_id), f"the round was over first: {view.retry_reason}"
    return Wait(view.retry_at), view.retry_reason


def _next_of_round(view: View, now: datetime) -> tuple[Action, str]:
    """Decide with nothing pending, on a working connection."""
    start, plan = view.round_start, view.account.plan
    if start is None or plan is None:
        return AwaitRound(_have_round(view)), "no round is known"
    if done := _why_done(view, start, now):
        return AwaitRound(_have_round(view)), done
    steps = plan.steps_per_round
    evaluations = 1 if view.may_evaluate and plan.privacy.evaluation is not None else 0
    if why := why_over_budget(
        view.account, steps=steps, evaluations=evaluations, shared=view.shared
    ):
        return Halt(is_final=True), f"the privacy budget is spent: {why}"
    if not view.has_model:
        pull = PullModel(start.base_model, start.base_model_bytes)
        return pull, f"round {start.round_id} starts from a model that is not here yet"
    return Train(start, steps, evaluations), f"round {start.round_id} is open"


def _why_lost(view: View, now: datetime) -> str:
    """Say why the sealed update need not be sent any more, or nothing."""
    if view.sealed_until is None:
        return "the sealed update is missing or damaged on disk"
    if now >= view.sealed_until:
        return "the round was over before the sealed update was admitted"
    return ""


def _why_done(view: View, start: RoundStart, now: datetime) -> str:
    """Say why nothing more is to be done for the round, or nothing."""
    attempts = view.account.attempts_at(start.round_id)
    if start.round_id < view.account.last_round:
        return f"round {start.round_id} lies before one already attempted"
    if _was_sealed(attempts):
        return f"round {start.round_id} has had its update"
    if len(attempts) >= view.attempts_per_round:
        return f"round {start.round_id} was attempted as often as allowed"
    if now >= start.deadline:
        return f"round {start.round_id} is over"
    return ""


def _have_round(view: View) -> int:
    """Return the last round not wanted again; a round that may be retried is wanted."""
    last = view.account.last_round
    attempts = tuple(each for each in view.account.attempts if each.round_id == last)
    may_retry = len(attempts) < view.attempts_per_round and not _was_sealed(attempts)
    have = max(0, last - 1) if may_retry else last
    return max(have, view.round_start.round_id if view.round_start else 0)


def _was_sealed(attempts: tuple[Attempt, ...]) -> bool:
    return any(attempt.update_digest is not None for attempt in attempts)


def backoff(failures: int, *, chance: float, addresses: int = 1) -> timedelta:
    """How long to wait after this many failures in a row (full jitter).

    Args:
        failures: at least 1.
        chance: a fresh random number in [0, 1), so that hospitals do not return together.
        addresses: of the coordinator, tried in turn. With several, the next one may answer, and
            where none does, one of its daemons is about to: nobody waits for long.
    """
    turns, left = divmod(failures, addresses)
    most = MAX_BACKOFF_SECONDS if addresses == 1 else MAX_BACKOFF_IN_TURN_SECONDS
    ceiling = min(most, _FIRST_BACKOFF_SECONDS * 2.0 ** min(turns - 1, 32))
    if left:
        ceiling = _FIRST_BACKOFF_SECONDS
    # Never less than a tenth: a coordinator that refuses at once is not hammered.
    return timedelta(seconds=ceiling * (0.1 + 0.9 * chance))
