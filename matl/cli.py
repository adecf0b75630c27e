"""``matl``: what an operator tells and asks a coordinator, from a shell.

Reads where the coordinator is, makes one connection a command, and prints the answer. It
decides and repeats nothing: the coordinator judges every order and logs it with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer
from rich.table import Table

from matl.commands.audit import audit_app
from matl.commands.backup import backup, restore
from matl.commands.doctor import doctor
from matl.commands.evidence import evidence
from matl.commands.ledger import ledger_app
from matl.commands.phi import phi_app
from matl.commands.pki.app import pki_app
from matl.commands.pki.node import keygen
from matl.commands.report import report
from matl.commands.retention import retention_app
from matl.commands.simulate import simulate
from matl.connection import Flags, Invocation, connected
from matl.operations import (
    HospitalEvaluation,
    OperationsClient,
    Participant,
    Round,
    Status,
)
from matl.terminal import Json, console, print_json, printable, table
from matl_common.errors import InvalidInputError
from matl_common.ids import parse_node_id
from matl_participant.core.spending import WARNING_FRACTION, shown_epsilon

_SHORT_DIGEST: Final = 12

_Answer = TypeVar("_Answer")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
audit_app.command()(evidence)
app.add_typer(audit_app, name="audit")
app.add_typer(ledger_app, name="ledger")
app.add_typer(phi_app, name="phi")
app.add_typer(pki_app, name="pki")
app.command()(keygen)
app.command()(doctor)
app.command()(report)
app.command()(backup)
app.command()(restore)
app.command()(simulate)
audit_app.add_typer(retention_app, name="retention")


def _environment(name: str) -> str:
    return f"MATL_OPERATOR_{name}"


def _node_argument(text: str) -> str:
    try:
        return parse_node_id(text)
    except InvalidInputError as error:
        raise typer.BadParameter(str(error)) from error


Reason = Annotated[str, typer.Option(help="Why; the log keeps it beside your name for good.")]
Node = Annotated[
    str,
    typer.Argument(metavar="NODE", parser=_node_argument, help="The hospital, as enrolled."),
]


@app.callback()
def common(
    context: typer.Context,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            envvar=_environment("CONFIG"),
            help="TOML file with an [operator] table. Default: operator.toml, if it exists.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(envvar=_environment("ADDRESS"), help="The coordinator's host:port."),
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(
            envvar=_environment("COORDINATOR"),
            help="The SPIFFE id its certificate must carry, whatever the address.",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            envvar=_environment("KEY"), help="Your private key: a PEM file, or a pkcs11: URI."
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            envvar=_environment("CERTIFICATE"), help="Your certificate and its chain, PEM."
        ),
    ] = None,
    authority: Annotated[
        Path | None,
        typer.Option(envvar=_environment("AUTHORITY"), help="The authority of coordinators, PEM."),
    ] = None,
) -> None:
    """Operate a federation: see how a study stands, and give its coordinator orders.

    The options below stand **before** the command, or in the environment, or in a file,
    in this order of precedence. An operator.toml, whose paths are relative to itself:

    ```
    [operator]
    address = "coordinator.hospital-a.example:8470"
    coordinator = "spiffe://dr-study/coordinator/coordinator"
    key = "tls.key"
    certificate = "tls.crt"
    authority = "trusted-ca.crt"
    log_key = "log.vkey"
    ```

    For example: matl status, matl rounds --after 3 --json,
    matl quarantine hospital_e --reason "labels under inquiry".

    Exit status: 0 done; 1 the coordinator refused or cannot be reached; 2 wrong options or
    configuration.
    """
    context.obj = Invocation(config, Flags(address, coordinator, key, certificate, authority))


@app.command()
def status(context: typer.Context, *, as_json: Json = False) -> None:
    """Show the study at this moment: the round under way, the model, the log."""
    with connected(context) as client:
        answer = client.status()
    if as_json:
        print_json(asdict(answer))
    else:
        console().print(status_table(answer))


@app.command()
def participants(context: typer.Context, *, as_json: Json = False) -> None:
    """List every enrolled hospital: its trust and why, the privacy budget that its admitted
    updates declared, and its newest appeal.

    Only the hospital's own ledger also counts attempts that never arrived (matl ledger show,
    there), and the ε of the full recipe. In JSON a budget of null is one without limit, and an
    ε of null one that only the ledger knows.
    """
    with connected(context) as client:
        answer = client.participants()
    if as_json:
        print_json([asdict(each) for each in answer])
        return
    columns = (
        *("Hospital", "State", "Trust", "Patients", "ε spent", "Of the budget", "Rounds left"),
        *("Last seen", "Why"),
    )
    rows = (
        (
            each.node_id,
            each.state,
            f"{each.trust:.2f}",
            str(each.enrolled_patients),
            _spent(each),
            _share(each.budget_fraction),
            str(each.rounds_left),
            each.last_seen.isoformat(" ", "seconds") if each.last_seen else "never",
            _why(each),
        )
        for each in answer
    )
    console().print(table(columns, rows))
    # The same for all: a study has one plan.
    for delta, relation in {(each.target_delta, each.neighbouring_relation) for each in answer}:
        typer.echo(f"ε at δ = {delta:g} ({printable(relation)}).")


def _spent(participant: Participant) -> str:
    spent = participant.epsilon_spent
    shown = "its ledger knows" if spent is None else shown_epsilon(spent)
    return f"{shown} of {participant.epsilon_budget:g}"


def _share(budget_fraction: float) -> str:
    warning = ", half is spent" if budget_fraction >= WARNING_FRACTION else ""
    return f"{budget_fraction:.1%}{warning}"


@app.command()
def rounds(
    context: typer.Context,
    *,
    after: Annotated[int, typer.Option(min=0, help="Only rounds after this number.")] = 0,
    as_json: Json = False,
) -> None:
    """List the rounds, oldest first: how each ended, and how good its model is.

    What hospitals say, where the study asks, is about the model that the round began with: the
    share of their patients for whom it is right, with the standard deviation of their noise.

    In JSON a recall of null is of a class that the holdout set lacks.
    """
    with connected(context) as client:
        answer = client.rounds(after=after)
    if as_json:
        print_json([asdict(each) for each in answer])
        return
    columns = (
        *("Round", "Phase", "Admitted", "Accuracy", "Balanced", "Kappa", "Hospitals say", "Model"),
        "Why",
    )
    console().print(table(columns, map(_round_row, answer)))


@app.command()
def pause(context: typer.Context, *, reason: Reason, as_json: Json = False) -> None:
    """Open no further round; the one under way goes on."""
    _order(context, lambda client: client.pause(reason))
    _confirm("The study is paused.", as_json=as_json, order="pause")


@app.command()
def resume(context: typer.Context, *, reason: Reason, as_json: Json = False) -> None:
    """Open rounds again after a pause."""
    _order(context, lambda client: client.resume(reason))
    _confirm("The study goes on.", as_json=as_json, order="resume")


@app.command("start-round")
def start_round(context: typer.Context, *, reason: Reason, as_json: Json = False) -> None:
    """Open the next round now instead of when it is due."""
    number = _order(context, lambda client: client.start_round(reason))
    _confirm(
        f"Round {number} opens as soon as enough hospitals are there.",
        as_json=as_json,
        order="start-round",
        round_id=number,
    )


@app.command()
def quarantine(
    context: typer.Context, node: Node, *, reason: Reason, as_json: Json = False
) -> None:
    """Give a hospital's updates no weight until you release it.

    A round that is being scored is scored again; weights that a round has shared out
    already stay, and the quarantine counts from the next round on.
    """
    _order(context, lambda client: client.quarantine(node, reason))
    said = f"{node} is quarantined; if this round's weights are shared out, from the next round on."
    _confirm(said, as_json=as_json, order="quarantine", node_id=node)


@app.command()
def release(context: typer.Context, node: Node, *, reason: Reason, as_json: Json = False) -> None:
    """End a hospital's quarantine."""
    _order(context, lambda client: client.release(node, reason))
    _confirm(f"{node} is released.", as_json=as_json, order="release", node_id=node)


@app.command()
def appeal(
    context: typer.Context,
    node: Node,
    *,
    text: Annotated[str, typer.Option(help="What the hospital says; the log keeps it for good.")],
    as_json: Json = False,
) -> None:
    """Put a hospital's appeal against its trust on record.

    Answer it with matl release, which ends a quarantine, or with matl deny.
    """
    _order(context, lambda client: client.appeal(node, text))
    _confirm(f"The appeal of {node} is on record.", as_json=as_json, order="appeal", node_id=node)


@app.command()
def deny(context: typer.Context, node: Node, *, reason: Reason, as_json: Json = False) -> None:
    """Answer a hospital's appeal with no: its trust stays as it is."""
    _order(context, lambda client: client.deny(node, reason))
    _confirm(f"The appeal of {node} is denied.", as_json=as_json, order="deny", node_id=node)


def _order(context: typer.Context, give: Callable[[OperationsClient], _Answer]) -> _Answer:
    with connected(context) as client:
        return give(client)


def _confirm(sentence: str, *, as_json: bool, **facts: str | int) -> None:
    if as_json:
        print_json(facts)
    else:
        typer.echo(sentence)


def status_table(status: Status) -> Table:
    """A status, a fact a row, and the hospitals of the round under way."""
    state = "complete" if status.study_complete else "paused" if status.paused else "running"
    current = status.current_round
    rows = [
        ("Study", f"{status.study_id} in {status.federation_id}: {state}"),
        ("Models", f"{status.rounds_released} of {status.rounds_planned} released"),
        ("Latest model", status.latest_model or "none"),
        *_averaging(status),
        ("Hospitals", f"{status.active_participants} present"),
        ("Log", f"{status.log_size} entries, root {status.log_root}"),
        ("Coordinator", f"{status.version}{_leading(status)}"),
    ]
    if status.claim:
        rows += [("Protection", status.claim), ("Rule", status.rule)]
    rows += [("Warning", each) for each in status.warnings]
    if current is None:
        rows.append(("Round", "none yet"))
    else:
        why = f" ({current.reason})" if current.reason else ""
        rows.append(("Round", f"{current.round_id}: {current.phase}{why}"))
        rows += [
            (
                f"  {each.node_id}",
                f"{each.status}, {each.upload_fraction:.0%} uploaded"
                + (f" ({each.reason})" if each.reason else "")
                + (f"; {_hospital_says(each.evaluation)}" if each.evaluation else ""),
            )
            for each in current.contributions
        ]
    return table(None, rows)


def _leading(status: Status) -> str:
    leader = f", {status.leader} leads" if status.leader else ""
    return f"{leader}, reign {status.reign}" if status.reign else leader


def _hospital_says(evaluation: HospitalEvaluation) -> str:
    """A noised count of the hospital's own, in the one form in which it is told to people."""
    if evaluation.correct is None:
        return f"its evaluation is not believed: {evaluation.doubt}"
    return (
        f"says {evaluation.correct:.0f} ± {evaluation.stddev:.0f} of {evaluation.patients} right "
        "before this round"
    )


def _hospitals_say(rnd: Round) -> str:
    """All hospitals' noised counts together; those that cannot be are left out."""
    told = [
        each.evaluation
        for each in rnd.contributions
        if each.evaluation is not None and each.evaluation.correct is not None
    ]
    patients = sum(each.patients for each in told)
    if not patients:
        return ""
    correct = sum(each.correct or 0.0 for each in told)
    stddev = math.hypot(*(each.stddev for each in told))
    return f"{correct / patients:.3f} ± {stddev / patients:.3f}"


def _averaging(status: Status) -> list[tuple[str, str]]:
    if status.average_from == 0:
        return []
    begins = f"from release {status.average_from} on, the mean of the rounds' own models since"
    return [("Released", begins)]


def _round_row(rnd: Round) -> tuple[str, ...]:
    admitted = sum(each.status == "admitted" for each in rnd.contributions)
    scores = ("", "", "")
    if rnd.evaluation is not None:
        found = rnd.evaluation
        scores = (
            f"{found.accuracy:.3f}",
            f"{found.balanced_accuracy:.3f}",
            f"{found.quadratic_weighted_kappa:.3f}",
        )
    return (
        str(rnd.round_id),
        rnd.phase,
        f"{admitted} of {len(rnd.contributions)}",
        *scores,
        _hospitals_say(rnd),
        rnd.released_model[:_SHORT_DIGEST] + (f", mean of {rnd.averaged}" if rnd.averaged else ""),
        rnd.reason,
    )


def _why(participant: Participant) -> str:
    appeal = participant.appeal
    if appeal is None:
        return participant.reason
    answer = f": {appeal.answer}" if appeal.answer else ""
    return f"{participant.reason}; appeal {appeal.state} ({appeal.text}){answer}"
